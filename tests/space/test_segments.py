"""The neighbours of a candidate of segments."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from space.examples import BRANCHED, build_space

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
