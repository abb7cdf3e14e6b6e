"""The images of a reference: a folder of files, an array in an ``.npz`` file, or a data set on disk.

Files are read as if somebody wished us ill: what is no image, or claims to be a vast one, is told before it takes
memory, and all files that are wrong are told at once.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.progress import Progress

if TYPE_CHECKING:
    import PIL.Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Pillow goes by what a file holds, whatever its name: others of its formats run programs, Ghostscript say.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM")
BATCH = 64
LARGEST_FILE = 2**30
# Pixels of one image, and of a batch.
LARGEST_IMAGE = 2**26
NAMED = 5


def image_paths(folder: Path) -> list[Path]:
    """All images below a folder, in the order of their names. Raises UserError if there are fewer than two."""
    if not folder.is_dir():
        raise UserError(f"reference: {folder} must be a folder of images or an .npz file")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        endings = ", ".join(SUFFIXES)
        raise UserError(
            f"reference: the folder {folder} must hold at least 2 images ({endings}); it holds {len(files)}"
        )
    return files


def content_hash(folder: Path, files: list[Path], progress: Progress) -> str:
    """Of the files' names below the folder and their bytes. Raises UserError that names those that have none."""
    total, wrong = hashlib.sha256(), {}
    for done, path in enumerate(files, 1):
        try:
            total.update(str(path.relative_to(folder)).encode("utf-8", "surrogateescape") + b"\0")
            total.update(file_hash(path))
        except (OSError, ValueError) as error:
            wrong[path] = _reason(error)
        progress("reading reference", done, len(files))
    if wrong:
        raise _not_images(folder, {**wrong, **_wrong_images([path for path in files if path not in wrong])}, files)
    return total.hexdigest()


def file_hash(path: Path) -> bytes:
    """The SHA-256 of a file. Raises OSError, or ValueError for what is no file or a vast one."""
    if not path.is_file():
        raise ValueError("a folder" if path.is_dir() else "a dangling link" if path.is_symlink() else "not a file")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path.stat().st_size:,} bytes; at most {LARGEST_FILE:,} are read")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def check_images(folder: Path, files: list[Path], progress: Progress) -> None:
    """Read every file, so that what is wrong is known before any features are computed.

    Raises:
        UserError: that names the files which are no images, or too large ones.
    """
    wrong = _wrong_images(files, progress)
    if wrong:
        raise _not_images(folder, wrong, files)


def batches(images: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Batches of images of one size; those that follow each other and agree go together."""
    for shape, group in groupby(images, key=lambda image: image.shape):
        size = max(1, min(BATCH, LARGEST_IMAGE // max(shape[-1] * shape[-2], 1)))
        batch: list[torch.Tensor] = []
        for image in group:
            batch.append(image)
            if len(batch) == size:
                yield torch.stack(batch)
                batch = []
        if batch:
            yield torch.stack(batch)


def read_image(path: Path) -> torch.Tensor:
    """uint8 (1 or 3, H, W). Raises what Pillow raises, or ValueError for too large an image."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that is odd; sizes are checked here
        with Image.open(path, formats=FORMATS) as image:
            return as_tensor(image)


def as_tensor(image: PIL.Image.Image) -> torch.Tensor:
    """uint8 (1 or 3, H, W) of a Pillow image; 16 bits a pixel become 8. Raises ValueError for too large an image."""
    if image.width * image.height > LARGEST_IMAGE:  # pixels are not unpacked yet
        raise ValueError(f"{image.width:,} × {image.height:,} pixels; at most {LARGEST_IMAGE:,} are read")
    if image.mode.startswith("I"):  # 16 bits; Pillow before 11 has them in 32
        array = (np.array(image).clip(0, 2**16 - 1) >> 8).astype(np.uint8)
    else:
        array = np.array(image if image.mode == "L" else image.convert("RGB"))
    tensor = torch.from_numpy(array)
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)


def _wrong_images(files: list[Path], progress: Progress | None = None) -> dict[Path, str]:
    """The files that cannot be read, and why."""
    wrong = {}
    for done, path in enumerate(files, 1):
        try:
            read_image(path)
        except Exception as error:  # decoders of broken files raise errors of any class
            wrong[path] = _reason(error)
        if progress is not None:
            progress("checking reference", done, len(files))
    return wrong


def _reason(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        return "no image"
    if type(error).__name__ == "DecompressionBombError":
        return str(error).split(",")[0]  # the rest repeats what it is
    return reason_of(error)


def _not_images(folder: Path, wrong: dict[Path, str], files: list[Path]) -> UserError:
    named = ", ".join(f"{path.relative_to(folder)} ({wrong[path]})" for path in sorted(wrong)[:NAMED])
    more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    return UserError(
        f"reference: {len(wrong)} of the {len(files)} files in {folder} cannot be read as images: {named}{more}; "
        "mend or remove them"
    )
