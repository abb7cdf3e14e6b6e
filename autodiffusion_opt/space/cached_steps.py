"""The space of times and cached steps: K times, each with a full step or a partial one, under a budget of FLOPs.

It holds every candidate of as many whole networks (:mod:`~autodiffusion_opt.space.time_steps`), and every one of
segments (:mod:`~autodiffusion_opt.space.segments`) whose times are on its grid; with layers, every one of as many FLOPs
of the joint space (:mod:`~autodiffusion_opt.space.joint`). BudCache (2026, arXiv 2606.13496) searches the cache policy
at a fixed compute and then the times; here both are searched together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, IntDistribution

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.base import Toggle
from autodiffusion_opt.space.baselines import named_times
from autodiffusion_opt.space.caching import CostBudget, uniform_presets
from autodiffusion_opt.space.layer_choice import AnyLayers, LayerChoice, Layers
from autodiffusion_opt.space.layer_toggles import layer_toggles, with_toggles, without_a_layer
from autodiffusion_opt.space.model_info import ModelInfo
from autodiffusion_opt.space.scalars import Scalars, Values
from autodiffusion_opt.space.time_grid import TimeGrid

COUNT = "steps"
# The number of steps changes twice as often in a mutation as each step does.
COUNT_CHANGE = 2.0


@dataclass(frozen=True)
class CachedSteps:
    """Parameters: ``steps``, the times ``t1`` .. ``tM``, ``p1`` .. ``pM``: 0 for a full step, else which branch; where
    layers may be removed ``r1`` .. ``rM``: how many a full step removes.

    Any values decode: the first ``steps`` of each count, the times are put on the grid and made distinct, and the first
    step to run is a full one. A partial step runs all layers of its branch, and its r is ignored. While the budget is
    exceeded, the dearest partial step becomes the next cheaper one; then of the full steps but the first, the one
    nearest in λ to the step before it becomes a partial one.

    Attributes:
        steps_min: the least number of steps.
        steps_max: the greatest; a full step and so many partial ones are within the budget.
        branches: that partial steps may run at, the cheapest first.
        layer_choice: which layers a full step may remove.
        max_removed: how many; 0: every full step is the whole network.
    """

    info: ModelInfo
    grid: TimeGrid
    steps_min: int
    steps_max: int
    branches: tuple[int, ...]
    budget: CostBudget
    scalars: Scalars = field(default_factory=Scalars)
    layer_choice: LayerChoice = field(default_factory=lambda: AnyLayers(()))
    max_removed: int = 0

    @property
    def fully_parametric(self) -> bool:
        """Whether the numbers of layers say which layers, or none may be removed."""
        return self.max_removed == 0 or self.layer_choice.fully_parametric

    def distributions(self) -> dict[str, BaseDistribution]:
        """2 M + 1 parameters, M more with layers, and one for each number beside the steps that is searched."""
        box: dict[str, BaseDistribution] = {COUNT: IntDistribution(self.steps_min, self.steps_max)}
        box |= {name: self.grid.distribution() for name in self._names("t")}
        box |= {name: IntDistribution(0, len(self.branches)) for name in self._names("p")}
        if self.max_removed:
            box |= {name: IntDistribution(0, self.max_removed) for name in self._names("r")}
        return box | self.scalars.distributions()

    def decode(self, parameters: Mapping[str, Any]) -> Candidate:
        """Times made distinct, the budget kept. Of ``layers = "any"``, the layers are evenly spread ones."""
        count = int(parameters[COUNT])
        times = [float(parameters[name]) for name in self._names("t")[:count]]
        kinds = [int(parameters[name]) for name in self._names("p")[:count]]
        removed = [int(parameters[name]) if self.max_removed else 0 for name in self._names("r")[:count]]
        drafts = [
            Step(time, self.layer_choice.chosen(time, number), None if kind == 0 else self.branches[kind - 1])
            for time, kind, number in zip(times, kinds, removed, strict=True)
        ]
        return self._made(drafts, parameters)

    def encode(self, candidate: Candidate) -> dict[str, Any]:
        """t1 is the highest time; what decode ignores is the lowest time, a full step, and 0 layers."""
        self.check(candidate)
        missing = self.steps_max - len(candidate.steps)
        times = [*candidate.times, *[self.grid.time(0)] * missing]
        kinds = [0 if branch is None else 1 + self.branches.index(branch) for branch in candidate.branches]
        point: dict[str, Any] = {COUNT: len(candidate.steps)}
        point |= zip(self._names("t"), map(self.grid.parameter, times), strict=True)
        point |= zip(self._names("p"), [*kinds, *[0] * missing], strict=True)
        if self.max_removed:
            point |= zip(self._names("r"), [*map(len, candidate.removed), *[0] * missing], strict=True)
        return point | self.scalars.parameters(candidate)

    def check(self, candidate: Candidate) -> None:
        """Number of steps, grid, branches, layers of each step, budget, the numbers beside them."""
        if not self.steps_min <= len(candidate.steps) <= self.steps_max:
            allowed = f"{self.steps_min} to {self.steps_max}"
            raise UserError(f"a candidate in this space must have {allowed} steps; got {len(candidate.steps)}")
        self.grid.check(candidate.times)
        for step in candidate.steps:
            self._check_step(step)
        self.budget.check(self.info, candidate)
        self.scalars.check(candidate)

    def _check_step(self, step: Step) -> None:
        if step.branch not in (None, *self.branches):
            raise UserError(
                f"a step in this space must be a full one, or a partial one at one of the branches "
                f"{list(self.branches)}; got {step}"
            )
        most = 0 if step.branch is not None else self.max_removed
        if len(step.removed) > most:
            kind = "full" if step.branch is None else "partial"
            raise UserError(f"a {kind} step in this space must remove at most {most} layers; got {step}")
        if step.removed:
            self.layer_choice.check(step.time, step.removed)

    def nearest(self, candidate: Candidate) -> Candidate:
        """Its times on the grid, its branches and layers where the space has them; respaced where it has too many or
        few steps."""
        allowed = (None, *self.branches)
        steps = [step if step.branch in allowed else replace(step, branch=self.branches[0]) for step in candidate.steps]
        count = min(max(len(steps), self.steps_min), self.steps_max)
        places = np.linspace(0, len(steps) - 1, count).round().astype(int)
        times = self.info.respaced(candidate.times, count)
        drafts = (replace(steps[place], time=time) for time, place in zip(times, places, strict=True))
        return self._made(drafts, vars(candidate))

    def baselines(self) -> dict[str, Candidate]:
        """The usual schedules of as many full steps as the budget allows."""
        full = [count for count in range(self.steps_min, self.steps_max + 1) if self._fits(count)]
        count = max(full, default=self.steps_min)
        schedules = named_times(self.info, count)
        return {name: self._made(map(Step, times), {}) for name, times in schedules.items()}

    def presets(self) -> dict[str, Candidate]:
        """Uniform schedules, with and without a cache."""
        return uniform_presets(self.info, self.scalars, self.budget, self.branches[0], self.info.train_steps)

    def random(self, rng: np.random.Generator) -> Candidate:
        """Number of steps and set of times uniform; up to half of the steps full ones by chance; up to r layers removed
        at a full step, the same r for all, uniform in 0 .. ``max_removed``."""
        count = int(rng.integers(self.steps_min, self.steps_max + 1))
        share = rng.random()
        kinds = [self._random_branch(rng) if rng.random() < share else None for _ in range(count)]
        times = self.grid.random(count, rng)
        up_to = int(rng.integers(self.max_removed + 1))
        drafts = [
            Step(time, self.layer_choice.resized(time, (), int(rng.integers(up_to + 1)), rng), branch)
            for time, branch in zip(times, kinds, strict=True)
        ]
        return self._made(drafts, self.scalars.random(rng))

    def mutate(self, candidate: Candidate, rng: np.random.Generator, probability: float) -> Candidate:
        """Each time, each step's kind, and each full step's layers, drawn anew with ``probability``; a step more or
        fewer, with twice."""
        times = self.grid.mutate(candidate.times, rng, probability)
        drafts = [
            self._mutated(replace(step, time=time), rng, probability)
            for step, time in zip(candidate.steps, times, strict=True)
        ]
        if rng.random() < COUNT_CHANGE * probability:
            if rng.random() < 0.5 and len(drafts) < self.steps_max:
                drafts.append(Step(self.grid.random(1, rng)[0], (), self._random_kind(rng)))
            elif len(drafts) > self.steps_min:
                drafts.pop(int(rng.integers(len(drafts))))
        return self._made(drafts, self.scalars.mutate(candidate, rng, probability))

    def _mutated(self, step: Step, rng: np.random.Generator, probability: float) -> Step:
        if rng.random() < probability:
            step = replace(step, branch=self._random_kind(rng))
        if step.branch is None and rng.random() < probability:
            step = replace(step, removed=self.layer_choice.changed(step.time, step.removed, self.max_removed, rng))
        return step

    def crossover(self, first: Candidate, second: Candidate, rng: np.random.Generator) -> Candidate:
        """As many steps as either parent has, each from either: the one at the same share of its sequence."""
        parents = first.steps, second.steps
        count = len(parents[int(rng.integers(2))])
        steps = [
            parents[side][round(index * (len(parents[side]) - 1) / max(count - 1, 1))]
            for index, side in enumerate(rng.integers(2, size=count).tolist())
        ]
        return self._made(steps, self.scalars.crossover(first, second, rng))

    def coordinates(self, candidate: Candidate) -> tuple[float, ...]:
        """λ of each step's time, then the numbers beside the steps that are searched."""
        return (*self.info.log_snr(candidate.times).tolist(), *self.scalars.coordinates(candidate))

    def moved(self, candidate: Candidate, coordinates: Sequence[float]) -> Candidate:
        """Each step, full or partial, at its new time."""
        count = len(candidate.steps)
        times = self.info.times_of_log_snr(np.array(coordinates[:count]))
        drafts = (replace(step, time=time) for step, time in zip(candidate.steps, times, strict=True))
        return self._made(drafts, self.scalars.at(coordinates[count:]))

    def toggles(self, candidate: Candidate) -> list[Toggle]:
        """Of full steps, by the layers' place in the order of importance."""
        return layer_toggles(self.layer_choice, candidate, self.max_removed)

    def toggled(self, candidate: Candidate, toggles: Sequence[Toggle]) -> Candidate | None:
        """None also where the budget is exceeded."""
        neighbour = with_toggles(candidate, toggles)
        try:
            self.check(neighbour)
        except UserError:
            return None
        return neighbour

    def restructured(self, candidate: Candidate) -> dict[str, Candidate]:
        """A partial step in the middle of a gap in λ, the widest first; another branch of a partial step; a full step
        in a gap; a step left out; a step made partial, or full. Those that the budget allows, or allows when the least
        important layers go."""
        steps = candidate.steps
        middles = self.info.middles(candidate.times)
        made: dict[str, Iterable[Step]] = {
            f"a partial step at {time:.0f}": (*steps, Step(time, (), self.branches[0]))
            for time in middles
            if time < steps[0].time  # the first step is a full one
        }
        for index, step in enumerate(steps):
            if step.branch is not None:
                place = self.branches.index(step.branch)
                for near in (*self.branches[place + 1 : place + 2], *self.branches[max(place - 1, 0) : place]):
                    made[f"branch {near} at {step.time:g}"] = _with(steps, index, replace(step, branch=near))
        for time in middles:
            nearest = min(steps, key=lambda step: abs(step.time - time))
            made[f"a full step at {time:.0f}"] = (*steps, Step(time, nearest.removed))
        for index, step in enumerate(steps):
            made[f"no step at {step.time:g}"] = (*steps[:index], *steps[index + 1 :])
        for index, step in enumerate(steps[1:], start=1):
            branch = self.branches[0] if step.branch is None else None
            what = "full" if branch is None else "partial"
            made[f"a {what} step at {step.time:g}"] = _with(steps, index, Step(step.time, (), branch))
        kept = {name: self._paid(chosen, candidate) for name, chosen in made.items()}
        return {name: neighbour for name, neighbour in kept.items() if neighbour not in (None, candidate)}

    def _paid(self, chosen: Iterable[Step], candidate: Candidate) -> Candidate | None:
        """A candidate of these steps that keeps the budget, without the least important layers where it must; None
        where that is not enough, or for a number of steps that the space does not have."""
        steps = sorted(chosen, key=lambda step: -step.time)
        if not self.steps_min <= len(steps) <= self.steps_max:
            return None
        steps[0] = replace(steps[0], branch=None)
        neighbour: Candidate | None = self.scalars.candidate(self._placed(steps), vars(candidate))
        while neighbour is not None and not self.budget.is_kept(self.info, neighbour):
            costs = self.info.layer_flops
            neighbour = without_a_layer(self.layer_choice, neighbour, self.max_removed, costs.__getitem__)
        return neighbour

    def partial_steps_more(self, candidate: Candidate) -> dict[str, Candidate]:
        """With one of the cheapest partial steps in the middle of a gap in λ, the widest first; where the number of
        steps and the budget allow it."""
        made: dict[str, Candidate] = {}
        if len(candidate.steps) >= self.steps_max:
            return made
        for time in self.info.middles(candidate.times):
            steps = self._placed((*candidate.steps, Step(time, (), self.branches[0])))
            added = steps[-1].time  # the others stay where they are
            more = self.scalars.candidate(steps, vars(candidate)) if added < candidate.times[0] else None
            if more is not None and self.budget.is_kept(self.info, more):
                made[f"a partial step at {added:g}"] = more
        return made

    def with_layer_share(self, share: float) -> CachedSteps:
        """At most ``share`` of :attr:`max_removed` at a step."""
        return replace(self, max_removed=int(share * self.max_removed))

    def _names(self, letter: str) -> list[str]:
        return [f"{letter}{index + 1}" for index in range(self.steps_max)]

    def _random_branch(self, rng: np.random.Generator) -> int:
        return self.branches[int(rng.integers(len(self.branches)))]

    def _random_kind(self, rng: np.random.Generator) -> int | None:
        return None if rng.random() < 0.5 else self._random_branch(rng)

    def _fits(self, count: int) -> bool:
        return self.budget.is_kept(self.info, Candidate.from_time_steps(range(count)))

    def _placed(self, drafts: Sequence[Step]) -> list[Step]:
        """The steps in their order, at distinct times of the grid, without layers that may not be removed there."""
        times = self.grid.place([step.time for step in drafts])
        return [
            Step(time, self._layers(time, step) if step.branch is None else (), step.branch)
            for step, time in zip(drafts, times, strict=True)
        ]

    def _layers(self, time: float, step: Step) -> Layers:
        """Those that the step removes, as far as the space allows them; the least important where it allows fewer."""
        allowed = [layer for layer in self.layer_choice.by_importance(time) if layer in step.removed]
        kept = allowed[: self.max_removed]
        unused = np.random.default_rng(0)  # their number stays, so there is nothing to draw
        return self.layer_choice.resized(time, kept, len(kept), unused)

    def _made(self, drafts: Iterable[Step], values: Values | Mapping[str, Any]) -> Candidate:
        """A candidate in this space from steps at any times: times, layers, the first step and the budget are
        repaired."""
        steps = sorted(self._placed(list(drafts)), key=lambda step: -step.time)
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
            steps[index] = Step(steps[index].time, (), branch)


def _with(steps: Sequence[Step], index: int, step: Step) -> tuple[Step, ...]:
    return (*steps[:index], step, *steps[index + 1 :])
