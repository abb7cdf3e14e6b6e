"""The space of time steps alone: K distinct times of the model's own, the whole network at each (AutoDiffusion, 2023,
section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.baselines import named_times
from autodiffusion_opt.space.time_grid import TimeGrid
from autodiffusion_opt.space.model_info import ModelInfo
from autodiffusion_opt.space.guidance import NAME as GUIDANCE
from autodiffusion_opt.space.guidance import Guidance


@dataclass(frozen=True)
class TimeSteps:
    """K distinct times, from noise to image; parameters ``t1`` (the first to run) .. ``tK``.

    Any K values decode: they are put on the grid of times, a time that is taken moves to the nearest free one (the
    lower of two), and they are sorted.
    """

    info: ModelInfo
    steps: int
    grid: TimeGrid
    guidance: Guidance = field(default_factory=Guidance)

    @property
    def fully_parametric(self) -> bool:
        """True: the times are the candidate."""
        return True

    @property
    def names(self) -> tuple[str, ...]:
        """t1 .. tK."""
        return tuple(f"t{i + 1}" for i in range(self.steps))

    def distributions(self) -> dict[str, BaseDistribution]:
        """One distribution a step, and the guidance scale's where it is searched."""
        return {name: self.grid.distribution() for name in self.names} | self.guidance.distributions()

    def decode(self, parameters: Mapping[str, Any]) -> Candidate:
        """The settled times."""
        return self._candidate([parameters[name] for name in self.names], parameters.get(GUIDANCE))

    def encode(self, candidate: Candidate) -> dict[str, Any]:
        """t1 is the highest time."""
        self.check(candidate)
        found: dict[str, Any] = dict(
            zip(self.names, (self.grid.parameter(time) for time in candidate.times), strict=True)
        )
        return found | ({GUIDANCE: candidate.guidance_scale} if self.guidance.searched else {})

    def check(self, candidate: Candidate) -> None:
        """Exactly K times on the grid, nothing removed, all steps full."""
        if len(candidate.steps) != self.steps:
            raise UserError(f"a candidate of this space must have {self.steps} steps; got {len(candidate.steps)}")
        check_times(self.grid, candidate)
        if any(step.removed or step.compute != "full" for step in candidate.steps):
            raise UserError("a candidate of a time-steps space must run every layer at every step")
        self.guidance.check(candidate.guidance_scale)

    def baselines(self) -> dict[str, Candidate]:
        """The usual schedules of K steps, settled on this space's grid."""
        return {name: self._candidate(times, None) for name, times in named_times(self.info, self.steps).items()}

    def random(self, rng: np.random.Generator) -> Candidate:
        """Every set of K times equally likely."""
        return self._candidate(self.grid.random(self.steps, rng), self.guidance.random(rng))

    def mutate(self, candidate: Candidate, rng: np.random.Generator, probability: float) -> Candidate:
        """Each time replaced by a uniform one with ``probability`` (AutoDiffusion, algorithm 1)."""
        times = self.grid.mutate(candidate.times, rng, probability)
        return self._candidate(times, self.guidance.mutate(candidate.guidance_scale, rng, probability))

    def crossover(self, one: Candidate, other: Candidate, rng: np.random.Generator) -> Candidate:
        """Each position of the two sorted sequences from one parent; a repeated time is repaired, never dropped."""
        from_one = rng.random(self.steps) < 0.5
        times = np.where(from_one, one.times, other.times)
        scale = self.guidance.crossover(one.guidance_scale, other.guidance_scale, rng)
        return self._candidate([float(time) for time in times], scale)

    def with_layer_share(self, share: float) -> TimeSteps:
        """Itself: no layer may be removed here."""
        return self

    def _candidate(self, times: Any, scale: float | None) -> Candidate:
        return Candidate.from_time_steps(self.grid.settle(times), guidance_scale=self.guidance.settle(scale))


def check_times(grid: TimeGrid, candidate: Candidate) -> None:
    """Raises UserError for times that are not on the grid."""
    wrong = [time for time in candidate.times if grid.time(grid.point(time)) != time]
    if wrong:
        kind = "integers" if grid.resolution == 1 else f"multiples of {grid.resolution:g}"
        listed = ", ".join(f"{time:g}" for time in wrong)
        raise UserError(f"times must be {kind} from {grid.low:g} to {grid.high:g}; got {listed}")
