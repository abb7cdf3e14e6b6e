"""The numbers of a candidate beside its steps, the guidance scale and the end time: each absent, fixed, or searched
along a range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.errors import UserError

GUIDANCE_SCALE = "guidance_scale"
END_TIME = "end_time"
# What a table may say of a number: nothing, a value, a range.
Setting = float | tuple[float, float] | None
Values = Mapping[str, float | None]
# Standard deviation of a mutation, as a share of the range.
MUTATION_SHARE = 0.1
# Units of a coordinate in a range: a step of 0.4 in a search is a tenth of it.
UNITS = 4.0
# How far below the last step's time the end lies at least.
LEAST_GAP = 0.01


@dataclass(frozen=True)
class Scalar:
    """Values from ``low`` to ``high``; equal: fixed; both None: absent.

    Attributes:
        name: of the candidate's attribute, and of the parameter.
        decimals: of the values between.
    """

    name: str
    low: float | None = None
    high: float | None = None
    decimals: int = 3

    @property
    def searched(self) -> bool:
        """Whether there is anything to choose."""
        return self.low != self.high

    def distributions(self) -> dict[str, BaseDistribution]:
        """A parameter where the value is searched, else none."""
        if self.low is None or self.high is None or not self.searched:
            return {}
        return {self.name: FloatDistribution(self.low, self.high)}

    def settle(self, value: float | None) -> float | None:
        """The nearest allowed value; the middle of the range for None."""
        if self.low is None or self.high is None:
            return None
        middle = (self.low + self.high) / 2
        return min(max(round(middle if value is None else value, self.decimals), self.low), self.high)

    def random(self, rng: np.random.Generator) -> float | None:
        """A uniform draw; draws nothing from ``rng`` where there is nothing to choose."""
        if self.low is None or self.high is None or not self.searched:
            return self.low
        return self.settle(float(rng.uniform(self.low, self.high)))

    def mutate(self, value: float | None, rng: np.random.Generator, probability: float) -> float | None:
        """A normal step of a tenth of the range, with ``probability``."""
        if self.low is None or self.high is None or not self.searched or value is None:
            return self.settle(value)
        if rng.random() >= probability:
            return value
        return self.settle(value + float(rng.normal(0, MUTATION_SHARE * (self.high - self.low))))

    def crossover(self, first: float | None, second: float | None, rng: np.random.Generator) -> float | None:
        """From either of two parents, with equal chance."""
        if not self.searched:
            return self.settle(first)
        return self.settle(first if rng.random() < 0.5 else second)

    def coordinate(self, value: float) -> float:
        """A value of a searched range in units, :data:`UNITS` of which are the range, from its low end."""
        low, high = self.ends
        return UNITS * (value - low) / (high - low)

    def at(self, coordinate: float) -> float:
        """The value of a coordinate, which may lie outside the range."""
        low, high = self.ends
        return low + coordinate / UNITS * (high - low)

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of the range. Raises ValueError where there is none."""
        if self.low is None or self.high is None:
            raise ValueError(f"{self.name} has no range")
        return self.low, self.high

    def check(self, value: float | None) -> None:
        """Raises UserError for a value that is not allowed."""
        if self.settle(value) != value:
            wanted = "absent" if self.low is None else f"from {self.low:g} to {self.high:g}"
            raise UserError(f"{self.name} must be {wanted}, with at most {self.decimals} decimals; got {value}")


@dataclass(frozen=True)
class Scalars:
    """Both numbers of a space. Values go by name; :meth:`candidate` repairs what does not fit."""

    guidance_scale: Scalar = field(default_factory=lambda: Scalar(GUIDANCE_SCALE))
    end_time: Scalar = field(default_factory=lambda: Scalar(END_TIME, decimals=2))

    @classmethod
    def from_settings(cls, guidance_scale: Setting = None, end_time: Setting = None) -> Scalars:
        """From what a table says of each."""
        return cls(Scalar(GUIDANCE_SCALE, *_range(guidance_scale)), Scalar(END_TIME, *_range(end_time), decimals=2))

    @property
    def all(self) -> tuple[Scalar, Scalar]:
        """Both, in the order in which they draw from a random generator."""
        return self.guidance_scale, self.end_time

    def distributions(self) -> dict[str, BaseDistribution]:
        """A parameter for each that is searched."""
        return self.guidance_scale.distributions() | self.end_time.distributions()

    def parameters(self, candidate: Candidate) -> dict[str, float | None]:
        """A candidate's values of :meth:`distributions`."""
        return {scalar.name: getattr(candidate, scalar.name) for scalar in self.all if scalar.searched}

    def random(self, rng: np.random.Generator) -> Values:
        """Uniform draws."""
        return {scalar.name: scalar.random(rng) for scalar in self.all}

    def mutate(self, candidate: Candidate, rng: np.random.Generator, probability: float) -> Values:
        """Each changed with ``probability``."""
        return {scalar.name: scalar.mutate(getattr(candidate, scalar.name), rng, probability) for scalar in self.all}

    def crossover(self, first: Candidate, second: Candidate, rng: np.random.Generator) -> Values:
        """Each from either of two parents."""
        return {
            scalar.name: scalar.crossover(getattr(first, scalar.name), getattr(second, scalar.name), rng)
            for scalar in self.all
        }

    def coordinates(self, candidate: Candidate) -> tuple[float, ...]:
        """Of those that are searched."""
        return tuple(scalar.coordinate(getattr(candidate, scalar.name)) for scalar in self.all if scalar.searched)

    def at(self, coordinates: Sequence[float]) -> Values:
        """The values of :meth:`coordinates`; what is fixed is left to :meth:`candidate`."""
        searched = (scalar for scalar in self.all if scalar.searched)
        return {scalar.name: scalar.at(value) for scalar, value in zip(searched, coordinates, strict=True)}

    def check(self, candidate: Candidate) -> None:
        """Raises UserError for a value that is not allowed, and for an engine's cache, which no space searches."""
        if candidate.engine is not None:
            raise UserError(f"a candidate in this space must have no engine's cache; got {candidate.engine}")
        for scalar in self.all:
            scalar.check(getattr(candidate, scalar.name))

    def candidate(self, steps: Iterable[Step], values: Mapping[str, Any]) -> Candidate:
        """The candidate of steps and values, these brought into their ranges, and the end below the last step."""
        listed = tuple(steps)
        end = self.end_time.settle(values.get(END_TIME))
        if end is not None and self.end_time.low is not None:
            below = round(min(step.time for step in listed) - LEAST_GAP, self.end_time.decimals)
            end = max(min(end, below), self.end_time.low)
        return Candidate(listed, self.guidance_scale.settle(values.get(GUIDANCE_SCALE)), end)


def _range(setting: Setting) -> tuple[float | None, float | None]:
    return (float(setting[0]), float(setting[1])) if isinstance(setting, tuple) else (setting, setting)
