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


def save_grid(blocks: Mapping[str, torch.Tensor], path: Path, columns: int | None = None) -> None:
    """Write a PNG (or what the ending says) with one captioned block of images each.

    Args:
        blocks: caption -> uint8 (N, C, H, W).
        path: the file; its folder must exist.
        columns: of each block; None: about as many as rows.

    Raises:
        UserError: for a file that cannot be written.
    """
    try:
        grid(blocks, columns).save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"the picture {path} cannot be written: {reason_of(error)}") from None


def grid(blocks: Mapping[str, torch.Tensor], columns: int | None = None) -> Image.Image:
    """One block of images each, side by side, with its caption below; see :func:`save_grid`."""
    pictures = [_captioned(visible(text, CAPTION_LENGTH), tile(images, columns)) for text, images in blocks.items()]
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) + 1)
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures) + 2 * GAP), "white")
    left = GAP
    for picture in pictures:
        sheet.paste(picture, (left, GAP))
        left += picture.width + GAP
    return sheet


def _captioned(caption: str, picture: Image.Image) -> Image.Image:
    """The picture with its caption below, in as many lines as it needs to be no wider."""
    font = ImageFont.load_default(12)
    lines = [""]
    for word in caption.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > picture.width:
            lines.append(word)
        else:
            lines[-1] = longer
    width = max(picture.width, *(math.ceil(font.getlength(line)) for line in lines))
    captioned = Image.new("RGB", (width, picture.height + CAPTION * len(lines)), "white")
    captioned.paste(picture, (0, 0))
    for index, line in enumerate(lines):
        ImageDraw.Draw(captioned).text((0, picture.height + 2 + CAPTION * index), line, fill="black", font=font)
    return captioned
