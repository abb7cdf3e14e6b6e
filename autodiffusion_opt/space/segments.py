"""The space of segments: full, partial and null steps of one schedule (Flexiffusion, 2025, arXiv 2506.02488).

A schedule of T steps is cut into N segments of equal length. Of a segment, the first step is a full one, the next ones
are partial steps at one branch, which use the features of the full one, and the rest is not run: the sampler goes from
the last step that is run to the next. How many steps of a segment are run, full one included, is its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, IntDistribution

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.baselines import UNIFORM
from autodiffusion_opt.space.caching import CostBudget, uniform_presets
from autodiffusion_opt.space.model_info import ModelInfo
from autodiffusion_opt.space.scalars import Scalars, Values

COUNT = "segments"
# One interval, or one branch, is so much of a coordinate: the first step of a pattern search.
UNIT = 0.4


@dataclass(frozen=True)
class Segment:
    """What is run of a segment.

    Attributes:
        interval: how many of its steps, the full one included.
        branch: index among the space's branches, of its partial steps; 0 where it has none.
    """

    interval: int
    branch: int = 0


@dataclass(frozen=True)
class Segments:
    """Parameters: ``segments`` where it is searched, the intervals ``i1`` .. ``iM``, and ``b1`` .. ``bM``, which of the
    branches; ``i`` and ``b`` alone where all segments are alike.

    Any values decode: an interval is cut to its segment's length, and while the budget is exceeded the longest interval
    (of equal ones the nearest to the image) loses a step, then the dearest branch becomes the next cheaper one. What
    says nothing (the branch of a segment without partial steps) is 0 where it is encoded.

    Attributes:
        times: the schedule, noise to image.
        segments: the least and the greatest number of segments.
        interval_min: of each segment; 0: it may be left out.
        branches: that partial steps may run at.
        is_uniform: whether all segments are alike.
    """

    info: ModelInfo
    times: tuple[float, ...]
    segments: tuple[int, int]
    interval_min: int
    branches: tuple[int, ...]
    is_uniform: bool = False
    budget: CostBudget = field(default_factory=CostBudget)
    scalars: Scalars = field(default_factory=Scalars)

    @property
    def fully_parametric(self) -> bool:
        """True."""
        return True

    def distributions(self) -> dict[str, BaseDistribution]:
        """At most 2 M + 1 integers, and a parameter for each number beside the steps that is searched."""
        low, high = self.segments
        genes = 1 if self.is_uniform else high
        box: dict[str, BaseDistribution] = {} if low == high else {COUNT: IntDistribution(low, high)}
        longest = max(self._lengths(low))
        box |= {name: IntDistribution(self.interval_min, longest) for name in self._names("i", genes)}
        if len(self.branches) > 1:
            box |= {name: IntDistribution(0, len(self.branches) - 1) for name in self._names("b", genes)}
        return box | self.scalars.distributions()

    def decode(self, parameters: Mapping[str, Any]) -> Candidate:
        """Intervals cut to their segments, the budget kept."""
        count = int(parameters.get(COUNT, self.segments[0]))
        genes = 1 if self.is_uniform else count
        intervals = [int(parameters[name]) for name in self._names("i", genes)]
        branches = [int(parameters.get(name, 0)) for name in self._names("b", genes)]
        chosen = [Segment(*pair) for pair in zip(intervals, branches, strict=True)]
        return self._repaired(chosen * (count if self.is_uniform else 1), parameters)

    def encode(self, candidate: Candidate) -> dict[str, Any]:
        """Of several numbers of segments that give the candidate, the least."""
        chosen = self._segments_of(candidate)
        low, high = self.segments
        shown = chosen[:1] if self.is_uniform else chosen + [Segment(self.interval_min)] * (high - len(chosen))
        if self.is_uniform:  # what was cut to a shorter segment, or has no partial step, says less
            shown = [Segment(max(segment.interval for segment in chosen), max(segment.branch for segment in chosen))]
        point: dict[str, Any] = {} if low == high else {COUNT: len(chosen)}
        point |= zip(self._names("i", len(shown)), (segment.interval for segment in shown), strict=True)
        if len(self.branches) > 1:
            point |= zip(self._names("b", len(shown)), (segment.branch for segment in shown), strict=True)
        return point | self.scalars.parameters(candidate)

    def check(self, candidate: Candidate) -> None:
        """Segments of this schedule, within the budget."""
        self._segments_of(candidate)
        self.budget.check(self.info, candidate)
        self.scalars.check(candidate)

    def nearest(self, candidate: Candidate) -> Candidate:
        """As many steps of each segment as the candidate has times there, at its cheapest branch there."""
        try:
            self.check(candidate)
        except UserError:
            pass
        else:
            return candidate
        count = self.segments[0]
        starts = [self.times[start] for start in self._starts(count)]
        chosen = []
        for start, end in zip(starts, [*starts[1:], -1.0], strict=True):
            # Times above the first segment's are in it.
            inside = [
                step for step in candidate.steps if end < step.time and (step.time <= start or start == starts[0])
            ]
            branches = [step.branch for step in inside if step.branch in self.branches]
            chosen.append(Segment(len(inside), self.branches.index(min(branches)) if branches else 0))
        if self.is_uniform:
            mean = round(sum(segment.interval for segment in chosen) / count)
            chosen = [Segment(mean, max(segment.branch for segment in chosen))] * count
        return self._repaired(chosen, vars(candidate))

    def baselines(self) -> dict[str, Candidate]:
        """``leading``: the full step of every segment alone, of as many segments as the budget allows."""
        counts = range(self.segments[1], self.segments[0] - 1, -1)
        interval = max(self.interval_min, 1)
        made = (self._repaired([Segment(interval)] * count, {}) for count in counts)
        return {UNIFORM: max(made, key=lambda candidate: len(candidate.steps))}

    def presets(self) -> dict[str, Candidate]:
        """Uniform schedules for no more, with and without a cache, of T steps at most."""
        return uniform_presets(self.info, self.scalars, self.budget, self.branches[0], len(self.times))

    def least(self, count: int) -> Candidate:
        """The cheapest candidate of so many segments."""
        chosen = [Segment(self.interval_min)] * count
        return self._made(chosen if self.interval_min else [Segment(1), *chosen[1:]], {})

    def random(self, rng: np.random.Generator) -> Candidate:
        """Every parameter uniform."""
        count = int(rng.integers(self.segments[0], self.segments[1] + 1))
        genes = [self._random_segment(count, rng) for _ in range(1 if self.is_uniform else count)]
        return self._repaired(genes * (count if self.is_uniform else 1), self.scalars.random(rng))

    def mutate(self, candidate: Candidate, rng: np.random.Generator, probability: float) -> Candidate:
        """Each segment drawn anew with ``probability``; so is their number, where it is searched."""
        chosen = self._segments_of(candidate)
        if self.segments[0] < self.segments[1] and rng.random() < probability:
            count = int(rng.integers(self.segments[0], self.segments[1] + 1))
            chosen = [chosen[index * len(chosen) // count] for index in range(count)]
        if self.is_uniform:
            gene = self._random_segment(len(chosen), rng) if rng.random() < probability else None
            chosen = chosen if gene is None else [gene] * len(chosen)
        else:
            chosen = [
                self._random_segment(len(chosen), rng) if rng.random() < probability else segment for segment in chosen
            ]
        return self._repaired(chosen, self.scalars.mutate(candidate, rng, probability))

    def crossover(self, first: Candidate, second: Candidate, rng: np.random.Generator) -> Candidate:
        """As many segments as either parent has, each from either: the one at the same share of the schedule."""
        parents = self._segments_of(first), self._segments_of(second)
        count = len(parents[int(rng.integers(2))])
        sides = (
            [int(rng.integers(2))] * count if self.is_uniform else [int(side) for side in rng.integers(2, size=count)]
        )
        chosen = [parents[side][index * len(parents[side]) // count] for index, side in enumerate(sides)]
        return self._repaired(chosen, self.scalars.crossover(first, second, rng))

    def coordinates(self, candidate: Candidate) -> tuple[float, ...]:
        """Of each segment its interval, then of each its branch, then what is searched beside them: how many segments
        there are, and numbers beside the steps."""
        chosen = self._segments_of(candidate)
        genes = chosen[:1] if self.is_uniform else chosen
        numbers = [segment.interval for segment in genes] + [segment.branch for segment in genes]
        numbers += [] if self.segments[0] == self.segments[1] else [len(chosen)]
        return (*(UNIT * number for number in numbers), *self.scalars.coordinates(candidate))

    def moved(self, candidate: Candidate, coordinates: Sequence[float]) -> Candidate:
        """The candidate at the nearest whole numbers.

        What a longer interval costs beyond the budget is taken from the segments next to it. Of another number of
        segments each is as the one at the same share of the schedule.
        """
        before = self._segments_of(candidate)
        genes = 1 if self.is_uniform else len(before)
        low, high = self.segments
        rest = 2 * genes + (low < high)
        numbers = [max(round(coordinate / UNIT), 0) for coordinate in coordinates[:rest]]
        most = len(self.branches) - 1
        chosen = [
            Segment(interval, min(branch, most))
            for interval, branch in zip(numbers[:genes], numbers[genes : 2 * genes], strict=True)
        ] * (len(before) if self.is_uniform else 1)
        longer = [index for index, segment in enumerate(chosen) if segment.interval > before[index].interval]
        count = min(max(numbers[-1], low), high) if low < high else low
        chosen = [chosen[index * len(chosen) // count] for index in range(count)]
        spared = longer[0] if len(longer) == 1 and count == len(before) else None
        return self._repaired(chosen, self.scalars.at(coordinates[rest:]), spared)

    def with_layer_share(self, share: float) -> Segments:
        """Itself: no layer may be removed here."""
        return self

    def _names(self, letter: str, genes: int) -> list[str]:
        return [letter] if self.is_uniform else [f"{letter}{index + 1}" for index in range(genes)]

    def _lengths(self, count: int) -> list[int]:
        """Steps of each segment; the first ones are one longer where they cannot be equal."""
        whole, more = divmod(len(self.times), count)
        return [whole + (index < more) for index in range(count)]

    def _starts(self, count: int) -> list[int]:
        """The index of the first step of each segment."""
        return [0, *accumulate(self._lengths(count))][:-1]

    def _random_segment(self, count: int, rng: np.random.Generator) -> Segment:
        longest = max(self._lengths(count))
        return Segment(int(rng.integers(self.interval_min, longest + 1)), int(rng.integers(len(self.branches))))

    def _repaired(self, chosen: Sequence[Segment], values: Values, spared: int | None = None) -> Candidate:
        """The candidate of segments, these cut to their lengths and to the budget: one of them last, if it is said."""
        lengths = self._lengths(len(chosen))
        kept = [
            Segment(min(max(segment.interval, self.interval_min), length), segment.branch)
            for segment, length in zip(chosen, lengths, strict=True)
        ]
        while True:
            if not any(segment.interval for segment in kept):  # a candidate has a step
                kept[0] = Segment(1)
            candidate = self._made(kept, values)
            if self.budget.is_kept(self.info, candidate):
                return candidate
            cheaper = kept if spared is None else self._paid_beside(kept, spared)
            cheaper = self._cheaper(kept) if cheaper == kept else cheaper
            if cheaper == kept:
                return candidate
            kept = cheaper

    def _cheaper(self, kept: Sequence[Segment]) -> list[Segment]:
        """A step less of the longest interval, else the dearest branch cheaper; all of them where all are alike."""
        longest = max(segment.interval for segment in kept)
        dearest = max(segment.branch for segment in kept if segment.interval > 1) if longest > 1 else 0
        cheaper = list(kept)
        for index in reversed(range(len(kept))):
            segment = kept[index]
            if longest > max(self.interval_min, 1) or (longest > self.interval_min and self._active(kept) > 1):
                if segment.interval < longest:
                    continue
                cheaper[index] = Segment(segment.interval - 1, segment.branch)
            elif dearest and segment.branch == dearest:
                cheaper[index] = Segment(segment.interval, dearest - 1)
            else:
                continue
            if not self.is_uniform:
                break
        return cheaper

    def _paid_beside(self, kept: Sequence[Segment], spared: int) -> list[Segment]:
        """A step less of the nearest segment that can do with one less; of two as near that towards the image."""
        by_distance = sorted(range(len(kept)), key=lambda index: (abs(index - spared), -index))[1:]
        shorter = list(kept)
        for index in by_distance:
            if kept[index].interval > self.interval_min:
                shorter[index] = Segment(kept[index].interval - 1, kept[index].branch)
                break
        return shorter

    @staticmethod
    def _active(kept: Sequence[Segment]) -> int:
        return sum(segment.interval > 0 for segment in kept)

    def _made(self, chosen: Sequence[Segment], values: Values) -> Candidate:
        steps = []
        for start, segment in zip(self._starts(len(chosen)), chosen, strict=True):
            branch = self.branches[segment.branch]
            steps += [Step(self.times[start + k], (), branch if k else None) for k in range(segment.interval)]
        return self.scalars.candidate(steps, values)

    def _segments_of(self, candidate: Candidate) -> list[Segment]:
        """The segments that give a candidate. Raises UserError where none do."""
        for count in range(self.segments[0], self.segments[1] + 1):
            chosen = self._segments_in(candidate, count)
            if chosen is not None:
                return chosen
        raise UserError(
            f"a candidate in this space must run, of each of {self._count_text()} segments of its schedule of "
            f"{len(self.times)} steps, first a full step and then partial ones at one of the branches "
            f"{list(self.branches)}, {self.interval_min} steps or more; got {candidate}"
        )

    def _segments_in(self, candidate: Candidate, count: int) -> list[Segment] | None:
        place = {time: index for index, time in enumerate(self.times)}
        if any(step.removed or step.time not in place for step in candidate.steps):
            return None
        by_place = {place[step.time]: step for step in candidate.steps}
        chosen = []
        for start, length in zip(self._starts(count), self._lengths(count), strict=True):
            steps = [by_place.pop(index) for index in range(start, start + length) if index in by_place]
            branches = {step.branch for step in steps[1:]}
            is_run = [step.time for step in steps] == list(self.times[start : start + len(steps)])
            starts_full = not steps or steps[0].branch is None
            if not is_run or not starts_full or len(branches) > 1 or not branches <= {*self.branches}:
                return None
            if len(steps) < self.interval_min:
                return None
            chosen.append(Segment(len(steps), self.branches.index(branches.pop()) if branches else 0))
        alike = Segment(max(segment.interval for segment in chosen), max(segment.branch for segment in chosen))
        if self.is_uniform and self._cut(alike, count) != chosen:
            return None
        return chosen

    def _cut(self, segment: Segment, count: int) -> list[Segment]:
        """So many equal segments, each cut to its length, as they are told of a candidate."""
        cut = (min(segment.interval, length) for length in self._lengths(count))
        return [Segment(interval, segment.branch if interval > 1 else 0) for interval in cut]

    def _count_text(self) -> str:
        low, high = self.segments
        return str(low) if low == high else f"{low} to {high}"
