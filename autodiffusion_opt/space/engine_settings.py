"""The space of the settings of an engine's cache: its numbers, which steps it skips, and the times.

Engines are tuned by hand: a threshold here, a warm-up there. Here they are parameters beside the times, for any
optimizer, and what a cache really computed is measured (``sampling/counted.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, IntDistribution

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.baselines import UNIFORM, leading, named_times, shifted
from autodiffusion_opt.space.engine_knobs import SKIPPED, UNIT, WARM_UP, Knobs, evenly_skipped
from autodiffusion_opt.space.model_info import ModelInfo
from autodiffusion_opt.space.scalars import Scalars
from autodiffusion_opt.space.time_grid import TimeGrid

COUNT = "steps"
# Of what each setting can leave out: the rungs of the ladder of baselines.
RUNGS = (0.25, 0.5, 0.75, 1.0)
# By how many steps of a search a threshold alone is moved at once, beside one.
FAR = (-3, -2, 2, 3)


@dataclass(frozen=True)
class Draft:
    """A candidate before it is made.

    Attributes:
        times: noise to image.
        numbers: of the engine, by name.
        skipped: indices of steps.
    """

    times: tuple[float, ...]
    numbers: Mapping[str, float]
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class EngineSettings:
    """Parameters: ``steps`` where it is searched, ``t1`` .. ``tM`` where the times are, the engine's numbers, and
    ``s2`` .. ``sM``, whether a step is skipped, of an engine that is told so.

    Any values decode: times are made distinct, what is beyond the number of steps says nothing. Settings with which
    every block runs at every step are a candidate without a cache.

    Attributes:
        knobs: of the engine.
        steps: the least and the greatest number.
        spacing: the name of a baseline that gives the times; None: they are searched.
        grid: the times that may be used.
    """

    info: ModelInfo
    knobs: Knobs
    steps: tuple[int, int]
    spacing: str | None
    grid: TimeGrid
    scalars: Scalars = field(default_factory=Scalars)

    @property
    def fully_parametric(self) -> bool:
        """True."""
        return True

    def distributions(self) -> dict[str, BaseDistribution]:
        """A parameter for everything that is searched."""
        low, high = self.steps
        box: dict[str, BaseDistribution] = {} if low == high else {COUNT: IntDistribution(low, high)}
        box |= {name: self.grid.distribution() for name in self._time_names}
        box |= {knob.name: knob.distribution() for knob in self.knobs.numbers if knob.searched}
        box |= {name: IntDistribution(0, 1) for name in self._mask_names}
        return box | self.scalars.distributions()

    def decode(self, parameters: Mapping[str, Any]) -> Candidate:
        """The times distinct and on the grid, the settings as they are."""
        count = int(parameters.get(COUNT, self.steps[0]))
        times = [float(parameters[name]) for name in self._time_names[:count]]
        numbers = {knob.name: knob.settle(parameters.get(knob.name, knob.low)) for knob in self.knobs.numbers}
        mask = [int(parameters[name]) for name in self._mask_names[: count - 1]]
        return self._made(Draft(tuple(times) or self._given(count), numbers, _places(mask)), parameters)

    def encode(self, candidate: Candidate) -> dict[str, Any]:
        """t1 is the highest time; what decode ignores is the lowest time, and no step skipped."""
        self.check(candidate)
        draft, count = self._draft(candidate), len(candidate.steps)
        times = [*candidate.times, *[self.grid.time(0)] * (self.steps[1] - count)]
        point: dict[str, Any] = {} if self.steps[0] == self.steps[1] else {COUNT: count}
        if self.spacing is None:
            point |= zip(self._time_names, map(self.grid.parameter, times), strict=True)
        point |= {knob.name: draft.numbers[knob.name] for knob in self.knobs.numbers if knob.searched}
        point |= {name: int(place in draft.skipped) for place, name in enumerate(self._mask_names, start=1)}
        return point | self.scalars.parameters(candidate)

    def check(self, candidate: Candidate) -> None:
        """Number of steps, times, the engine's settings, the numbers beside them."""
        low, high = self.steps
        count = len(candidate.steps)
        if not low <= count <= high:
            allowed = str(low) if low == high else f"{low} to {high}"
            raise UserError(f"a candidate in this space must have {allowed} steps; got {count}")
        self.grid.check(candidate.times)
        if self.spacing is not None and candidate.times != self._given(count):
            raise UserError(
                f"a candidate in this space must have the times of {self.spacing!r}, {list(self._given(count))}; "
                f"got {list(candidate.times)}"
            )
        if any(step.removed or step.branch is not None for step in candidate.steps):
            raise UserError("a candidate in an engine's space must run every layer that the engine runs, at every step")
        self.knobs.values(candidate.engine, count)
        self.scalars.check(replace(candidate, engine=None))

    def nearest(self, candidate: Candidate) -> Candidate:
        """Its times, respaced where it has too many or few, and its settings brought into their ranges; the defaults
        where it has another cache or none."""
        count = min(max(len(candidate.steps), self.steps[0]), self.steps[1])
        times = self.info.respaced(candidate.times, count) if self.spacing is None else self._given(count)
        numbers, skipped = self.knobs.defaults(), ()
        engine = candidate.engine
        if isinstance(engine, self.knobs.kind):
            numbers = {knob.name: knob.settle(getattr(engine, knob.name)) for knob in self.knobs.numbers}
            skipped = tuple(index for index in getattr(engine, SKIPPED, ()) if index < count)
        elif engine is None and self._may_be_idle(count):
            numbers = self.knobs.values(None, count)
        return self._made(Draft(times, numbers, skipped), vars(candidate))

    def baselines(self) -> dict[str, Candidate]:
        """``leading`` with the engine at its defaults, of the greatest number of steps; where that number is
        fixed and the times are not, the other usual schedules too.

        Then what a sweep by hand tries: ``cache 25 %`` to ``cache 100 %``, the same times with every setting at this
        share of what it can leave out. And ``fewest steps``, the same schedule of the least number. Where the measured
        cost is bounded, one of these is likely to keep to that.
        """
        least, count = self.steps
        named = named_times(self.info, count) if self.spacing is None else {UNIFORM: self._given(count)}
        if least < count:
            named = {UNIFORM: named[UNIFORM]}
        drafts = {name: Draft(times, self.knobs.defaults()) for name, times in named.items()}
        for rung in RUNGS:
            drafts[f"cache {100 * rung:.0f} %"] = self._sparing(named[UNIFORM], rung)
        if least < count:
            fewest = named_times(self.info, least)[UNIFORM] if self.spacing is None else self._given(least)
            drafts["fewest steps"] = Draft(fewest, self.knobs.defaults())
        made = {name: self._made(draft, {}) for name, draft in drafts.items()}
        first = {candidate: name for name, candidate in reversed(made.items())}  # of equal ones
        return {name: candidate for name, candidate in made.items() if first[candidate] == name}

    def presets(self) -> dict[str, Candidate]:
        """``no cache``: the uniform schedule of the greatest number of steps, every block run; ``defaults``: with the
        engine's own settings, where it has any."""
        times = shifted(self.info, leading(self.info, self.steps[1]))
        plain = self.scalars.candidate(map(Step, self.grid.settle(times)), {})
        engine = self.knobs.engine(self.knobs.defaults(), (), self.steps[1])
        return {"no cache": plain} | ({} if engine is None else {"defaults": replace(plain, engine=engine)})

    def random(self, rng: np.random.Generator) -> Candidate:
        """Every parameter uniform; thresholds in their logarithm."""
        count = int(rng.integers(self.steps[0], self.steps[1] + 1))
        times = self.grid.random(count, rng) if self.spacing is None else self._given(count)
        numbers = {knob.name: knob.random(rng) for knob in self.knobs.numbers}
        mask = rng.integers(2, size=len(self._mask_names[: count - 1]))
        return self._made(Draft(times, numbers, _places(mask)), self.scalars.random(rng))

    def mutate(self, candidate: Candidate, rng: np.random.Generator, probability: float) -> Candidate:
        """Each time, each number and whether each step is skipped changed with ``probability``; so is the number of
        steps, where it is searched, and the times are then respaced."""
        draft, count = self._draft(candidate), len(candidate.steps)
        if self.steps[0] < self.steps[1] and rng.random() < probability:
            count = int(rng.integers(self.steps[0], self.steps[1] + 1))
            draft = self._resized(draft, count)
        times = self.grid.mutate(draft.times, rng, probability) if self.spacing is None else draft.times
        numbers = {knob.name: knob.mutate(draft.numbers[knob.name], rng, probability) for knob in self.knobs.numbers}
        mask = np.isin(np.arange(1, count), draft.skipped)[: len(self._mask_names)]
        mask ^= rng.random(len(mask)) < probability
        return self._made(Draft(times, numbers, _places(mask)), self.scalars.mutate(candidate, rng, probability))

    def crossover(self, first: Candidate, second: Candidate, rng: np.random.Generator) -> Candidate:
        """As many steps as either parent has; each time, each number and whether each step is skipped from either."""
        parents = [self._draft(first), self._draft(second)]
        count = len(parents[int(rng.integers(2))].times)
        parents = [self._resized(parent, count) for parent in parents]

        sides = rng.integers(2, size=(3, count + len(self.knobs.numbers)))
        times = tuple(parents[side].times[index] for index, side in enumerate(sides[0, :count]))
        names = [knob.name for knob in self.knobs.numbers]
        numbers = {name: parents[side].numbers[name] for name, side in zip(names, sides[1], strict=False)}
        skipped = [index for index in range(1, count) if index in parents[sides[2, index]].skipped]
        return self._made(Draft(times, numbers, tuple(skipped)), self.scalars.crossover(first, second, rng))

    def coordinates(self, candidate: Candidate) -> tuple[float, ...]:
        """λ of each time that is searched; then the engine's numbers, whether each step is skipped, and how many there
        are; then the numbers beside the steps."""
        draft, count = self._draft(candidate), len(candidate.steps)
        times = self.info.log_snr(candidate.times).tolist() if self.spacing is None else []
        numbers = [knob.coordinate(draft.numbers[knob.name]) for knob in self.knobs.numbers if knob.searched]
        mask = [UNIT * (index in draft.skipped) for index in range(1, count)] if self.knobs.has_mask else []
        counts = [] if self.steps[0] == self.steps[1] else [UNIT * count]
        return (*times, *numbers, *mask, *counts, *self.scalars.coordinates(candidate))

    def moved(self, candidate: Candidate, coordinates: Sequence[float]) -> Candidate:
        """The nearest values; respaced where the number of steps is another."""
        draft, count, rest = self._draft(candidate), len(candidate.steps), list(coordinates)
        times = draft.times
        if self.spacing is None:
            times, rest = self.info.times_of_log_snr(np.array(rest[:count])), rest[count:]
        numbers = dict(draft.numbers)
        for knob in self.knobs.numbers:
            if knob.searched:
                numbers[knob.name] = knob.at(rest.pop(0))
        mask = [rest.pop(0) > UNIT / 2 for _ in range(count - 1)] if self.knobs.has_mask else []
        draft = Draft(times, numbers, _places(mask))
        if self.steps[0] < self.steps[1]:
            wanted = min(max(round(rest.pop(0) / UNIT), self.steps[0]), self.steps[1])
            draft = self._resized(draft, wanted)
        return self._made(draft, self.scalars.at(rest))

    def exchanges(self, candidate: Candidate) -> dict[str, Candidate]:
        """A step more with a setting that leaves more out, a step fewer with one that leaves less out.

        A threshold alone is moved further than by one step too: what a cache decides changes in jumps, between which
        equal images come of unequal thresholds. Of a cache that is told which steps it skips: a skipped step more or
        fewer, and of two steps in a row the other one skipped, which cost the same.
        """
        draft, count = self._draft(candidate), len(candidate.steps)
        saving = [knob for knob in self.knobs.numbers if knob.searched and knob.saves]
        drafts = {}
        for change, name in ((1, "a step more"), (-1, "a step fewer")):
            if not self.steps[0] <= count + change <= self.steps[1]:
                continue
            resized = self._resized(draft, count + change)
            for knob in saving:
                value = draft.numbers[knob.name]
                value = min(value, count) if knob.name == WARM_UP else value  # a longer one is no other
                changed = knob.at(knob.coordinate(value) + change * knob.saves * UNIT)
                if changed != value:
                    numbers = {**draft.numbers, knob.name: changed}
                    drafts[f"{name}, {knob.name} {changed:g}"] = replace(resized, numbers=numbers)
        for knob in saving:
            for units in () if knob.is_whole else FAR:
                changed = knob.at(knob.coordinate(draft.numbers[knob.name]) + units * UNIT)
                drafts[f"{knob.name} {changed:g}"] = replace(draft, numbers={**draft.numbers, knob.name: changed})
        if self.knobs.has_mask:
            drafts |= self._mask_exchanges(draft, count)
        made = {name: self._made(changed, vars(candidate)) for name, changed in drafts.items()}
        return {name: exchanged for name, exchanged in made.items() if exchanged != candidate}

    def with_layer_share(self, share: float) -> EngineSettings:
        """Itself: no layer may be removed here."""
        return self

    @property
    def _time_names(self) -> list[str]:
        return [f"t{index + 1}" for index in range(self.steps[1])] if self.spacing is None else []

    @property
    def _mask_names(self) -> list[str]:
        return [f"s{index + 1}" for index in range(1, self.steps[1])] if self.knobs.has_mask else []

    def _given(self, count: int) -> tuple[float, ...]:
        assert self.spacing is not None
        return self.grid.settle(named_times(self.info, count)[self.spacing])

    def _mask_exchanges(self, draft: Draft, count: int) -> dict[str, Draft]:
        """As many steps run as before, others of them skipped, or one skipped step more or fewer."""
        (low, high), drafts = self.steps, dict[str, Draft]()
        for place in draft.skipped:
            for beside in (place - 1, place + 1):
                if 0 < beside < count and beside not in draft.skipped:
                    skipped = sorted({*draft.skipped, beside} - {place})
                    drafts[f"step {beside + 1} skipped for {place + 1}"] = replace(draft, skipped=tuple(skipped))
        for place in draft.skipped if count > low else ():
            times = self._unless_given((*draft.times[:place], *draft.times[place + 1 :]))
            skipped = [index - (index > place) for index in draft.skipped if index != place]
            drafts[f"without skipped step {place + 1}"] = Draft(times, draft.numbers, tuple(skipped))
        for place in range(1, count) if count < high else ():
            middle = self.info.log_snr(draft.times[place - 1 : place + 1]).mean(keepdims=True)
            between = self.info.times_of_log_snr(middle)
            times = self._unless_given((*draft.times[:place], *between, *draft.times[place:]))
            skipped = sorted([place, *(index + (index >= place) for index in draft.skipped)])
            drafts[f"skipped step more after step {place}"] = Draft(times, draft.numbers, tuple(skipped))
        return drafts

    def _unless_given(self, times: tuple[float, ...]) -> tuple[float, ...]:
        return times if self.spacing is None else self._given(len(times))

    def _may_be_idle(self, count: int) -> bool:
        """Whether there are settings with which every block runs at so many steps."""
        try:
            self.knobs.values(None, count)
        except UserError:
            return False
        return True

    def _draft(self, candidate: Candidate) -> Draft:
        numbers = self.knobs.values(candidate.engine, len(candidate.steps))
        return Draft(candidate.times, numbers, getattr(candidate.engine, SKIPPED, ()))

    def _sparing(self, times: tuple[float, ...], share: float) -> Draft:
        """The settings at a share of what they can leave out."""
        numbers = {knob.name: knob.sparing(share) for knob in self.knobs.numbers}
        return Draft(times, numbers, evenly_skipped(share, len(times)) if self.knobs.has_mask else ())

    def _resized(self, draft: Draft, count: int) -> Draft:
        """With so many steps: each is skipped where the one at its share of the schedule was."""
        before = len(draft.times)
        if count == before:
            return draft
        times = self.info.respaced(draft.times, count) if self.spacing is None else self._given(count)
        skipped = (index for index in range(1, count) if index * before // count in draft.skipped)
        return Draft(times, draft.numbers, tuple(skipped))

    def _made(self, draft: Draft, values: Mapping[str, Any]) -> Candidate:
        candidate = self.scalars.candidate(map(Step, self.grid.settle(draft.times)), values)
        return replace(candidate, engine=self.knobs.engine(draft.numbers, draft.skipped, len(draft.times)))


def _places(mask: Sequence[int] | np.ndarray[Any, Any]) -> tuple[int, ...]:
    """The indices of the steps that are skipped, of a mask that begins at the second."""
    return tuple(index for index, is_skipped in enumerate(mask, start=1) if is_skipped)
