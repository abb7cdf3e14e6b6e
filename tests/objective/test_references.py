"""References: computed once, kept under a content hash, and messages for what is none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autodiffusion_opt import ModelInfo, UserError
from autodiffusion_opt.config import build
from autodiffusion_opt.objective import METRICS, references
from autodiffusion_opt.objective.reference_files import read_statistics
from autodiffusion_opt.objective.references import load_reference, measure
from autodiffusion_opt.sampling.generate import ImageSampler

pytestmark = pytest.mark.usefixtures("cache")


class Counting:
    """Mean and deviation of each image's pixels, and how often it was asked."""

    def __init__(self, identity: str = "counting-1") -> None:
        self.identity = identity
        self.images = 0

    def __call__(self, images: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
        self.images += len(images)
        wide = images.float().flatten(1)
        return torch.stack([wide.mean(1), wide.std(1)], dim=1).numpy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "images"
    (place / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(5):
        array = rng.integers(0, 255, (6, 6) if index % 2 else (6, 6, 3), dtype=np.uint8)
        Image.fromarray(array).save(place / ("more" if index > 2 else ".") / f"{index}.png")
    (place / "notes.txt").write_text("no image")
    return place


def test_the_second_load_computes_nothing(folder: Path, cache: Path) -> None:
    first, second = Counting(), Counting()
    one, other = (load_reference(str(folder), extractor).statistics for extractor in (first, second))
    assert (first.images, second.images) == (5, 0)
    assert one.count == other.count == 5
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.covariance, other.covariance)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]


def test_it_tells_what_it_reads_and_measures(folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    assert load_reference(str(folder), Counting(), progress=lambda *what: told.append(what)).statistics
    assert told[:5] == [("reading reference", done, 5) for done in range(1, 6)]
    assert told[5:10] == [("checking reference", done, 5) for done in range(1, 6)]
    assert {what for what, _, _ in told[10:]} == {"measuring reference"}
    assert told[-1] == ("measuring reference", 5, 5)
    del told[:]
    assert load_reference(str(folder), Counting(), progress=lambda *what: told.append(what)).statistics
    assert {what for what, _, _ in told} == {"reading reference"}


def test_it_is_what_the_images_give(folder: Path) -> None:
    arrays = [np.array(Image.open(path)) for path in sorted(folder.rglob("*.png"))]
    pixels = [torch.from_numpy(a)[None] if a.ndim == 2 else torch.from_numpy(a).permute(2, 0, 1) for a in arrays]
    wanted = np.concatenate([Counting()(image[None]) for image in pixels]).astype(np.float64)
    found = load_reference(str(folder), Counting()).statistics
    np.testing.assert_allclose(found.mean, wanted.mean(0), rtol=1e-9)
    np.testing.assert_allclose(found.covariance, np.cov(wanted, rowvar=False), rtol=1e-6)


@pytest.mark.parametrize("change", ["pixels", "added", "gone", "extractor"])
def test_whatever_changed_it_is_computed_again(change: str, folder: Path) -> None:
    before = load_reference(str(folder), Counting())
    assert before.statistics.count == 5
    extractor = Counting("counting-2" if change == "extractor" else "counting-1")
    if change == "pixels":
        stamp = (folder / "0.png").stat()
        Image.fromarray(np.zeros((6, 6), np.uint8)).save(folder / "0.png")
        os.utime(folder / "0.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    elif change == "added":
        Image.fromarray(np.zeros((6, 6), np.uint8)).save(folder / "9.png")
    elif change == "gone":
        (folder / "0.png").unlink()
    found = load_reference(str(folder), extractor)
    count = found.statistics.count
    assert extractor.images == count == {"added": 6, "gone": 4}.get(change, 5)
    assert found.identity != before.identity


def test_the_folder_may_move(folder: Path, tmp_path: Path) -> None:
    before = load_reference(str(folder), Counting())
    assert before.statistics.count == 5
    moved, extractor = folder.rename(tmp_path / "elsewhere"), Counting()
    found = load_reference(str(moved), extractor)
    assert (found.identity, found.statistics.count) == (before.identity, 5)
    assert extractor.images == 0


def test_the_statistics_of_an_embedded_model_are_kept(cache: Path) -> None:
    first, second = Counting(), Counting()
    assert load_reference("digits", first).statistics.count == 1797
    assert load_reference("digits", second).statistics.count == 1797
    assert (first.images, second.images) == (1797, 0)


def test_a_folder_is_looked_for_beside_the_file_that_names_it_and_nowhere_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_reference("images", Counting(), tmp_path).statistics.count == 5
    with pytest.raises(UserError, match=rf"'images' is not there: there is no {Path.cwd()}/images"):
        load_reference("images", Counting())
    monkeypatch.chdir(tmp_path)
    assert load_reference("images", Counting()).statistics.count == 5
    with pytest.raises(UserError, match=rf"'images' is not there: there is no {folder}/images"):
        load_reference("images", Counting(), folder)


def test_a_file_of_statistics_is_read_as_the_literature_writes_it(tmp_path: Path) -> None:
    path, extractor = tmp_path / "stats.npz", Counting()
    np.savez(path, mu=np.arange(3, dtype=np.float32), sigma=np.eye(3))
    reference = load_reference(str(path), extractor)
    found = reference.statistics
    np.testing.assert_array_equal(found.mean, [0, 1, 2])
    assert (found.mean.dtype, found.covariance.dtype, found.count) == (np.float64, np.float64, 0)
    assert extractor.images == 0
    assert load_reference(str(path), Counting("counting-2")).identity != reference.identity
    np.savez(path, mu=np.arange(3, dtype=np.float32), sigma=2 * np.eye(3))
    assert load_reference(str(path), extractor).identity != reference.identity


def wrong_files() -> dict[str, Any]:
    """What a name.npz may hold beside statistics -> part of the message."""
    eye = np.eye(3)
    return {
        "no mu": (lambda file: np.savez(file, sigma=eye), "mu is missing"),
        "nothing": (lambda file: np.savez(file, images=eye), "mu, sigma is missing"),
        "shapes": (lambda file: np.savez(file, mu=np.zeros(3), sigma=np.eye(4)), "got (3,), (4, 4)"),
        "text": (lambda file: file.write(b"not an archive"), "must be an .npz file"),
        "empty": (lambda file: None, "must be an .npz file"),
        "array": (lambda file: np.save(file, eye), "must be an .npz file"),
        "pickled": (lambda file: np.savez(file, mu=np.array([{}], object), sigma=eye), "mu holds pickled objects"),
        "pickled images": (lambda file: np.savez(file, np.array([{}], object)), "arr_0 holds pickled objects"),
        "pickled features": (lambda file: np.savez(file, feats=np.array([{}], object)), "feats holds pickled objects"),
        "text for numbers": (lambda file: np.savez(file, mu=np.array(["a"]), sigma=np.array([["b"]])), "be numbers"),
        "not symmetric": (lambda file: np.savez(file, mu=np.zeros(2), sigma=np.array([[1, 1], [0, 1.0]])), "symmetric"),
        "variance below 0": (lambda file: np.savez(file, mu=np.zeros(2), sigma=np.diag([1, -1.0])), "below 0"),
        "one feature vector": (lambda file: np.savez(file, features=np.zeros((1, 3))), "at least 2 images; got (1, 3)"),
        "whole numbers": (lambda file: np.savez(file, feats=np.zeros((5, 3), int)), "(N, D) floats"),
        "float images": (lambda file: np.savez(file, np.zeros((5, 4, 4, 3))), "uint8 (N, H, W, 1 or 3)"),
        "images NCHW": (lambda file: np.savez(file, np.zeros((5, 3, 4, 4), np.uint8)), "got (5, 3, 4, 4) of uint8"),
        "one image": (lambda file: np.savez(file, np.zeros((1, 4, 4, 3), np.uint8)), "at least 2 images"),
        "pickle": (lambda file: np.save(file, np.array([{}], object)), "must be an .npz file"),
        "not finite": (lambda file: np.savez(file, mu=np.full(3, np.nan), sigma=eye), "finite"),
        "sigma not finite": (lambda file: np.savez(file, mu=np.zeros(3), sigma=np.full((3, 3), np.inf)), "finite"),
    }


@pytest.mark.parametrize("kind", wrong_files())
def test_a_file_that_holds_no_statistics_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    write, message = wrong_files()[kind]
    with path.open("wb") as file:
        write(file)
    with pytest.raises(UserError) as error:
        load_reference(str(path), Counting())
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_with_other_things_than_references_names_the_forms(tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", images=np.eye(3))
    with pytest.raises(UserError, match=r"mu and sigma, or features \(named features or feats\), or images \(arr_0"):
        load_reference(str(tmp_path / "stats.npz"), Counting())


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "trap"),))

    with (tmp_path / "stats.npz").open("wb") as file:
        np.savez(file, mu=np.array([Trap()], object), sigma=np.eye(1))
    with pytest.raises(UserError):
        read_statistics(tmp_path / "stats.npz")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("count", [0, 1])
def test_a_folder_with_fewer_than_two_images_is_refused(count: int, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    for index in range(count):
        Image.fromarray(np.zeros((6, 6), np.uint8)).save(tmp_path / "few" / f"{index}.png")
    with pytest.raises(UserError, match=rf"must hold at least 2 images .* it holds {count}"):
        load_reference(str(tmp_path / "few"), Counting())
    Image.fromarray(np.zeros((6, 6), np.uint8)).save(tmp_path / "few" / "8.png")
    Image.fromarray(np.zeros((6, 6), np.uint8)).save(tmp_path / "few" / "9.png")
    assert load_reference(str(tmp_path / "few"), Counting()).statistics.count == count + 2


def test_an_image_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1 of the 6 files in .* be read as images: broken\.png \(no image\)"):
        load_reference(str(folder), Counting()).statistics  # noqa: B018


def test_a_cache_that_cannot_be_written_names_the_variable(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTODIFFUSION_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="AUTODIFFUSION_CACHE"):
        load_reference(str(folder), Counting()).statistics  # noqa: B018


def test_statistics_of_no_images_are_refused() -> None:
    with pytest.raises(UserError, match="no images"):
        measure(iter(()))


def test_features_are_those_of_all_images_in_order_and_not_kept_on_disk(folder: Path, cache: Path) -> None:
    reference = load_reference(str(folder), Counting())
    wanted = []
    for path in sorted(folder.rglob("*.png")):
        array = np.array(Image.open(path))
        image = torch.from_numpy(array)[None] if array.ndim == 2 else torch.from_numpy(array).permute(2, 0, 1)
        wanted.append(Counting()(image[None]))
    np.testing.assert_allclose(reference.features, np.concatenate(wanted), rtol=1e-6)
    assert not cache.exists()
    assert load_reference("digits", Counting()).features.shape == (1797, 2)


def test_a_reference_measures_nothing_until_it_is_asked_and_then_once(folder: Path) -> None:
    extractor = Counting()
    reference = load_reference(str(folder), extractor)
    assert extractor.images == 0
    assert reference.statistics is reference.statistics
    assert extractor.images == 5
    assert reference.features is reference.features
    assert extractor.images == 10


def test_more_images_than_a_batch_all_count(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for index in range(130):
        Image.fromarray(np.full((3, 3), index, np.uint8)).save(tmp_path / "many" / f"{index:03}.png")
    reference = load_reference(str(tmp_path / "many"), Counting())
    assert reference.statistics.count == 130
    np.testing.assert_array_equal(reference.features[:, 0], np.arange(130))


def test_a_file_of_statistics_holds_no_features(tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3), count=np.array(7))
    reference = load_reference(str(tmp_path / "stats.npz"), Counting())
    assert reference.statistics.count == 7
    with pytest.raises(UserError, match="holds statistics alone"):
        reference.features  # noqa: B018


@pytest.mark.parametrize(("device", "wanted"), [("cpu", None), ("mps", None), ("cuda", "cuda"), ("cuda:1", "cuda:1")])
def test_metrics_compute_on_a_gpu_that_knows_float64_where_the_pipeline_is_on_one(device: str, wanted: Any) -> None:
    for given in (device, torch.device(device)):
        assert load_reference("digits", Counting(), device=given).device == wanted
    assert load_reference("digits", Counting()).device is None


def test_an_objective_hands_its_pipelines_device_over(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from autodiffusion_opt.objective.metrics import fid

    asked: list[Any] = []
    loaded = references.load_reference

    def on_a_gpu(*given: Any, **more: Any) -> Any:
        asked.append(torch.device(given[4]).type)
        return loaded(*given[:4], device="cuda")

    class Noted(fid.FrechetDistance):
        def __init__(self, reference: Any, device: str | None) -> None:
            asked.append(device)
            super().__init__(reference)

    monkeypatch.setattr(references, "load_reference", on_a_gpu)
    monkeypatch.setattr(fid, "FrechetDistance", Noted)
    table = {"kind": "fid", "images": 30, "features": "digits", "reference": "digits"}
    config = build(METRICS["fid"].Config, table, "here")
    config.objective(ImageSampler(digits, micro_batch=10, batch_size=10), ModelInfo(train_steps=1000), Path())
    assert asked == ["cpu", "cuda"]
