"""How good a search was after so many images, trials or seconds: the best value so far, and its median over seeds."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median as median_of
from typing import Any, Literal

from optuna.study import StudyDirection

from autodiffusion_opt.study.results import StoredStudy
from autodiffusion_opt.trials.attributes import EVALUATION_FAILED, SPENT, excess_of, values_of
from autodiffusion_opt.trials.history import MEASURED, cost_of

Axis = Literal["images", "trials", "seconds"]
# What a search spends: images generated, trials finished, seconds of sampling and measuring, summed over workers.
AXES: tuple[Axis, ...] = ("images", "trials", "seconds")


@dataclass(frozen=True)
class Curve:
    """The best value so far of a study against what it had spent, after each trial.

    Attributes:
        spent: of each axis, what had been spent, ascending.
        best: the best value of a complete trial that keeps to its bounds; NaN before there is one.
    """

    spent: Mapping[Axis, tuple[float, ...]]
    best: tuple[float, ...]

    def total(self, axis: Axis) -> float:
        """What the study has spent in all."""
        return self.spent[axis][-1] if self.best else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**{axis: list(spent) for axis, spent in self.spent.items()}, "best": list(self.best)}


@dataclass(frozen=True)
class Spread:
    """The median of numbers, one a seed, and their range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """Infinite ones count: with [1, 2, inf] the median is 2, with [1, inf] it is infinite."""
        return cls(float(median_of(numbers)), min(numbers), max(numbers))

    def to_dict(self) -> dict[str, float]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Reached:
    """What it took to come within a share of the best value; infinite for a seed that never did.

    Attributes:
        spent: of each axis, over seeds.
        seeds: how many reached it.
        of: so many.
    """

    spent: Mapping[Axis, Spread]
    seeds: int
    of: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**{axis: spread.to_dict() for axis, spread in self.spent.items()}, "reached": self.seeds, "of": self.of}


@dataclass(frozen=True)
class Band:
    """The median of curves over seeds and their range, as steps: numbers hold from their place to the next.

    Infinite (towards the worse) while a seed, or half of the seeds, have no value yet. A study that ended keeps its
    last value.
    """

    at: tuple[float, ...]
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def to_dict(self) -> dict[str, list[float]]:
        """JSON values."""
        return {name: list(numbers) for name, numbers in asdict(self).items()}


def sign_of(direction: str) -> int:
    """What a value is multiplied with so that less is better."""
    return 1 if direction == "minimize" else -1


def loss_of(value: float, sign: int) -> float:
    """Less is better; infinite where there is no value."""
    return math.inf if math.isnan(value) else sign * value


def curve_of(stored: StoredStudy) -> Curve:
    """The curve of a study with one value; what warm starts cost stands before the first trial.

    A trial that took over an earlier one's value costs nothing; a pruned one the images that it had.
    """
    sign = sign_of("maximize" if stored.study.direction == StudyDirection.MAXIMIZE else "minimize")
    images, seconds = _warm_starts(stored)
    trials, best = 0, math.nan
    rows = []
    for trial in stored.trials:
        if not trial.state.is_finished():
            continue
        more_images, more_seconds = cost_of(trial)
        images, seconds = images + more_images, seconds + more_seconds
        # One whose worker died is retried: the retry counts.
        trials += trial.state in MEASURED or bool(trial.user_attrs.get(EVALUATION_FAILED))
        values = values_of(trial)
        if values is not None and not excess_of(trial) and sign * values[0] < loss_of(best, sign):
            best = values[0]
        rows.append((images, float(trials), seconds, best))
    *spent, values_so_far = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Curve(dict(zip(AXES, spent, strict=True)), tuple(values_so_far))


def images_of(stored: StoredStudy) -> float:
    """The images that a study has generated, with those of its warm starts, counted as in :func:`curve_of`."""
    return _warm_starts(stored)[0] + stored.queries.images()


def _warm_starts(stored: StoredStudy) -> tuple[float, float]:
    """Images and seconds before the first trial, as images of the study's median candidate: as many model calls.

    Where the NFE of candidates is not known, images are counted as they are.
    """
    entries = stored.study.user_attrs.get(SPENT, [])
    candidates = stored.queries.calls() if entries else []
    calls = median_of(candidates) if candidates else None
    images = sum(entry["images"] * (entry["nfe"] / calls if calls else 1.0) for entry in entries)
    return float(images), float(sum(entry["seconds"] for entry in entries))


def spent_until(curve: Curve, axis: Axis, limit: float, sign: int) -> float:
    """What had been spent once the best so far, times ``sign``, was at most ``limit``; infinite where it never was."""
    reached = (spent for spent, best in zip(curve.spent[axis], curve.best, strict=True) if loss_of(best, sign) <= limit)
    return next(reached, math.inf)


def reached_by(curves: Sequence[Curve], limit: float, sign: int) -> Reached:
    """What it took the seeds of an optimizer to reach a limit (of a value times ``sign``)."""
    until = {axis: [spent_until(curve, axis, limit, sign) for curve in curves] for axis in AXES}
    seeds = sum(map(math.isfinite, until["trials"]))
    return Reached({axis: Spread.of(numbers) for axis, numbers in until.items()}, seeds, len(curves))


def band_of(curves: Sequence[Curve], axis: Axis, sign: int) -> Band:
    """The median and the range of curves, at every place where one of them changes, and where the last ends."""
    ends = [curve.total(axis) for curve in curves]
    places = sorted({place for curve in curves for place in _changes(curve, axis)} | {max(ends)})
    rows = []
    for place in places:
        values = [sign * loss_of(_value_at(curve, axis, place), sign) for curve in curves]
        spread = Spread.of(values)
        rows.append((place, spread.median, spread.low, spread.high))
    return Band(*zip(*rows, strict=True))


def _changes(curve: Curve, axis: Axis) -> set[float]:
    """Where the best so far changes."""
    before, changes = math.nan, set()
    for spent, best in zip(curve.spent[axis], curve.best, strict=True):
        if best != before and not math.isnan(best):
            changes.add(spent)
        before = best
    return changes


def _value_at(curve: Curve, axis: Axis, place: float) -> float:
    """The best value once so much was spent; NaN before there is one."""
    index = bisect_right(curve.spent[axis], place)
    return curve.best[index - 1] if index else math.nan
