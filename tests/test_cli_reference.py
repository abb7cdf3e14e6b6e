"""``autodiffusion-opt reference``: files of statistics are made, shown, and read back by an objective."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autodiffusion_opt.objective.features import load_extractor
from autodiffusion_opt.objective.references import load_reference

pytestmark = pytest.mark.usefixtures("cache")

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "images"
    place.mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        Image.fromarray(rng.integers(0, 255, (16, 16 + index, 3), dtype=np.uint8)).save(place / f"{index}.png")
    return place


def pixels() -> Any:
    return load_extractor("pixels", torch.device("cpu"))


def made(call: Call, source: Path, output: Path, *words: object) -> Any:
    code, out, err = call("reference", "make", source, "--features", "pixels", "-o", output, "--json", *words)
    assert code == 0, err
    return json.loads(out)


def test_what_make_writes_is_read_as_the_same_reference(folder: Path, tmp_path: Path, call: Call) -> None:
    path = tmp_path / "stats.npz"
    told = made(call, folder, path)
    assert told == {"file": str(path), "count": 5, "dimensions": 192, "features": "pixels-8"}
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {"mu", "sigma", "count", "features_identity"}
    of_folder, of_file = (load_reference(str(source), pixels()).statistics for source in (folder, path))
    np.testing.assert_array_equal(of_folder.mean, of_file.mean)
    np.testing.assert_array_equal(of_folder.covariance, of_file.covariance)
    assert of_file.count == 5


def test_an_objective_reads_it_and_refuses_it_for_other_features(
    tmp_path: Path, call: Call, study_file: Callable[..., Path], study_text: str, url: str
) -> None:
    path = tmp_path / "stats.npz"
    assert call("reference", "make", "digits", "--features", "digits", "-o", path)[0] == 0
    study = tmp_path / "mine.toml"
    study.write_text(study_text.replace('reference = "digits"', 'reference = "stats.npz"'))
    assert call("run", study, "--storage", url, "--trials", 1)[0] == 0
    study.write_text(study.read_text().replace('features = "digits"', 'features = "pixels"'))
    code, _, err = call("run", study, "--storage", url, "--trials", 1, "--seed", 3)
    assert code == 2
    assert "stats.npz was made with the features" in err
    assert "the objective's are 'pixels-8'" in err


def test_make_and_show_print_a_table_without_json(folder: Path, tmp_path: Path, call: Call) -> None:
    code, out, _ = call("reference", "make", folder, "--features", "pixels", "-o", tmp_path / "stats.npz")
    assert code == 0
    assert all(word in out for word in ("stats.npz", "192", "pixels-8"))
    code, out, _ = call("reference", "show", tmp_path / "stats.npz")
    assert code == 0
    assert all(word in out for word in ("count", "5", "192", "pixels-8"))


def show(call: Call, source: object, *words: object) -> Any:
    code, out, err = call("reference", "show", source, "--json", *words)
    assert code == 0, err
    return json.loads(out)


def test_show_tells_what_a_folder_holds_and_with_features_what_it_is(folder: Path, call: Call) -> None:
    plain = show(call, folder)
    assert set(plain) == {"source", "images", "content"}
    assert plain["images"] == 5
    full = show(call, folder, "--features", "pixels")
    assert full["content"] == plain["content"]
    assert (full["count"], full["dimensions"], full["features"]) == (5, 192, "pixels-8")
    assert full["identity"] == load_reference(str(folder), pixels()).identity
    (folder / "0.png").unlink()
    assert show(call, folder)["content"] != plain["content"]


def test_show_tells_what_a_file_holds(folder: Path, tmp_path: Path, call: Call) -> None:
    path = tmp_path / "stats.npz"
    made(call, folder, path)
    told = show(call, path)
    assert (told["images"], told["count"], told["dimensions"], told["features"]) == (0, 5, 192, "pixels-8")
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    told = show(call, path)
    assert (told["count"], told["dimensions"], told["features"]) == (None, 3, None)
    np.savez(path, feats=np.zeros((7, 4), np.float32))
    told = show(call, path)
    assert (told["images"], told["count"], told["dimensions"]) == (0, 7, 4)
    np.savez(path, np.zeros((9, 4, 4, 3), np.uint8))
    assert show(call, path)["images"] == 9
    assert show(call, "digits")["images"] == 1797


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_a_preview_shows_the_images_as_large_as_the_first(folder: Path, tmp_path: Path, call: Call) -> None:
    code, _, err = call("reference", "show", folder, "-o", tmp_path / "grid.png")
    assert code == 0, err
    assert size(tmp_path / "grid.png")[0] > 3 * 32
    np.savez(tmp_path / "images.npz", np.zeros((100, 300, 200, 1), np.uint8))
    assert show(call, tmp_path / "images.npz", "-o", tmp_path / "many.png")["preview"] == str(tmp_path / "many.png")
    assert 8 * 128 < size(tmp_path / "many.png")[1] < 8 * 128 + 80


MISTAKES: dict[str, tuple[list[str], str]] = {
    "not there": (["make", "nowhere", "--features", "pixels"], "'nowhere' is not there"),
    "show nothing": (["show", "nowhere.npz"], "'nowhere.npz' is not there"),
    "features": (["make", "images", "--features", "pixel"], "Did you mean 'pixels'?"),
    "no features": (["make", "images"], "--features"),
    "ending": (["make", "images", "--features", "pixels", "-o", "stats.pt"], "ends in .npz; got stats.pt"),
    "folder": (["make", "images", "--features", "pixels", "-o", "no/stats.npz"], "-o: the folder no must exist"),
    "statistics": (["make", "mu.npz", "--features", "pixels"], "mu.npz holds statistics already"),
    "no images": (["show", "mu.npz", "-o", "grid.png"], "holds no images, so there is nothing to preview"),
    "wrong files": (["make", "wrong", "--features", "pixels"], "1 of the 2 files in"),
    "weights": (["make", "images", "--features", "inception", "--weights", "no.pth"], "no.pth must exist"),
    "device": (["make", "images", "--features", "pixels", "--device", "cuda:77"], "got 'cuda:77'"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_a_sentence_and_exit_code_2(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("mu.npz", mu=np.zeros(3), sigma=np.eye(3))
    (tmp_path / "wrong").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "wrong" / name)
    (tmp_path / "wrong" / "a.png").write_bytes(b"no image")
    words, message = MISTAKES[kind]
    code, out, err = call("reference", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "reference.npz").exists()
