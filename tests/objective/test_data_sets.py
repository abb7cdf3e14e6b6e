"""Data sets on disk, read by a stand-in for Hugging Face's ``datasets``, which tests do not install."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from objective.test_references import Counting
from PIL import Image as Pictures

from autodiffusion_opt import UserError
from autodiffusion_opt.objective.references import load_reference

pytestmark = pytest.mark.usefixtures("cache")


class Image:
    """The type of a column of images, by the name that it has in ``datasets``."""


class Value:
    """The type of other columns."""


class Rows(list[dict[str, Any]]):
    """A data set."""

    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
        super().__init__(rows)
        self.features = features


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As ``save_to_disk`` leaves it, as far as it is looked at before the package reads it."""
    place = tmp_path / "data"
    place.mkdir()
    (place / "state.json").write_text("{}")
    (place / "dataset_info.json").write_text("{}")
    (place / "data-00000-of-00001.arrow").write_bytes(b"rows")
    return place


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    """What the stand-in gives; tests change it."""
    rng = np.random.default_rng(0)
    pictures = [Pictures.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)) for _ in range(70)]
    given = Rows([{"picture": picture, "label": 1} for picture in pictures], {"picture": Image(), "label": Value()})
    library = ModuleType("datasets")
    library.load_from_disk = lambda path: given  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    return given


def test_the_images_of_a_data_set_are_measured_and_kept(folder: Path, rows: Rows) -> None:
    first, second = Counting(), Counting()
    for extractor in (first, second):
        assert load_reference(str(folder), extractor).statistics.count == 70
    assert (first.images, second.images) == (70, 0)
    mean = np.mean([np.array(row["picture"]).mean() for row in rows])
    assert load_reference(str(folder), Counting()).statistics.mean[0] == pytest.approx(mean, rel=1e-5)
    (folder / "data-00000-of-00001.arrow").write_bytes(b"other rows")
    changed = Counting()
    assert load_reference(str(folder), changed).statistics.count == 70
    assert changed.images == 70


def test_without_the_package_the_message_is_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"datasets, which is not installed: pip install datasets$"):
        load_reference(str(folder), Counting())


def test_of_several_splits_one_must_be_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "state.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(UserError, match="holds several splits; name the folder of one below it: test, train"):
        load_reference(str(tmp_path), Counting())


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"label": Value()}, "its columns are label, those of images: none"),
        ({"picture": Image(), "depth": Image()}, "those of images: picture, depth"),
    ],
)
def test_one_column_must_hold_images(features: dict[str, Any], message: str, folder: Path, rows: Rows) -> None:
    rows.features = features
    with pytest.raises(UserError, match=message):
        load_reference(str(folder), Counting())


def test_a_row_that_is_no_image_is_named(folder: Path, rows: Rows) -> None:
    rows[3]["picture"] = None
    with pytest.raises(UserError, match=f"row 3 of {folder} cannot be read as an image"):
        load_reference(str(folder), Counting()).statistics  # noqa: B018
    rows[3]["picture"] = Pictures.new("1", (9000, 9000))
    with pytest.raises(UserError, match="9,000 × 9,000 pixels; at most"):
        load_reference(str(folder), Counting()).statistics  # noqa: B018


def test_a_data_set_needs_two_images(folder: Path, rows: Rows) -> None:
    del rows[1:]
    with pytest.raises(UserError, match="must hold at least 2 images; it holds 1"):
        load_reference(str(folder), Counting())


def test_what_the_package_cannot_read_is_a_sentence(folder: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: str) -> Any:
        raise ValueError("not an Arrow file")

    monkeypatch.setattr(sys.modules["datasets"], "load_from_disk", fails)
    with pytest.raises(UserError, match=f"datasets cannot read {folder}: not an Arrow file"):
        load_reference(str(folder), Counting())
