"""A picture of generated images: one block a candidate, side by side, the same seeds in the same places."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.files import check_output
from autodiffusion_opt.text import visible

if TYPE_CHECKING:
    import torch

# Some that Pillow writes.
ENDINGS = (".png", ".jpg", ".webp", ".bmp", ".tif")

GAP = 12
CAPTION = 18
CAPTION_LENGTH = 200
# Images smaller than this are enlarged by a whole factor, so that pixels stay pixels.
SMALLEST = 32


def check_picture(path: Path) -> None:
    """Raises UserError, before images are made for it, for a file whose ending names no format that can be written."""
    check_output(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), kind or path.suffix)
    except (KeyError, OSError, ValueError):
        raise UserError(f"-o: {path} cannot be written: its ending must be {', '.join(ENDINGS)}") from None


def save_grid(blocks: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a PNG (or what the ending says) with one captioned block of images each.

    Args:
        blocks: caption -> uint8 (N, C, H, W).
        path: the file; its folder must exist.

    Raises:
        UserError: for a file that cannot be written.
    """
    pictures = [_captioned(visible(caption, CAPTION_LENGTH), _tile(images)) for caption, images in blocks.items()]
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) + 1)
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures) + 2 * GAP), "white")
    left = GAP
    for picture in pictures:
        sheet.paste(picture, (left, GAP))
        left += picture.width + GAP
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"the picture {path} cannot be written: {reason_of(error)}") from None


def _tile(images: torch.Tensor) -> Image.Image:
    """A square block of images with one pixel between them."""
    count, _, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    factor = max(1, math.ceil(SMALLEST / width))
    cell = np.full((math.ceil(count / columns), columns, height * factor + 1, width * factor + 1, 3), 255, np.uint8)
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    for index in range(count):
        large = pixels[index].repeat(factor, axis=0).repeat(factor, axis=1)
        cell[index // columns, index % columns, : height * factor, : width * factor] = large
    rows, columns, tall, wide, _ = cell.shape
    return Image.fromarray(cell.transpose(0, 2, 1, 3, 4).reshape(rows * tall, columns * wide, 3))


def _captioned(caption: str, picture: Image.Image) -> Image.Image:
    font = ImageFont.load_default(12)
    width = max(picture.width, math.ceil(font.getlength(caption)))
    captioned = Image.new("RGB", (width, picture.height + CAPTION), "white")
    ImageDraw.Draw(captioned).text((0, 0), caption, fill="black", font=font)
    captioned.paste(picture, (0, CAPTION))
    return captioned
