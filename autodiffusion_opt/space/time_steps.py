"""The space of time steps alone: K distinct times of the model's own, the whole network at each (AutoDiffusion, 2023,
section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from optuna.distributions import BaseDistribution
from pydantic import Field, model_validator

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.base import SpaceConfig
from autodiffusion_opt.space.baselines import named_times
from autodiffusion_opt.space.cost import steps_within
from autodiffusion_opt.space.model_info import ModelInfo
from autodiffusion_opt.space.scalars import Scalars
from autodiffusion_opt.space.time_grid import TimeGrid


class TimeStepsConfig(SpaceConfig):
    """``kind = "time-steps"``: distinct times, the whole network at each.

    Attributes:
        steps: how many.
        nfe: instead of ``steps``: how many calls of the denoiser there may be, so that solvers which call it twice a
            step (Heun) are compared at equal cost.
    """

    kind: Literal["time-steps"] = "time-steps"
    steps: int | None = Field(default=None, ge=1)
    nfe: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _steps_or_nfe(self) -> TimeStepsConfig:
        if (self.steps is None) == (self.nfe is None):
            given = "steps is missing" if self.steps is None else f"got both, steps = {self.steps}, nfe = {self.nfe}"
            raise ValueError(f"a time-steps space must have steps, or nfe instead; {given}")
        return self

    def space(self, info: ModelInfo) -> TimeSteps:
        """The space for a model's numbers."""
        grid = self.time_grid(info)
        steps = self.steps if self.nfe is None else steps_within(info.layout, self.nfe)
        assert steps is not None  # _steps_or_nfe
        grid.check_count("steps", steps)
        return TimeSteps(info, steps, grid, self.scalars(info))


@dataclass(frozen=True)
class TimeSteps:
    """K distinct times, from noise to image; parameters ``t1`` (the first to run) .. ``tK``.

    Any K values decode: they are put on the grid of times, a time that is taken moves to the nearest free one (the
    lower of two), and they are sorted.
    """

    info: ModelInfo
    steps: int
    grid: TimeGrid
    scalars: Scalars = field(default_factory=Scalars)

    @property
    def fully_parametric(self) -> bool:
        """True: the times, and the numbers beside them that are searched, are the candidate."""
        return True

    @property
    def names(self) -> tuple[str, ...]:
        """t1 .. tK."""
        return tuple(f"t{i + 1}" for i in range(self.steps))

    def distributions(self) -> dict[str, BaseDistribution]:
        """A distribution for each step, and for each number beside them that is searched."""
        return {name: self.grid.distribution() for name in self.names} | self.scalars.distributions()

    def decode(self, parameters: Mapping[str, Any]) -> Candidate:
        """The times, distinct and on the grid."""
        return self._candidate([parameters[name] for name in self.names], parameters)

    def encode(self, candidate: Candidate) -> dict[str, Any]:
        """t1 is the highest time."""
        self.check(candidate)
        times = map(self.grid.parameter, candidate.times)
        return dict(zip(self.names, times, strict=True)) | self.scalars.parameters(candidate)

    def check(self, candidate: Candidate) -> None:
        """Exactly K times on the grid, nothing removed, all steps full."""
        if len(candidate.steps) != self.steps:
            raise UserError(f"a candidate in this space must have {self.steps} steps; got {len(candidate.steps)}")
        self.grid.check(candidate.times)
        if any(step.removed or step.branch is not None for step in candidate.steps):
            raise UserError("a candidate in a time-steps space must run every layer at every step")
        self.scalars.check(candidate)

    def nearest(self, candidate: Candidate) -> Candidate:
        """Its times on the grid, K times of the same spacing where it has more or fewer; every layer run."""
        return self._candidate(self.info.respaced(candidate.times, self.steps), vars(candidate))

    def baselines(self) -> dict[str, Candidate]:
        """The usual schedules of K steps, moved to this space's grid."""
        return {name: self._candidate(times, {}) for name, times in named_times(self.info, self.steps).items()}

    def random(self, rng: np.random.Generator) -> Candidate:
        """Every set of K times equally likely."""
        return self._candidate(self.grid.random(self.steps, rng), self.scalars.random(rng))

    def mutate(self, candidate: Candidate, rng: np.random.Generator, probability: float) -> Candidate:
        """Each time replaced by a uniform one with ``probability`` (AutoDiffusion, algorithm 1)."""
        times = self.grid.mutate(candidate.times, rng, probability)
        return self._candidate(times, self.scalars.mutate(candidate, rng, probability))

    def crossover(self, first: Candidate, second: Candidate, rng: np.random.Generator) -> Candidate:
        """Each position of the two sorted sequences from either parent; a repeated time moves, none is lost."""
        from_first = rng.random(self.steps) < 0.5
        times = np.where(from_first, first.times, second.times)
        return self._candidate([float(time) for time in times], self.scalars.crossover(first, second, rng))

    def coordinates(self, candidate: Candidate) -> tuple[float, ...]:
        """λ of each time, then the numbers beside the times that are searched."""
        return (*self.info.log_snr(candidate.times).tolist(), *self.scalars.coordinates(candidate))

    def moved(self, candidate: Candidate, coordinates: Sequence[float]) -> Candidate:
        """The candidate at the coordinates; the grid's nearest times."""
        times = self.info.times_of_log_snr(np.array(coordinates[: self.steps]))
        return self._candidate(times, self.scalars.at(coordinates[self.steps :]))

    def with_layer_share(self, share: float) -> TimeSteps:
        """Itself: no layer may be removed here."""
        return self

    def _candidate(self, times: Sequence[float], values: Mapping[str, Any]) -> Candidate:
        return self.scalars.candidate(map(Step, self.grid.settle(times)), values)
