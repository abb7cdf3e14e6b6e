"""The joint space: times, and the layers that run at each, under a budget of layer runs (AutoDiffusion, 2023, section
3.3).

A candidate is in the space if its times are distinct and on the grid, each step removes at most ``max_removed`` of
the removable layers, and Σ calls_i · (L - |removed_i|) <= n_max over its steps (``cost.layer_runs``). The number of
steps is not fixed: fewer layers a step pay for more steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import cost
from autodiffusion_opt.space.base import Toggle
from autodiffusion_opt.space.baselines import named_times
from autodiffusion_opt.space.budget import Budget
from autodiffusion_opt.space.layer_choice import LayerChoice, Layers
from autodiffusion_opt.space.layer_toggles import layer_toggles, with_toggles, without_a_layer
from autodiffusion_opt.space.model_info import ModelInfo
from autodiffusion_opt.space.scalars import Scalars, Values
from autodiffusion_opt.space.time_grid import TimeGrid

# A step in the making: its time, which may be taken or off the grid, and the layers it removes.
Draft = tuple[float, Layers]
STEPS = "steps"
# The number of steps changes twice as often as each step does: more steps are what removed layers pay for.
STEP_CHANGE = 2.0


@dataclass(frozen=True)
class Joint:
    """Times and layers together. Parameters: ``steps``, the times ``t1`` .. ``tM``, the numbers of layers removed
    ``r1`` .. ``rM``; M is ``steps_max``.

    Any values decode. The first ``steps`` pairs (t, r) count, the rest is ignored. The times are put on the grid and
    made distinct as in :class:`~autodiffusion_opt.space.time_grid.TimeGrid`; r goes along with its t. While the
    budget is exceeded, the step that removes fewest layers (of several the noisiest) removes one more.
    :attr:`layer_choice` says which layers.

    Attributes:
        steps_min: the least number of steps.
        steps_max: the greatest; the budget allows that many steps if each removes ``max_removed`` layers.
        budget: layer runs over all steps, and FLOPs.
        max_removed: how many layers a step may remove.
        layer_choice: which they may be.
    """

    info: ModelInfo
    grid: TimeGrid
    steps_min: int
    steps_max: int
    budget: Budget
    max_removed: int
    layer_choice: LayerChoice
    scalars: Scalars = field(default_factory=Scalars)

    @property
    def fully_parametric(self) -> bool:
        """Whether the numbers of layers say which layers."""
        return self.layer_choice.fully_parametric

    def distributions(self) -> dict[str, BaseDistribution]:
        """2 M + 1 parameters, and one for each number beside the steps that is searched."""
        box: dict[str, BaseDistribution] = {STEPS: IntDistribution(self.steps_min, self.steps_max)}
        box |= {name: self.grid.distribution() for name in _names("t", self.steps_max)}
        box |= {name: IntDistribution(0, self.max_removed) for name in _names("r", self.steps_max)}
        return box | self.scalars.distributions()

    def decode(self, parameters: Mapping[str, Any]) -> Candidate:
        """Times made distinct, the budget kept. Of ``layers = "any"``, the layers are evenly spread ones."""
        count = int(parameters[STEPS])
        times = [float(parameters[name]) for name in _names("t", count)]
        removed = [int(parameters[name]) for name in _names("r", count)]
        return self._without_chance(times, removed, parameters)

    def encode(self, candidate: Candidate) -> dict[str, Any]:
        """t1 is the highest time; what decode ignores is the lowest time, and 0."""
        self.check(candidate)
        missing = self.steps_max - len(candidate.steps)
        # Optuna's samplers work best on a box of fixed length, so the tail that decode ignores has values too.
        times = [*candidate.times, *[self.grid.time(0)] * missing]
        counts = [*(len(removed) for removed in candidate.removed), *[0] * missing]
        point: dict[str, Any] = {STEPS: len(candidate.steps)}
        point |= zip(_names("t", self.steps_max), map(self.grid.parameter, times), strict=True)
        point |= zip(_names("r", self.steps_max), counts, strict=True)
        return point | self.scalars.parameters(candidate)

    def check(self, candidate: Candidate) -> None:
        """Number of steps, grid, layers of each step, budget, the numbers beside them."""
        if not self.steps_min <= len(candidate.steps) <= self.steps_max:
            allowed = f"{self.steps_min} to {self.steps_max}"
            raise UserError(f"a candidate in this space must have {allowed} steps; got {len(candidate.steps)}")
        self.grid.check(candidate.times)
        for step in candidate.steps:
            self._check_step(step)
        self.budget.check(self.info, candidate)
        self.scalars.check(candidate)

    def _check_step(self, step: Step) -> None:
        if step.branch is not None:
            raise UserError(f"a step in this space must be a full one; got {step}")
        if len(step.removed) > self.max_removed:
            raise UserError(
                f"a step must remove at most {self.max_removed} of {self.info.layers} layers; "
                f"got {len(step.removed)} at time {step.time:g}"
            )
        self.layer_choice.check(step.time, step.removed)

    def nearest(self, candidate: Candidate) -> Candidate:
        """Its layers where the space allows them, else as many others; its times on the grid.

        A number of steps that is not allowed becomes the nearest that is, with times of the same spacing.
        """
        allowed = set(self.layer_choice.removable)
        kept = tuple(Step(step.time, tuple(allowed.intersection(step.removed))) for step in candidate.steps)
        with contextlib.suppress(UserError):
            nearest = self.scalars.candidate(kept, vars(candidate))
            self.check(nearest)
            return nearest
        count = min(max(len(kept), self.steps_min), self.steps_max)
        positions = np.linspace(0, len(kept) - 1, count)
        counts = [min(len(kept[round(position)].removed), self.max_removed) for position in positions]
        return self._without_chance(self.info.respaced(candidate.times, count), counts, vars(candidate))

    def baselines(self) -> dict[str, Candidate]:
        """The usual schedules of as many steps as the budget allows with the whole network at each.

        Where it does not allow ``steps_min`` of these, ``steps_min`` steps that remove as little as they must. They
        are the same for every layer share, and valid there.
        """
        whole = self.budget.steps_within(self.info, self.layer_choice, 0, self.steps_max)
        steps = max(whole, self.steps_min)
        schedules, least = named_times(self.info, steps), self.with_layer_share(0)
        return {name: least._without_chance(times, [0] * steps, {}) for name, times in schedules.items()}

    def random(self, rng: np.random.Generator) -> Candidate:
        """Number of steps and set of times uniform; up to r layers removed a step, r uniform in 0 .. ``max_removed``.

        The same r for all steps, so that little removal and much removal are both tried.
        """
        count = int(rng.integers(self.steps_min, self.steps_max + 1))
        up_to = int(rng.integers(self.max_removed + 1))
        # counts: shape (steps,), layers removed at each, noise to image
        counts = self._afforded(rng.integers(up_to + 1, size=count), np.arange(count), rng)
        times = self.grid.random(count, rng)
        steps = [
            Step(time, self.layer_choice.resized(time, (), int(number), rng))
            for time, number in zip(times, counts, strict=True)
        ]
        return self._affordable(steps, self.scalars.random(rng))

    def mutate(self, candidate: Candidate, rng: np.random.Generator, probability: float) -> Candidate:
        """Each step's time, and each step's layers, changed with ``probability``; a step more or fewer, with twice."""
        drafts = [self._mutated(step, rng, probability) for step in candidate.steps]
        if rng.random() < STEP_CHANGE * probability:
            drafts = self._inserted(drafts, rng) if rng.random() < 0.5 else self._deleted(drafts, rng)
        return self._child(drafts, self.scalars.mutate(candidate, rng, probability), rng)

    def _mutated(self, step: Step, rng: np.random.Generator, probability: float) -> Draft:
        time = self.grid.mutate([step.time], rng, probability)[0]
        if rng.random() < probability:
            return time, self.layer_choice.changed(time, step.removed, self.max_removed, rng)
        return time, step.removed

    def _inserted(self, drafts: list[Draft], rng: np.random.Generator) -> list[Draft]:
        """A step at a uniform time that removes what the step nearest to it removes."""
        if len(drafts) >= self.steps_max:
            return drafts
        time = self.grid.time(int(rng.integers(self.grid.points)))
        nearest = min(drafts, key=lambda draft: abs(draft[0] - time))
        return [*drafts, (time, nearest[1])]

    def _deleted(self, drafts: list[Draft], rng: np.random.Generator) -> list[Draft]:
        """A step fewer; the rest gets back a random part of the layer runs that become free."""
        if len(drafts) <= self.steps_min:
            return drafts
        deleted = int(rng.integers(len(drafts)))
        rest = drafts[:deleted] + drafts[deleted + 1 :]
        counts = np.array([len(removed) for _, removed in rest])
        free = -self._excess(counts[_noise_to_image([time for time, _ in rest])])
        # In layers that run again, even if all are at steps with most calls.
        spare = min(free // max(cost.calls(self.info.layout, len(rest))), counts.sum())
        if spare > 0:
            counts -= rng.multivariate_hypergeometric(counts, int(rng.integers(spare + 1)))
        return [
            (time, self.layer_choice.resized(time, removed, int(count), rng))
            for (time, removed), count in zip(rest, counts, strict=True)
        ]

    def crossover(self, first: Candidate, second: Candidate, rng: np.random.Generator) -> Candidate:
        """As many steps as either parent has, each position of the sorted steps from either.

        Where a parent has another number of steps, its own are spread evenly over the positions; a position at which
        it has none comes from the other parent. A step keeps its layers; a repeated time moves, none is lost.
        """
        length = len((first if rng.random() < 0.5 else second).steps)
        length = min(max(length, self.steps_min), self.steps_max)
        drafts = []
        # pair: the step of each parent at a position, None where it has none
        for pair in zip(_spread(first, length), _spread(second, length), strict=True):
            preferred = pair if rng.random() < 0.5 else pair[::-1]
            drafts += [(step.time, step.removed) for step in preferred if step is not None][:1]
        return self._child(drafts, self.scalars.crossover(first, second, rng), rng)

    def coordinates(self, candidate: Candidate) -> tuple[float, ...]:
        """λ of each step's time, then the numbers beside the steps that are searched."""
        return (*self.info.log_snr(candidate.times).tolist(), *self.scalars.coordinates(candidate))

    def moved(self, candidate: Candidate, coordinates: Sequence[float]) -> Candidate:
        """Each step at its new time, with as many layers removed: the same ones, where the space allows them there."""
        count = len(candidate.steps)
        times = self.info.times_of_log_snr(np.array(coordinates[:count]))
        drafts = list(zip(times, candidate.removed, strict=True))
        unused = np.random.default_rng(0)  # the numbers of layers stay, so there is nothing to draw
        return self._child(drafts, self.scalars.at(coordinates[count:]), unused)

    def toggles(self, candidate: Candidate) -> list[Toggle]:
        """By the layers' place in the order of importance at their steps, of equal ones from noise to image."""
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
        """All times respaced; then a new step in the middle of a gap in λ, the widest first; then a step left out.

        Before the first step and after the last there is a gap as wide as the next.
        """
        steps, levels = candidate.steps, self.info.log_snr(candidate.times)
        count = len(steps)
        times = {
            f"respaced to {number}": self.info.respaced(candidate.times, number) for number in (count + 1, count - 1)
        }
        for time in self.info.middles(candidate.times):
            times[f"a step at {time:.0f}"] = (*candidate.times, time)
        for gone in candidate.times:
            times[f"no step at {gone:g}"] = tuple(time for time in candidate.times if time != gone)
        made = {}
        for name, chosen in times.items():
            if self.steps_min <= len(chosen) <= self.steps_max:
                nearest = [int(np.abs(levels - level).argmin()) for level in self.info.log_snr(chosen)]
                drafts = [(time, steps[index].removed) for time, index in zip(chosen, nearest, strict=True)]
                made[name] = self._paid(drafts, vars(candidate))
        return made

    def _paid(self, drafts: Sequence[Draft], values: Mapping[str, Any]) -> Candidate:
        """Times made distinct, the budget kept."""
        pairs = zip(self.grid.place([time for time, _ in drafts]), drafts, strict=True)
        unused = np.random.default_rng(0)  # the numbers of layers stay, so there is nothing to draw
        steps = [
            Step(time, self.layer_choice.resized(time, removed, len(removed), unused))
            for time, (_, removed) in sorted(pairs, key=lambda pair: -pair[0])
        ]
        return self._affordable(steps, values)

    def with_layer_share(self, share: float) -> Joint:
        """At most ``share`` of :attr:`max_removed` at a step; but as many as ``steps_min`` steps must remove.

        At 0 that is the whole network at every step, wherever the budget allows ``steps_min`` such steps.
        """
        least = self.budget.least_removed(self.info, self.layer_choice, self.steps_min, self.max_removed)
        max_removed = max(int(share * self.max_removed), least)
        steps_max = self.budget.steps_within(self.info, self.layer_choice, max_removed, self.steps_max)
        return replace(self, max_removed=max_removed, steps_max=steps_max)

    def _without_chance(self, times: Sequence[float], counts: Sequence[int], values: Mapping[str, Any]) -> Candidate:
        pairs = sorted(zip(self.grid.place(times), counts, strict=True), reverse=True)
        counts = [count for _, count in pairs]
        while True:
            steps = [Step(time, self.layer_choice.chosen(time, n)) for (time, _), n in zip(pairs, counts, strict=True)]
            candidate = self.scalars.candidate(steps, values)
            if min(counts) >= self.max_removed or not self.budget.is_exceeded(self.info, candidate):
                return self._affordable(steps, values)
            counts[counts.index(min(counts))] += 1

    def _child(self, drafts: Sequence[Draft], values: Values, rng: np.random.Generator) -> Candidate:
        """A candidate in this space from any drafts: number of steps, times, layers and budget are repaired."""
        drafts = self._numbered(drafts, rng)
        # All in the order of the drafts: of two at the same time, the first keeps it.
        times = self.grid.place([time for time, _ in drafts])
        allowed = set(self.layer_choice.removable)
        removed = [allowed.intersection(layers) for _, layers in drafts]  # parents may be from a wider space
        counts = np.array([min(len(layers), self.max_removed) for layers in removed])
        counts = self._afforded(counts, _noise_to_image(times), rng)
        steps = [
            Step(time, self.layer_choice.resized(time, layers, int(count), rng))
            for time, layers, count in zip(times, removed, counts, strict=True)
        ]
        return self._affordable(steps, values)

    def _numbered(self, drafts: Sequence[Draft], rng: np.random.Generator) -> list[Draft]:
        """``steps_min`` .. ``steps_max`` of them: some dropped, or some at uniform times added."""
        missing = self.steps_min - len(drafts)
        if missing > 0:
            points = rng.integers(self.grid.points, size=missing)
            return [*drafts, *((self.grid.time(int(point)), ()) for point in points)]
        if len(drafts) <= self.steps_max:
            return list(drafts)
        return [drafts[int(i)] for i in sorted(rng.choice(len(drafts), self.steps_max, replace=False))]

    def _afforded(
        self, counts: NDArray[np.int64], order: NDArray[np.intp], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Layers removed at random, each that may still be removed equally likely, until the budget holds.

        ``counts[order]`` go from noise to image, as the calls of the denoiser do; ``counts`` need not.
        """
        while (excess := self._excess(counts[order])) > 0:
            # As many as are needed even if all are at steps with most calls; again where some were at cheaper ones.
            number = -(-excess // max(cost.calls(self.info.layout, len(counts))))
            counts = counts + rng.multivariate_hypergeometric(self.max_removed - counts, number)
        return counts

    def _excess(self, counts: Sequence[int] | NDArray[np.int64]) -> int:
        """By how many layer runs the budget is exceeded; negative where some are left."""
        return self.budget.excess_runs(self.info, [int(count) for count in counts])

    def _affordable(self, steps: Sequence[Step], values: Mapping[str, Any]) -> Candidate:
        """While steps cost too much, of all layers that run the one is removed that matters least for what it costs.

        Where no more may be removed, each step in turn removes the costliest instead: these are within the budget.
        """
        candidate, costliest = self.scalars.candidate(steps, values), 0
        while self.budget.is_exceeded(self.info, candidate):
            is_count_exceeded = self._excess([len(removed) for removed in candidate.removed]) > 0
            layer_cost = (lambda layer: 1.0) if is_count_exceeded else self.info.layer_flops.__getitem__
            cheaper = without_a_layer(self.layer_choice, candidate, self.max_removed, layer_cost)
            if cheaper is None:
                steps = list(candidate.steps)
                layers = self.layer_choice.costliest(steps[costliest].time, self.max_removed, self.info.layer_flops)
                steps[costliest] = replace(steps[costliest], removed=layers)
                cheaper, costliest = replace(candidate, steps=tuple(steps)), costliest + 1
            candidate = cheaper
        return candidate


def _spread(candidate: Candidate, length: int) -> list[Step | None]:
    """The steps on ``length`` positions, ends on ends: some skipped where there are more, gaps where fewer."""
    steps = candidate.steps
    if len(steps) >= length:
        return [steps[i] for i in _even(length, len(steps))]
    spread: list[Step | None] = [None] * length
    for position, step in zip(_even(len(steps), length), steps, strict=True):
        spread[position] = step
    return spread


def _even(count: int, total: int) -> list[int]:
    """``count`` different, evenly spread numbers in 0 .. ``total`` - 1."""
    return [round(i * (total - 1) / (count - 1)) for i in range(count)] if count > 1 else [(total - 1) // 2]


def _noise_to_image(times: Sequence[float]) -> NDArray[np.intp]:
    """The indices that sort times as they are run."""
    return np.argsort([-time for time in times], kind="stable")


def _names(letter: str, count: int) -> list[str]:
    return [f"{letter}{i + 1}" for i in range(count)]
