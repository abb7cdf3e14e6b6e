"""Which layers a pattern search tries next, over plain lists of observations."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import autodiffusion_opt as ado
from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.optimizer.layer_moves import layer_moves
from autodiffusion_opt.optimizer.stage import Stage
from autodiffusion_opt.space import Layered
from autodiffusion_opt.study.config import build_space
from autodiffusion_opt.trials.history import Observation

# The layers in the order of importance: 0 matters least, in every third of the times.
INFO = ado.ModelInfo(1000, layers=6, removable=tuple(range(6)), ranking=(tuple(range(6)),) * 3)
TIMES = [800, 300]


def space_of(**table: Any) -> Layered:
    space: Any = build_space({"kind": "joint", "n_max": 12} | table, "here").space(INFO)
    assert isinstance(space, Layered)
    return space


def candidate(*removed: list[int]) -> Candidate:
    return Candidate.from_time_steps(TIMES, removed)


WHOLE = Observation(0, candidate([], []), (10.0,))


def layers_of_0(position: int, *removed: list[int], loss: float | None = None, **keys: Any) -> Observation:
    losses = None if loss is None else (loss,)
    return Observation(position, candidate(*removed), losses, stage=str(Stage(1, 0.4, base=0)), **keys)


def moves(
    space: Layered, centre: Candidate, observations: list[Observation], repeated: int = 5
) -> list[tuple[list[tuple[int, ...]], str]]:
    made = layer_moves(space, centre, observations, repeated)
    return [([*neighbour.removed], name) for neighbour, name in made]


def test_what_was_never_measured_comes_in_the_order_of_importance() -> None:
    names = [name for _, name in moves(space_of(), WHOLE.candidate, [WHOLE])]
    assert names == [f"layer {layer} removed at step {step}" for layer in range(6) for step in (1, 2)]


def test_what_was_better_comes_first_then_the_unmeasured_then_what_lost_least() -> None:
    seen = [
        WHOLE,
        layers_of_0(1, [0], [], loss=10.1),
        layers_of_0(2, [], [0], loss=9.0),
        layers_of_0(3, [1], [], loss=9.5),
        layers_of_0(4, [], [1], loss=10.01),
        layers_of_0(5, [2], [], loss=10.4),  # more than two percent: not again
        layers_of_0(6, [], [2], stopped=(100, 30.0)),
    ]
    names = [name for _, name in moves(space_of(), WHOLE.candidate, seen)]
    assert names == [
        "layer 0 removed at step 2",
        "layer 1 removed at step 1",
        *(f"layer {layer} removed at step {step}" for layer in (3, 4, 5) for step in (1, 2)),
        "layer 1 removed at step 2",
        "layer 0 removed at step 1",
    ]
    assert names[:-2] == [name for _, name in moves(space_of(), WHOLE.candidate, seen, repeated=0)]
    assert names[:-1] == [name for _, name in moves(space_of(), WHOLE.candidate, seen, repeated=1)]


def test_where_three_layers_in_a_row_are_needed_those_that_matter_more_are_left_alone() -> None:
    needed = [layers_of_0(1 + layer, [layer], [], loss=11.0) for layer in (0, 1, 2)]
    names = [name for _, name in moves(space_of(), WHOLE.candidate, [WHOLE, *needed])]
    assert names == [f"layer {layer} removed at step 2" for layer in range(6)]
    one_is_not = dataclasses.replace(needed[1], losses=(10.3,))
    names = [name for _, name in moves(space_of(), WHOLE.candidate, [WHOLE, needed[0], one_is_not, needed[2]])]
    assert "layer 3 removed at step 1" in names


def test_a_layer_is_returned_where_the_budget_allows_it_and_else_paid_for_by_the_cheapest_removals() -> None:
    centre = candidate([5], [])
    free = {name: removed for removed, name in moves(space_of(), centre, [])}
    assert free["layer 5 returned at step 1"] == [(), ()]
    tight = {name: removed for removed, name in moves(space_of(n_max=11), centre, [])}
    assert tight["layer 5 returned at step 1, layer 0 removed at step 1"] == [(0,), ()]
    # The cheapest of those that were measured, also at an earlier centre, is cheaper than any that was not.
    seen = [WHOLE, layers_of_0(1, [], [3], loss=9.9)]
    assert "layer 5 returned at step 1, layer 3 removed at step 2" in [
        name for _, name in moves(space_of(n_max=11), centre, seen)
    ]


def test_a_return_that_is_dear_is_paid_for_by_several_removals() -> None:
    info = dataclasses.replace(INFO, flops=20, layer_flops=(1, 1, 1, 1, 1, 3))
    space: Any = build_space({"kind": "joint", "max_flops": 1.85}, "here").space(info)
    names = [name for _, name in moves(space, candidate([5], []), [])]
    paid = "layer 0 removed at step 1, layer 0 removed at step 2, layer 1 removed at step 1"
    assert f"layer 5 returned at step 1, {paid}" in names


def test_what_removing_gained_is_not_returned() -> None:
    seen = [WHOLE, layers_of_0(1, [0], [], loss=9.0)]
    assert not [name for _, name in moves(space_of(), candidate([0], []), seen) if "returned" in name]
    lost = [WHOLE, layers_of_0(1, [0], [], loss=11.0)]
    assert [name for _, name in moves(space_of(), candidate([0], []), lost) if "returned" in name]


def test_a_return_with_its_payment_counts_as_the_return() -> None:
    base = Observation(0, candidate([5], []), (10.0,))
    swapped = layers_of_0(1, [0], [], loss=12.0)
    names = [name for _, name in moves(space_of(n_max=11), base.candidate, [base, swapped])]
    assert "layer 0 removed at step 1" in names  # it was not measured
    assert not [name for name in names if "layer 5 returned" in name]


def test_effects_of_other_numbers_of_steps_or_of_no_measured_value_say_nothing() -> None:
    times = [800, 500, 300]
    other = Observation(0, Candidate.from_time_steps(times), (10.0,))
    its_layer = Candidate.from_time_steps(times, [[0], [], []])
    seen = [other, dataclasses.replace(layers_of_0(1, [0], [], loss=20.0), candidate=its_layer)]
    everything = moves(space_of(n_max=18), WHOLE.candidate, [])
    assert moves(space_of(n_max=18), WHOLE.candidate, seen) == everything
    assert moves(space_of(), WHOLE.candidate, [WHOLE, layers_of_0(1, [0], [])]) == moves(
        space_of(), WHOLE.candidate, [WHOLE]
    )
    stopped = Observation(0, WHOLE.candidate, stopped=(100, 5.0))
    pair = [stopped, layers_of_0(1, [], [3], stopped=(100, 4.0))]
    assert moves(space_of(), WHOLE.candidate, pair)[0][1] == "layer 3 removed at step 2"
    apart = [stopped, layers_of_0(1, [], [3], loss=4.0)]
    assert moves(space_of(), WHOLE.candidate, apart)[0][1] == "layer 0 removed at step 1"


@pytest.mark.parametrize("count", [0, 2])
def test_of_ranked_layers_the_next_and_the_last_may_change(count: int) -> None:
    centre = candidate(list(range(count)), [])
    names = [name for _, name in moves(space_of(layers="ranked"), centre, [])]
    wanted = [f"layer {count} removed at step 1", "layer 0 removed at step 2"]
    assert sorted(names) == sorted(wanted + [f"layer {count - 1} returned at step 1"] * (count > 0))
