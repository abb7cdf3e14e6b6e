"""What is kept on disk: whole and of its name, or computed again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from objective.test_references import Counting

from autodiffusion_opt import UserError
from autodiffusion_opt.cache import kept
from autodiffusion_opt.objective import references
from autodiffusion_opt.objective.references import load_reference
from autodiffusion_opt.objective.statistics import FrechetDistance

pytestmark = pytest.mark.usefixtures("cache")

VALUES = np.random.default_rng(0).normal(size=(20, 20))


class Compute:
    """The values, and how often they were asked for."""

    def __init__(self, values: Any = VALUES) -> None:
        self.values = values
        self.times = 0

    def __call__(self) -> dict[str, Any]:
        self.times += 1
        return {"values": self.values, "count": np.array(3)}


def ask(compute: Compute, name: str = "thing") -> Any:
    arrays = kept(name, compute, "test values")
    np.testing.assert_array_equal(arrays["values"], compute.values)
    assert arrays["count"] == 3
    return arrays


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another_number(path: Path) -> None:
    """A sound archive with a number that was not computed."""
    with np.load(path) as file:
        arrays = dict(file)
    arrays["values"][3, 4] += 1e-9
    np.savez(path, **arrays)


def without_checksum(path: Path) -> None:
    np.savez(path, values=VALUES, count=np.array(3))


def another_shape(path: Path) -> None:
    with np.load(path) as file:
        np.savez(path, **{**file, "values": VALUES.reshape(10, 40)})  # type: ignore[dict-item]


SPOILT: dict[str, Callable[[Path], Any]] = {
    "half": half,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("nothing"),
    "another number": another_number,
    "no checksum": without_checksum,
    "another shape": another_shape,
    "one byte": lambda path: path.write_bytes(path.read_bytes().replace(VALUES[5, 5].tobytes(), bytes(8))),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_spoilt_is_computed_again_and_kept(kind: str, cache: Path) -> None:
    compute = Compute()
    ask(compute)
    ask(compute)
    assert compute.times == 1
    SPOILT[kind](cache / "thing.npz")
    ask(compute)
    ask(compute)
    assert compute.times == 2
    assert [path.name for path in cache.iterdir()] == ["thing.npz"]


def test_what_was_kept_under_another_name_is_not_taken(cache: Path) -> None:
    ask(Compute())
    shutil.copy(cache / "thing.npz", cache / "other.npz")
    other = Compute(VALUES + 1)
    ask(other, "other")
    assert other.times == 1


def test_spoilt_statistics_and_roots_are_made_again_silently(tmp_path: Path, cache: Path) -> None:
    def root_of(extractor: Counting) -> Any:
        return load_reference("digits", extractor).statistics.root

    first = root_of(Counting())
    files = sorted(cache.iterdir())
    assert [path.name.count("-root") for path in files] == [1, 0]
    for path in files:
        half(path)
    again = Counting()
    np.testing.assert_array_equal(root_of(again), first)
    assert again.images == 1797


def test_a_root_is_computed_once_for_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_reference("digits", Counting()).statistics
    np.testing.assert_allclose(first.root @ first.root, first.covariance, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(references, "square_root", lambda covariance: pytest.fail("it is on disk"))
    np.testing.assert_array_equal(load_reference("digits", Counting()).statistics.root, first.root)


def test_the_root_is_there_before_the_first_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    statistics = load_reference(str(tmp_path / "stats.npz"), Counting()).statistics
    measuring = FrechetDistance(statistics)
    monkeypatch.setattr(references, "square_root", lambda covariance: pytest.fail("too late"))
    measuring.add(np.ones((2, 3), np.float32))
    assert measuring.value() == pytest.approx(6)
    (tmp_path / "file").write_text("")
    monkeypatch.undo()
    monkeypatch.setenv("AUTODIFFUSION_CACHE", str(tmp_path / "file"))
    unkept = load_reference(str(tmp_path / "stats.npz"), Counting()).statistics
    with pytest.raises(UserError, match="AUTODIFFUSION_CACHE"):
        FrechetDistance(unkept)
