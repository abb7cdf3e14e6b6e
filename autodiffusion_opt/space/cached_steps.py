"""The space of times and cached steps: K times, each with a full step or a partial one, under a budget of FLOPs.

It holds every candidate of as many whole networks (:mod:`~autodiffusion_opt.space.time_steps`), and every one of
segments (:mod:`~autodiffusion_opt.space.segments`) whose times are on its grid. BudCache (2026, arXiv 2606.13496)
searches the cache policy at a fixed compute and then the times; here both are searched together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from optuna.distributions import BaseDistribution, IntDistribution
from pydantic import Field, model_validator

from autodiffusion_opt.candidate import MOST_STEPS, Candidate, Step
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import cost
from autodiffusion_opt.space.base import SpaceConfig, Toggle
from autodiffusion_opt.space.baselines import named_times
from autodiffusion_opt.space.caching import CostBudget, offered_branches, uniform_presets
from autodiffusion_opt.space.model_info import ModelInfo
from autodiffusion_opt.space.scalars import Scalars, Values
from autodiffusion_opt.space.time_grid import TimeGrid

COUNT = "steps"
# The number of steps changes twice as often in a mutation as each step does.
COUNT_CHANGE = 2.0


class CachedStepsConfig(SpaceConfig):
    """``kind = "cached-steps"``: times, and which of the steps are partial ones, under a budget of FLOPs.

    Attributes:
        max_flops: the budget, in whole networks: 8.2 is eight full steps and two partial ones at a tenth.
        steps_min: the least number of steps.
        steps_max: the greatest, lowered to what the budget allows with one full step; absent: that.
        branches: which branches partial steps may run at; absent: those that cost at most 0.6 of a full step.
    """

    kind: Literal["cached-steps"] = "cached-steps"
    max_flops: float = Field(gt=0)
    steps_min: int = Field(default=1, ge=1)
    steps_max: int | None = Field(default=None, ge=1)
    branches: tuple[int, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _steps_in_order(self) -> CachedStepsConfig:
        if self.steps_max is not None and self.steps_max < self.steps_min:
            raise ValueError(f"steps_max must be at least steps_min, {self.steps_min}; got {self.steps_max}")
        return self

    @property
    def needs_layers(self) -> bool:
        """True: the FLOPs of the model are counted with its layers."""
        return True

    @property
    def needs_branches(self) -> bool:
        """True."""
        return True

    def space(self, info: ModelInfo) -> CachedSteps:
        """The space for a model's numbers."""
        branches, grid = offered_branches(info, self.branches), self.time_grid(info)
        grid.check_count("steps_min", self.steps_min)
        budget = CostBudget(self.max_flops)

        def cheapest(count: int) -> Candidate:
            steps = [Step(time, (), branches[0]) for time in range(count - 1)]
            return Candidate((*steps, Step(float(count))))

        if not budget.is_kept(info, cheapest(self.steps_min)):
            least = cost.networks(info, cheapest(self.steps_min))
            raise UserError(
                f"max_flops must be at least {least:.3f} whole networks, what steps_min = {self.steps_min} steps cost "
                f"with one full step; got {self.max_flops:g}"
            )
        most = self.steps_min
        while most < min(self.steps_max or MOST_STEPS, grid.points) and budget.is_kept(info, cheapest(most + 1)):
            most += 1
        return CachedSteps(info, grid, self.steps_min, most, branches, budget, self.scalars(info))


@dataclass(frozen=True)
class CachedSteps:
    """Parameters: ``steps``, the times ``t1`` .. ``tM`` and ``p1`` .. ``pM``: 0 for a full step, else which branch.

    Any values decode: the first ``steps`` pairs count, the times are put on the grid and made distinct, and the first
    step to run is a full one. While the budget is exceeded, the dearest partial step becomes the next cheaper one; then
    of the full steps but the first, the one nearest in λ to the step before it becomes a partial one.

    Attributes:
        steps_min: the least number of steps.
        steps_max: the greatest; a full step and so many partial ones are within the budget.
        branches: that partial steps may run at, the cheapest first.
    """

    info: ModelInfo
    grid: TimeGrid
    steps_min: int
    steps_max: int
    branches: tuple[int, ...]
    budget: CostBudget
    scalars: Scalars = field(default_factory=Scalars)

    @property
    def fully_parametric(self) -> bool:
        """True."""
        return True

    def distributions(self) -> dict[str, BaseDistribution]:
        """2 M + 1 parameters, and one for each number beside the steps that is searched."""
        box: dict[str, BaseDistribution] = {COUNT: IntDistribution(self.steps_min, self.steps_max)}
        box |= {name: self.grid.distribution() for name in self._names("t")}
        box |= {name: IntDistribution(0, len(self.branches)) for name in self._names("p")}
        return box | self.scalars.distributions()

    def decode(self, parameters: Mapping[str, Any]) -> Candidate:
        """Times made distinct, the budget kept."""
        count = int(parameters[COUNT])
        times = [float(parameters[name]) for name in self._names("t")[:count]]
        kinds = [int(parameters[name]) for name in self._names("p")[:count]]
        return self._made(zip(times, map(self._branch, kinds), strict=True), parameters)

    def encode(self, candidate: Candidate) -> dict[str, Any]:
        """t1 is the highest time; what decode ignores is the lowest time, and a full step."""
        self.check(candidate)
        missing = self.steps_max - len(candidate.steps)
        times = [*candidate.times, *[self.grid.time(0)] * missing]
        kinds = [0 if branch is None else 1 + self.branches.index(branch) for branch in candidate.branches]
        point: dict[str, Any] = {COUNT: len(candidate.steps)}
        point |= zip(self._names("t"), map(self.grid.parameter, times), strict=True)
        point |= zip(self._names("p"), [*kinds, *[0] * missing], strict=True)
        return point | self.scalars.parameters(candidate)

    def check(self, candidate: Candidate) -> None:
        """Number of steps, grid, branches, every layer run, budget, the numbers beside them."""
        if not self.steps_min <= len(candidate.steps) <= self.steps_max:
            allowed = f"{self.steps_min} to {self.steps_max}"
            raise UserError(f"a candidate in this space must have {allowed} steps; got {len(candidate.steps)}")
        self.grid.check(candidate.times)
        wrong = [str(step) for step in candidate.steps if step.removed or step.branch not in (None, *self.branches)]
        if wrong:
            raise UserError(
                f"a step in this space must be a full one, or a partial one at one of the branches "
                f"{list(self.branches)}, and remove no layers; got {', '.join(wrong)}"
            )
        self.budget.check(self.info, candidate)
        self.scalars.check(candidate)

    def nearest(self, candidate: Candidate) -> Candidate:
        """Its times on the grid, its branches where the space has them; respaced where it has too many or few steps."""
        allowed = (None, *self.branches)
        kinds = [step.branch if step.branch in allowed else self.branches[0] for step in candidate.steps]
        count = min(max(len(kinds), self.steps_min), self.steps_max)
        places = np.linspace(0, len(kinds) - 1, count).round().astype(int)
        times = self.info.respaced(candidate.times, count)
        return self._made(zip(times, (kinds[place] for place in places), strict=True), vars(candidate))

    def baselines(self) -> dict[str, Candidate]:
        """The usual schedules of as many full steps as the budget allows."""
        full = [count for count in range(self.steps_min, self.steps_max + 1) if self._fits(count)]
        count = max(full, default=self.steps_min)
        schedules = named_times(self.info, count)
        return {name: self._made(((time, None) for time in times), {}) for name, times in schedules.items()}

    def presets(self) -> dict[str, Candidate]:
        """Uniform schedules, with and without a cache."""
        return uniform_presets(self.info, self.scalars, self.budget, self.branches[0], self.info.train_steps)

    def random(self, rng: np.random.Generator) -> Candidate:
        """Number of steps and set of times uniform; up to half of the steps full ones by chance."""
        count = int(rng.integers(self.steps_min, self.steps_max + 1))
        share = rng.random()
        kinds = [self._random_branch(rng) if rng.random() < share else None for _ in range(count)]
        return self._made(zip(self.grid.random(count, rng), kinds, strict=True), self.scalars.random(rng))

    def mutate(self, candidate: Candidate, rng: np.random.Generator, probability: float) -> Candidate:
        """Each time, and each step's kind, drawn anew with ``probability``; a step more or fewer, with twice."""
        times = self.grid.mutate(candidate.times, rng, probability)
        kinds = [self._random_kind(rng) if rng.random() < probability else branch for branch in candidate.branches]
        drafts = list(zip(times, kinds, strict=True))
        if rng.random() < COUNT_CHANGE * probability:
            if rng.random() < 0.5 and len(drafts) < self.steps_max:
                drafts.append((self.grid.random(1, rng)[0], self._random_kind(rng)))
            elif len(drafts) > self.steps_min:
                drafts.pop(int(rng.integers(len(drafts))))
        return self._made(drafts, self.scalars.mutate(candidate, rng, probability))

    def crossover(self, first: Candidate, second: Candidate, rng: np.random.Generator) -> Candidate:
        """As many steps as either parent has, each from either: the one at the same share of its sequence."""
        parents = first.steps, second.steps
        count = len(parents[int(rng.integers(2))])
        steps = [
            parents[side][round(index * (len(parents[side]) - 1) / max(count - 1, 1))]
            for index, side in enumerate(rng.integers(2, size=count).tolist())
        ]
        drafts = ((step.time, step.branch) for step in steps)
        return self._made(drafts, self.scalars.crossover(first, second, rng))

    def coordinates(self, candidate: Candidate) -> tuple[float, ...]:
        """λ of each step's time, then the numbers beside the steps that are searched."""
        return (*self.info.log_snr(candidate.times).tolist(), *self.scalars.coordinates(candidate))

    def moved(self, candidate: Candidate, coordinates: Sequence[float]) -> Candidate:
        """Each step, full or partial, at its new time."""
        count = len(candidate.steps)
        times = self.info.times_of_log_snr(np.array(coordinates[:count]))
        return self._made(zip(times, candidate.branches, strict=True), self.scalars.at(coordinates[count:]))

    def toggles(self, candidate: Candidate) -> list[Toggle]:
        """None: no layer may be removed here."""
        return []

    def toggled(self, candidate: Candidate, toggles: Sequence[Toggle]) -> Candidate | None:
        """The candidate itself for no toggles, else None."""
        return None if toggles else candidate

    def restructured(self, candidate: Candidate) -> dict[str, Candidate]:
        """A partial step in the middle of a gap in λ, the widest first; another branch of a partial step; a full step
        in a gap; a step left out; a step made partial, or full. Those that the budget allows."""
        steps = candidate.steps
        middles = self._middles(candidate)
        made: dict[str, Iterable[Step]] = {}
        for time in middles:
            made[f"a partial step at {time:.0f}"] = (*steps, Step(time, (), self.branches[0]))
        for index, step in enumerate(steps):
            if step.branch is not None:
                place = self.branches.index(step.branch)
                for near in (*self.branches[place + 1 : place + 2], *self.branches[max(place - 1, 0) : place]):
                    made[f"branch {near} at {step.time:g}"] = _with(steps, index, replace(step, branch=near))
        for time in middles:
            made[f"a full step at {time:.0f}"] = (*steps, Step(time))
        for index, step in enumerate(steps):
            made[f"no step at {step.time:g}"] = (*steps[:index], *steps[index + 1 :])
        for index, step in enumerate(steps[1:], start=1):
            branch = self.branches[0] if step.branch is None else None
            what = "full" if branch is None else "partial"
            made[f"a {what} step at {step.time:g}"] = _with(steps, index, replace(step, branch=branch))
        kept = {}
        for name, chosen in made.items():
            listed = sorted(chosen, key=lambda step: -step.time)
            if not self.steps_min <= len(listed) <= self.steps_max:
                continue
            listed[0] = replace(listed[0], branch=None)
            times = self.grid.place([step.time for step in listed])
            listed = [replace(step, time=time) for step, time in zip(listed, times, strict=True)]
            neighbour = self.scalars.candidate(listed, vars(candidate))
            if neighbour.steps[0].branch is None and self.budget.is_kept(self.info, neighbour):
                kept[name] = neighbour
        return {name: neighbour for name, neighbour in kept.items() if neighbour != candidate}

    def with_layer_share(self, share: float) -> CachedSteps:
        """Itself: no layer may be removed here."""
        return self

    def _names(self, letter: str) -> list[str]:
        return [f"{letter}{index + 1}" for index in range(self.steps_max)]

    def _branch(self, kind: int) -> int | None:
        """Of a parameter's value."""
        return None if kind == 0 else self.branches[kind - 1]

    def _random_branch(self, rng: np.random.Generator) -> int:
        return self.branches[int(rng.integers(len(self.branches)))]

    def _random_kind(self, rng: np.random.Generator) -> int | None:
        return None if rng.random() < 0.5 else self._random_branch(rng)

    def _fits(self, count: int) -> bool:
        return self.budget.is_kept(self.info, Candidate.from_time_steps(range(count)))

    def _middles(self, candidate: Candidate) -> tuple[float, ...]:
        """Times in the middles of the gaps in λ, the widest first; before the first step and after the last there is a
        gap as wide as the next."""
        levels = self.info.log_snr(candidate.times)
        widths = np.diff(levels) if len(levels) > 1 else np.ones(1)
        ends = np.array([levels[0] - widths[0], *levels, levels[-1] + widths[-1]])
        order = np.argsort(-np.diff(ends), kind="stable")
        return self.info.times_of_log_snr(((ends[:-1] + ends[1:]) / 2)[order])

    def _made(self, drafts: Iterable[tuple[float, int | None]], values: Values | Mapping[str, Any]) -> Candidate:
        """A candidate in this space from times and branches: times, the first step and the budget are repaired."""
        listed = list(drafts)
        times = self.grid.place([time for time, _ in listed])
        pairs = sorted(zip(times, (branch for _, branch in listed), strict=True), key=lambda pair: -pair[0])
        steps = [Step(time, (), branch) for time, branch in pairs]
        steps[0] = replace(steps[0], branch=None)
        while True:
            candidate = self.scalars.candidate(steps, values)
            if self.budget.is_kept(self.info, candidate):
                return candidate
            dearest = max((step.branch for step in steps if step.branch is not None), default=self.branches[0])
            if dearest > self.branches[0]:
                index = max(index for index, step in enumerate(steps) if step.branch == dearest)
                branch = self.branches[self.branches.index(dearest) - 1]
            else:
                gaps = np.diff(self.info.log_snr([step.time for step in steps]))
                index = min((i for i in range(1, len(steps)) if steps[i].branch is None), key=lambda i: gaps[i - 1])
                branch = self.branches[0]
            steps[index] = replace(steps[index], branch=branch)


def _with(steps: Sequence[Step], index: int, step: Step) -> tuple[Step, ...]:
    return (*steps[:index], step, *steps[index + 1 :])
