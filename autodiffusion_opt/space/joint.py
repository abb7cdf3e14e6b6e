"""The joint space: times, and the layers run at each, under a budget of layer runs (AutoDiffusion, 2023, section 3.3).

A candidate is of the space if its times are distinct and on the grid, each step removes at most ``most`` of the
removable layers, and ``sum(L - |removed_i|) <= n_max`` over its steps. Their number is not fixed: fewer layers a step
buy more steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.baselines import named_times
from autodiffusion_opt.space.time_grid import TimeGrid
from autodiffusion_opt.space.model_info import ModelInfo
from autodiffusion_opt.space.guidance import NAME as GUIDANCE
from autodiffusion_opt.space.guidance import Guidance
from autodiffusion_opt.space.layer_choice import Layers, LayerChoice
from autodiffusion_opt.space.time_steps import check_times

# A step in the making: its time, not settled yet, and what it removes.
Draft = tuple[float, Layers]
STEPS = "steps"
# The number of steps changes so much more often than one step does: more steps are what removed layers buy.
STEP_CHANGE = 2.0


@dataclass(frozen=True)
class Joint:
    """Times and layers together. Parameters: ``steps``, the times ``t1`` .. ``tM``, the numbers of layers removed
    ``r1`` .. ``rM``; M is ``steps_max``.

    Any values decode. The first ``steps`` pairs (t, r) count, the rest is ignored. The times are put on the grid and
    made distinct as in :class:`~autodiffusion_opt.space.time_grid.TimeGrid`; r goes along with its t. While the budget is
    exceeded, the step that removes fewest layers (of several the noisiest) removes one more. Which layers, says
    :attr:`sets`.

    Attributes:
        steps_min: the least number of steps.
        steps_max: the greatest; ``steps_max * (L - most) <= n_max``, so every number between can be afforded.
        n_max: the budget: layer runs over all steps.
        most: how many layers one step may remove.
        sets: which they may be.
    """

    info: ModelInfo
    grid: TimeGrid
    steps_min: int
    steps_max: int
    n_max: int
    most: int
    sets: LayerChoice
    guidance: Guidance = field(default_factory=Guidance)

    @property
    def fully_parametric(self) -> bool:
        """Whether the numbers of layers say which layers."""
        return self.sets.counted

    def distributions(self) -> dict[str, BaseDistribution]:
        """2 M + 1 parameters, and the guidance scale where it is searched."""
        found: dict[str, BaseDistribution] = {STEPS: IntDistribution(self.steps_min, self.steps_max)}
        found |= {name: self.grid.distribution() for name in _names("t", self.steps_max)}
        found |= {name: IntDistribution(0, self.most) for name in _names("r", self.steps_max)}
        return found | self.guidance.distributions()

    def decode(self, parameters: Mapping[str, Any]) -> Candidate:
        """Settled times, the budget kept. Of ``layers = "any"``, the layers are evenly spread ones."""
        count = int(parameters[STEPS])
        times = [float(parameters[name]) for name in _names("t", count)]
        removed = [int(parameters[name]) for name in _names("r", count)]
        return self._plain(times, removed, parameters.get(GUIDANCE))

    def encode(self, candidate: Candidate) -> dict[str, Any]:
        """t1 is the highest time; what decode ignores is the lowest time, and 0."""
        self.check(candidate)
        missing = self.steps_max - len(candidate.steps)
        times = [*candidate.times, *[self.grid.time(0)] * missing]
        counts = [*(len(removed) for removed in candidate.removed), *[0] * missing]
        found: dict[str, Any] = {STEPS: len(candidate.steps)}
        found |= zip(_names("t", self.steps_max), map(self.grid.parameter, times), strict=True)
        found |= zip(_names("r", self.steps_max), counts, strict=True)
        return found | ({GUIDANCE: candidate.guidance_scale} if self.guidance.searched else {})

    def check(self, candidate: Candidate) -> None:
        """Number of steps, grid, layers of each step, budget, guidance scale."""
        if not self.steps_min <= len(candidate.steps) <= self.steps_max:
            allowed = f"{self.steps_min} to {self.steps_max}"
            raise UserError(f"a candidate of this space must have {allowed} steps; got {len(candidate.steps)}")
        check_times(self.grid, candidate)
        for step in candidate.steps:
            self._check_step(step)
        runs = sum(self.info.layers - len(removed) for removed in candidate.removed)
        if runs > self.n_max:
            raise UserError(f"a candidate must run at most n_max = {self.n_max} layers over all steps; got {runs}")
        self.guidance.check(candidate.guidance_scale)

    def _check_step(self, step: Step) -> None:
        if step.compute != "full":
            raise UserError(f"a step of a joint space must be computed in full; got {step.compute!r} at {step.time:g}")
        if len(step.removed) > self.most:
            raise UserError(
                f"a step must remove at most {self.most} of {self.info.layers} layers; "
                f"got {len(step.removed)} at time {step.time:g}"
            )
        self.sets.check(step.time, step.removed)

    def baselines(self) -> dict[str, Candidate]:
        """The usual schedules of as many steps as the budget allows with the whole network at each.

        Where it does not allow ``steps_min`` of these, ``steps_min`` steps that remove as little as they must. They
        are the same in every with_layer_share space, and valid there.
        """
        steps = min(max(self.n_max // self.info.layers, self.steps_min), self.steps_max)
        named = named_times(self.info, steps)
        return {name: self._plain(times, [0] * steps, None) for name, times in named.items()}

    def random(self, rng: np.random.Generator) -> Candidate:
        """Number of steps and set of times uniform; up to r layers removed at each step, r uniform in 0 .. ``most``.

        One r for all steps, so that little removal and much removal are both tried.
        """
        count = int(rng.integers(self.steps_min, self.steps_max + 1))
        up_to = int(rng.integers(self.most + 1))
        counts = self._afforded(rng.integers(up_to + 1, size=count), rng)
        times = self.grid.random(count, rng)
        steps = [
            Step(time, self.sets.resized(time, (), int(number), rng))
            for time, number in zip(times, counts, strict=True)
        ]
        return Candidate(tuple(steps), self.guidance.random(rng))

    def mutate(self, candidate: Candidate, rng: np.random.Generator, probability: float) -> Candidate:
        """Each step's time, and each step's layers, changed with ``probability``; one more or fewer with twice it."""
        drafts = [self._mutated(step, rng, probability) for step in candidate.steps]
        if rng.random() < STEP_CHANGE * probability:
            drafts = self._inserted(drafts, rng) if rng.random() < 0.5 else self._deleted(drafts, rng)
        return self._child(drafts, self.guidance.mutate(candidate.guidance_scale, rng, probability), rng)

    def _mutated(self, step: Step, rng: np.random.Generator, probability: float) -> Draft:
        time = self.grid.mutate([step.time], rng, probability)[0]
        if rng.random() < probability:
            return time, self.sets.changed(time, step.removed, self.most, rng)
        return time, step.removed

    def _inserted(self, drafts: list[Draft], rng: np.random.Generator) -> list[Draft]:
        """A step at a uniform time that removes what the step nearest to it removes."""
        if len(drafts) >= self.steps_max:
            return drafts
        time = self.grid.time(int(rng.integers(self.grid.points)))
        nearest = min(drafts, key=lambda draft: abs(draft[0] - time))
        return [*drafts, (time, nearest[1])]

    def _deleted(self, drafts: list[Draft], rng: np.random.Generator) -> list[Draft]:
        """One step fewer; the others get back a random part of the layer runs that become free."""
        if len(drafts) <= self.steps_min:
            return drafts
        gone = int(rng.integers(len(drafts)))
        rest = drafts[:gone] + drafts[gone + 1 :]
        counts = np.array([len(removed) for _, removed in rest])
        spare = min(self.n_max - len(rest) * self.info.layers + counts.sum(), counts.sum())
        if spare > 0:
            counts -= rng.multivariate_hypergeometric(counts, int(rng.integers(spare + 1)))
        return [
            (time, self.sets.resized(time, removed, int(count), rng))
            for (time, removed), count in zip(rest, counts, strict=True)
        ]

    def crossover(self, one: Candidate, other: Candidate, rng: np.random.Generator) -> Candidate:
        """As many steps as one of the parents has, each position of the sorted steps from either.

        Where a parent has another number of steps, its own are spread evenly over the positions; a position at which
        it has none comes from the other parent. A step keeps its layers; a repeated time is repaired, never dropped.
        """
        length = len((one if rng.random() < 0.5 else other).steps)
        length = min(max(length, self.steps_min), self.steps_max)
        drafts = []
        for mine, theirs in zip(_spread(one, length), _spread(other, length), strict=True):
            chosen = (mine, theirs) if rng.random() < 0.5 else (theirs, mine)
            drafts += [(step.time, step.removed) for step in chosen if step is not None][:1]
        return self._child(drafts, self.guidance.crossover(one.guidance_scale, other.guidance_scale, rng), rng)

    def with_layer_share(self, share: float) -> Joint:
        """At most ``share`` of :attr:`most` layers removed at a step; but as many as ``steps_min`` steps must remove.

        At 0 that is the whole network at every step, wherever the budget allows ``steps_min`` such steps.
        """
        least = max(self.info.layers - self.n_max // self.steps_min, 0)
        most = max(int(share * self.most), least)
        return replace(self, most=most, steps_max=affordable(self.info.layers, self.n_max, most, self.steps_max))

    def _plain(self, times: Sequence[float], counts: Sequence[int], scale: float | None) -> Candidate:
        """A candidate made without chance."""
        pairs = sorted(zip(self.grid.place(times), counts, strict=True), reverse=True)
        levelled = self._levelled([count for _, count in pairs])
        steps = [Step(time, self.sets.chosen(time, count)) for (time, _), count in zip(pairs, levelled, strict=True)]
        return Candidate(tuple(steps), self.guidance.settle(scale))

    def _levelled(self, counts: list[int]) -> list[int]:
        """Layers removed where fewest are, the noisiest step first, until the budget holds."""
        counts = list(counts)
        for _ in range(self._over(counts)):
            counts[counts.index(min(counts))] += 1
        return counts

    def _child(self, drafts: Sequence[Draft], scale: float | None, rng: np.random.Generator) -> Candidate:
        """A candidate of this space from steps of any: the number of steps, times, fraction and budget repaired."""
        drafts = self._numbered(drafts, rng)
        times = self.grid.place([time for time, _ in drafts])
        allowed = set(self.sets.removable)
        removed = [allowed.intersection(layers) for _, layers in drafts]
        counts = self._afforded(np.array([min(len(layers), self.most) for layers in removed]), rng)
        steps = [
            Step(time, self.sets.resized(time, layers, int(count), rng))
            for time, layers, count in zip(times, removed, counts, strict=True)
        ]
        return Candidate(tuple(steps), self.guidance.settle(scale))

    def _numbered(self, drafts: Sequence[Draft], rng: np.random.Generator) -> list[Draft]:
        """``steps_min`` .. ``steps_max`` of them: some dropped, or some at uniform times added."""
        missing = self.steps_min - len(drafts)
        if missing > 0:
            points = rng.integers(self.grid.points, size=missing)
            return [*drafts, *((self.grid.time(int(point)), ()) for point in points)]
        if len(drafts) <= self.steps_max:
            return list(drafts)
        return [drafts[int(i)] for i in sorted(rng.choice(len(drafts), self.steps_max, replace=False))]

    def _afforded(self, counts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Layers removed at random, each that may still be removed equally likely, until the budget holds."""
        over = self._over(counts)
        return counts + rng.multivariate_hypergeometric(self.most - counts, over) if over else counts

    def _over(self, counts: Sequence[int] | NDArray[np.int64]) -> int:
        """By how many layer runs the budget is exceeded."""
        return max(len(counts) * self.info.layers - int(sum(counts)) - self.n_max, 0)


def affordable(layers: int, n_max: int, most: int, steps_max: int) -> int:
    """``steps_max``, lowered to the number of steps that the budget allows if each removes all that it may."""
    least = layers - most
    return steps_max if least <= 0 else min(steps_max, n_max // least)


def _spread(candidate: Candidate, length: int) -> list[Step | None]:
    """The steps on ``length`` positions, ends on ends: some skipped where there are more, gaps where fewer."""
    steps = candidate.steps
    if len(steps) >= length:
        return [steps[i] for i in _even(length, len(steps))]
    found: list[Step | None] = [None] * length
    for position, step in zip(_even(len(steps), length), steps, strict=True):
        found[position] = step
    return found


def _even(count: int, of: int) -> list[int]:
    """``count`` different, evenly spread ones of 0 .. ``of`` - 1."""
    return [round(i * (of - 1) / (count - 1)) for i in range(count)] if count > 1 else [(of - 1) // 2]


def _names(letter: str, count: int) -> list[str]:
    return [f"{letter}{i + 1}" for i in range(count)]
