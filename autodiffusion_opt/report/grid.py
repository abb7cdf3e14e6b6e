"""A picture of generated images: one block a candidate, side by side, the same seeds in the same places."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.files import check_output
from autodiffusion_opt.study.previews import tile
from autodiffusion_opt.text import visible

if TYPE_CHECKING:
    import torch

# Some that Pillow writes.
ENDINGS = (".png", ".jpg", ".webp", ".bmp", ".tif")

GAP = 12
CAPTION = 18
CAPTION_LENGTH = 200


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
    pictures = [_captioned(visible(caption, CAPTION_LENGTH), tile(images)) for caption, images in blocks.items()]
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


def _captioned(caption: str, picture: Image.Image) -> Image.Image:
    font = ImageFont.load_default(12)
    width = max(picture.width, math.ceil(font.getlength(caption)))
    captioned = Image.new("RGB", (width, picture.height + CAPTION), "white")
    ImageDraw.Draw(captioned).text((0, 0), caption, fill="black", font=font)
    captioned.paste(picture, (0, CAPTION))
    return captioned
