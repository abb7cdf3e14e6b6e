"""Folders with files that are no images: all are named at once, and none takes memory."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from objective.test_references import Counting
from PIL import Image

from autodiffusion_opt import UserError
from autodiffusion_opt.objective import image_files
from autodiffusion_opt.objective.image_files import batches, read_image
from autodiffusion_opt.objective.references import load_reference

pytestmark = pytest.mark.usefixtures("cache")


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A grey PNG whose header claims a size, and whose data is whatever is given, packed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-500])


def changed(path: Path) -> None:
    """One byte in the middle of the pixels."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))


def vast(path: Path) -> None:
    """A file of 8 GiB, nearly all of it a hole."""
    with path.open("wb") as file:
        file.truncate(2**33)


# What may lie in a folder under the name of an image -> part of the reason that is given.
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "no image"),
    "text": (lambda path: path.write_text("not an image"), "no image"),
    "truncated": (truncated, "truncated"),
    "changed": (changed, ""),
    "dangling": (lambda path: path.symlink_to("nowhere"), "a dangling link"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "pipe": (os.mkfifo, "not a file"),
    "claims 8 TiB": (lambda path: path.write_bytes(png(2**21, 2**22)), "(8796093022208 pixels)"),
    "bomb": (lambda path: path.write_bytes(png(20_000, 20_000, bytes(1_000_000))), "(400000000 pixels)"),
    "smaller bomb": (lambda path: path.write_bytes(png(9000, 9000, bytes(1_000_000))), "9,000 × 9,000 pixels"),
    "large": (vast, "8,589,934,592 bytes"),
    "postscript": (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "no image"),
    "locked": (lambda path: (path.write_bytes(b""), path.chmod(0)), ""),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "images"
    place.mkdir()
    for index in range(3):
        Image.fromarray(np.full((6, 6), index, np.uint8)).save(place / f"{index}.png")
    return place


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_is_no_image_is_named_before_any_features(kind: str, folder: Path) -> None:
    make, reason = WRONG[kind]
    make(folder / "x.png")
    extractor = Counting()
    with pytest.raises(UserError) as error:
        load_reference(str(folder), extractor).statistics  # noqa: B018
    assert f"1 of the 4 files in {folder} cannot be read as images: x.png (" in str(error.value)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert extractor.images == 0


def test_all_are_named_in_one_sentence_the_first_and_how_many_more(folder: Path) -> None:
    for number, make in enumerate(make for make, _ in WRONG.values()):
        make(folder / f"x{number:02}.png")
    with pytest.raises(UserError) as error:
        load_reference(str(folder), Counting()).statistics  # noqa: B018
    message = str(error.value)
    assert f"{len(WRONG)} of the {len(WRONG) + 3} files" in message
    assert [f"x{number:02}.png" in message for number in range(len(WRONG))] == [True] * 5 + [False] * (len(WRONG) - 5)
    assert f"and {len(WRONG) - 5} more; mend or remove them" in message
    for wrong in folder.glob("x*.png"):
        wrong.rmdir() if wrong.is_dir() else wrong.unlink()
    assert load_reference(str(folder), Counting()).statistics.count == 3


SCRIPT = """
import resource, sys
import numpy, torch, PIL.Image, PIL.PngImagePlugin
from pathlib import Path
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.features import PixelFeatures
from autodiffusion_opt.objective.references import load_reference
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_reference(sys.argv[1], PixelFeatures()).statistics
except UserError as error:
    print(str(error), file=sys.stderr)
else:
    raise SystemExit("nothing was refused")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def megabytes_taken(path: Path) -> int:
    """By a process that is asked for a reference which it must refuse."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    return int(ran.stdout.splitlines()[-1])


@pytest.mark.slow
def test_files_that_claim_much_take_no_memory(folder: Path) -> None:
    for number, (make, _) in enumerate(WRONG.values()):
        make(folder / f"x{number:02}.png")
    assert megabytes_taken(folder) < 100


def test_links_to_images_are_images(folder: Path) -> None:
    (folder / "9.png").symlink_to(folder / "1.png")
    assert load_reference(str(folder), Counting()).statistics.count == 4


def test_what_counts_is_what_a_file_holds_not_its_ending(folder: Path) -> None:
    Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(folder / "9.png", format="JPEG")
    assert load_reference(str(folder), Counting()).statistics.count == 4


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    wide = (np.arange(36, dtype=np.uint16) * 1800).reshape(6, 6)
    Image.fromarray(wide).save(tmp_path / "16.png")
    np.testing.assert_array_equal(read_image(tmp_path / "16.png")[0], wide >> 8)


def test_batches_hold_no_more_pixels_than_the_largest_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "LARGEST_IMAGE", 300)
    small, large = torch.zeros(1, 5, 5, dtype=torch.uint8), torch.zeros(3, 12, 12, dtype=torch.uint8)
    sizes = [tuple(batch.shape) for batch in batches([small] * 13 + [large] * 5 + [small])]
    assert sizes == [(12, 1, 5, 5), (1, 1, 5, 5), (2, 3, 12, 12), (2, 3, 12, 12), (1, 3, 12, 12), (1, 1, 5, 5)]


def test_the_features_of_a_folder_with_a_wrong_file_are_refused_too(folder: Path) -> None:
    truncated(folder / "x.png")
    with pytest.raises(UserError, match=r"x\.png \(.*truncated"):
        load_reference(str(folder), Counting()).features  # noqa: B018
