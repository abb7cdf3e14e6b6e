"""The settings of each engine's cache that a search may choose, with their ranges and the package's defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from autodiffusion_opt import engine as engines
from autodiffusion_opt.engine import DECIMALS, Engine
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.scalars import MUTATION_SHARE, UNITS

# A whole number more or less is so much of a coordinate: the first step of a pattern search.
UNIT = 0.4
# The settings that are not numbers but steps: of each, but for the first, whether it is skipped.
SKIPPED = "skipped"
# How many first steps are computed whatever the other settings are.
WARM_UP = "warm_up"


@dataclass(frozen=True)
class Knob:
    """A number of an engine, from ``low`` to ``high``; equal: fixed.

    Attributes:
        name: of the engine's setting, and of the parameter.
        low: the least value.
        high: the greatest.
        default: the package's.
        is_whole: whether it is an integer; others are searched in their logarithm.
        saves: 1: the greater it is the more is left out; -1: the smaller it is; 0: it decides nothing of that.
    """

    name: str
    low: float
    high: float
    default: float
    is_whole: bool = True
    saves: Literal[-1, 0, 1] = 0

    @property
    def searched(self) -> bool:
        """Whether there is anything to choose."""
        return self.low < self.high

    def distribution(self) -> BaseDistribution:
        """Integers, or reals by their logarithm."""
        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high))
        return FloatDistribution(self.low, self.high, log=True)

    def settle(self, value: float) -> float:
        """The nearest allowed value."""
        rounded = round(value) if self.is_whole else round(value, DECIMALS)
        return min(max(rounded, int(self.low) if self.is_whole else self.low), self.high)

    def random(self, rng: np.random.Generator) -> float:
        """A uniform draw, of reals in their logarithm; draws nothing where there is nothing to choose."""
        if not self.searched:
            return self.settle(self.low)
        if self.is_whole:
            return int(rng.integers(int(self.low), int(self.high) + 1))
        return self.settle(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))

    def mutate(self, value: float, rng: np.random.Generator, probability: float) -> float:
        """With ``probability``, an integer drawn anew; of a real a normal step of a tenth of the logarithm's range."""
        if not self.searched or rng.random() >= probability:
            return value
        if self.is_whole:
            return self.random(rng)
        return self.at(self.coordinate(value) + float(rng.normal(0, MUTATION_SHARE * UNITS)))

    def coordinate(self, value: float) -> float:
        """A value in units of a search's steps."""
        if self.is_whole:
            return UNIT * value
        return UNITS * math.log(value / self.low) / math.log(self.high / self.low)

    def at(self, coordinate: float) -> float:
        """The nearest allowed value of a coordinate."""
        if self.is_whole:
            return self.settle(coordinate / UNIT)
        return self.settle(self.low * (self.high / self.low) ** (coordinate / UNITS))

    def sparing(self, share: float) -> float:
        """The value at a share of the way from the least that is left out (0) to the most (1); else the default."""
        if not self.searched or not self.saves:
            return self.settle(self.default)
        ends = self.coordinate(self.low), self.coordinate(self.high)
        least, most = ends if self.saves > 0 else reversed(ends)
        return self.at(least + share * (most - least))

    def limited(self, setting: float | tuple[float, float]) -> Knob:
        """The knob fixed at a number, or with a range of its own. Raises UserError for what it cannot be."""
        low, high = setting if isinstance(setting, tuple) else (setting, setting)
        if low > high or (self.is_whole and (low % 1 or high % 1)):
            kind = "an integer" if self.is_whole else "a number"
            raise UserError(f"{self.name} must be {kind} or a range [low, high] with low <= high; got {setting}")
        return replace(self, low=low, high=high)


@dataclass(frozen=True)
class Knobs:
    """What may be chosen of one engine.

    Attributes:
        kind: makes the engine of its settings.
        numbers: those that are numbers.
        has_mask: whether it has a set of skipped steps too.
    """

    kind: type[Engine]
    numbers: tuple[Knob, ...] = ()
    has_mask: bool = False

    def limited(self, settings: Mapping[str, float | tuple[float, float]]) -> Knobs:
        """With the ranges of a table. Raises UserError for one that cannot be."""
        numbers = [knob.limited(settings[knob.name]) if knob.name in settings else knob for knob in self.numbers]
        limited = Knobs(self.kind, tuple(numbers), self.has_mask)
        for values in ({knob.name: knob.low for knob in numbers}, {knob.name: knob.high for knob in numbers}):
            limited.at(values)  # the engine knows its limits
        return limited

    def at(self, values: Mapping[str, float], skipped: tuple[int, ...] = ()) -> Engine:
        """The engine at these values, the nearest in their ranges."""
        settings: dict[str, Any] = {knob.name: knob.settle(values[knob.name]) for knob in self.numbers}
        return self.kind(**settings, **({SKIPPED: skipped} if self.has_mask else {}))

    def engine(self, values: Mapping[str, float], skipped: tuple[int, ...], steps: int) -> Engine | None:
        """The engine at these values; None where it would run every block at each of so many steps."""
        made = self.at(values, skipped)
        return None if all(made.computed(steps) or (False,)) else made

    def values(self, engine: Engine | None, steps: int) -> dict[str, float]:
        """The numbers of an engine. Raises UserError for an engine that is not of this kind or beyond a range."""
        if engine is None:
            # Of several settings that run every block: the longest warm-up, and defaults.
            values = {k.name: k.high if k.name == WARM_UP else k.settle(k.default) for k in self.numbers}
            if self.engine(values, (), steps) is not None:
                raise UserError(f"a candidate in this space must have the cache {self.kind.kind}; got none")
            return values
        if not isinstance(engine, self.kind):
            raise UserError(f"a candidate in this space must have the cache {self.kind.kind}; got {engine}")
        values = {knob.name: getattr(engine, knob.name) for knob in self.numbers}
        for knob in self.numbers:
            if knob.settle(values[knob.name]) != values[knob.name]:
                raise UserError(
                    f"{self.kind.kind}: {knob.name} must be from {knob.low:g} to {knob.high:g}; "
                    f"got {values[knob.name]:g}"
                )
        return values

    def greatest(self) -> Engine:
        """The engine with every number at its greatest: where a pipeline can have it, it can have all."""
        return self.at({knob.name: knob.high for knob in self.numbers})

    def defaults(self) -> dict[str, float]:
        """The package's, or the nearest in the ranges."""
        return {knob.name: knob.settle(knob.default) for knob in self.numbers}


# Of a cache that is told which steps it skips: at most so many of them.
MOST_SKIPPED = 0.75


def evenly_skipped(share: float, steps: int) -> tuple[int, ...]:
    """The indices of a share of the steps, ``MOST_SKIPPED`` at most, those that are run as even as can be."""
    run = 1 - min(share, MOST_SKIPPED)
    return tuple(index for index in range(1, steps) if int(index * run) == int((index - 1) * run))


# Defaults: FirstBlockCacheConfig and TaylorSeerCacheConfig of diffusers 0.42, DBCacheConfig of cache-dit 1.5, whose
# steps in a row are unlimited.
_THRESHOLD = Knob("threshold", 0.01, 1.0, 0.05, is_whole=False, saves=1)
_FRONT, _BACK = Knob("front", 1, 4, 8, saves=-1), Knob("back", 0, 2, 0, saves=-1)
KNOBS: Mapping[str, Knobs] = {
    knobs.kind.kind: knobs
    for knobs in (
        Knobs(engines.FirstBlockCache, (_THRESHOLD,)),
        Knobs(engines.MagCache, has_mask=True),
        Knobs(
            engines.TaylorSeerCache,
            (Knob("interval", 2, 6, 5, saves=1), Knob(WARM_UP, 1, 6, 3, saves=-1), Knob("order", 0, 3, 1)),
        ),
        Knobs(
            engines.CacheDiT,
            (
                _FRONT,
                _BACK,
                replace(_THRESHOLD, default=0.08),
                Knob(WARM_UP, 1, 8, 8, saves=-1),
                Knob("in_a_row", 1, 6, 6, saves=1),
            ),
        ),
        Knobs(engines.CacheDiTMask, (_FRONT, _BACK), has_mask=True),
    )
}
