"""The neighbours of a candidate of segments."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from space.examples import BRANCHED, build_space

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.segments import UNIT, Segment, Segments


def segments(**table: object) -> Segments:
    """Twenty steps in four to eight segments, which may be left out, at most four networks."""
    given = {"kind": "segments", "steps": 20, "segments": [4, 8], "interval_min": 0, "max_flops": 4.0}
    space = build_space(BRANCHED, **(given | table))
    assert isinstance(space, Segments)
    return space


def intervals(space: Segments, chosen: Sequence[int]) -> tuple[float, ...]:
    """The coordinates of the candidate of these intervals, at the cheapest branch."""
    return space.coordinates(space._made([Segment(interval) for interval in chosen], {}))


@pytest.mark.parametrize(
    ("before", "longer", "after"),
    [
        ((1, 1, 0, 1, 0, 1, 0, 0), 2, (1, 1, 1, 0, 0, 1, 0, 0)),  # of two as near, that towards the image
        ((1, 1, 1, 1, 0, 0, 0, 0), 6, (1, 1, 1, 0, 0, 0, 1, 0)),
        ((0, 0, 0, 0, 1, 1, 1, 1), 0, (1, 0, 0, 0, 0, 1, 1, 1)),
    ],
)
def test_what_a_longer_segment_costs_beyond_the_budget_is_taken_from_the_nearest(
    before: Sequence[int], longer: int, after: Sequence[int]
) -> None:
    space = segments(segments=8)
    coordinates = list(intervals(space, before))
    coordinates[longer] += UNIT
    candidate = space._made([Segment(interval) for interval in before], {})
    assert space.coordinates(space.moved(candidate, coordinates)) == intervals(space, after)


def test_a_coordinate_leads_to_more_segments_each_as_that_at_its_share_of_the_schedule() -> None:
    space = segments(steps=16, max_flops=16.0)
    candidate = space._made([Segment(2), Segment(1), Segment(2), Segment(0)], {})
    *others, count = space.coordinates(candidate)
    assert count == 4 * UNIT
    eight = space.moved(candidate, [*others, 8 * UNIT])
    assert eight == space._made([Segment(number) for number in (2, 2, 1, 1, 2, 2, 0, 0)], {})


def test_the_number_of_segments_stays_between_its_bounds() -> None:
    space = segments(max_flops=20.0)
    candidate = space.baselines()["leading"]
    *others, _ = space.coordinates(candidate)
    assert len(space._segments_of(space.moved(candidate, [*others, 99 * UNIT]))) == 8
    assert len(space._segments_of(space.moved(candidate, [*others, 0]))) == 4


def test_beyond_the_budget_the_longest_segment_nearest_to_the_image_loses_a_step_and_keeps_its_branch() -> None:
    space = segments(steps=8, segments=2, interval_min=1, max_flops=3.0)
    candidate = space.decode({"i1": 3, "i2": 3, "b1": 1, "b2": 1})  # 3.2 networks
    assert candidate == space._made([Segment(3, 1), Segment(2, 1)], {})


def test_where_no_segment_may_be_shorter_the_dearest_branch_becomes_the_next_cheaper_one() -> None:
    space = segments(steps=8, segments=2, interval_min=2, branches=[0, 1, 2], max_flops=3.0)
    candidate = space.decode({"i1": 2, "i2": 2, "b1": 2, "b2": 2})  # 3.4 networks
    assert candidate == space._made([Segment(2, 2), Segment(2, 1)], {})


@pytest.mark.parametrize(
    ("table", "steps"),
    [
        ({"interval_min": 2}, [(0, None), (1, 0), (4, None)]),
        ({}, [(0, None), (1, 0), (2, 1), (4, None)]),
        ({}, [(0, None), (4, 0)]),
        ({}, [(0, None), (2, 0), (4, None)]),
        ({"uniform": True}, [(0, None), (1, 0), (4, None)]),
    ],
    ids=["too short", "two branches", "not full first", "a hole", "not alike"],
)
def test_what_are_no_segments_of_the_space_is_refused(
    table: dict[str, object], steps: list[tuple[int, int | None]]
) -> None:
    space = segments(**({"steps": 8, "segments": 2, "interval_min": 1} | table))
    candidate = Candidate(tuple(Step(space.times[index], (), branch) for index, branch in steps))
    with pytest.raises(UserError, match="a candidate in this space must run, of each of 2 segments"):
        space.check(candidate)


def test_a_uniform_segment_that_is_cut_to_its_first_step_has_no_branch() -> None:
    space = segments(steps=3, segments=2, interval_min=1, uniform=True)
    candidate = space.decode({"i": 2, "b": 1})
    assert candidate.branches == (None, 1, None)
    space.check(candidate)
    assert space.encode(candidate) == {"i": 2, "b": 1}
