"""Times, partial steps and layers in one space: what is repaired and how, what is in it, its neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from space.examples import BRANCHED, RANKING, build_space, joint

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import SPACES, CachedSteps, cost
from autodiffusion_opt.space.layer_toggles import without_a_layer


def space(**table: Any) -> CachedSteps:
    built = build_space(BRANCHED, **({"kind": "cached-steps", "max_flops": 3.0, "steps_max": 6} | table))
    assert isinstance(built, CachedSteps)
    return built


def point(kinds: list[int], removed: list[int] | None = None) -> dict[str, Any]:
    """Parameters of steps at 900, 700, 500 ... of these kinds."""
    named: dict[str, Any] = {"steps": len(kinds)}
    named |= {f"t{i + 1}": max(900.0 - 200 * i, 10.0 - i) for i in range(6)}
    named |= {f"p{i + 1}": kind for i, kind in enumerate([*kinds, *[0] * (6 - len(kinds))])}
    return named | {f"r{i + 1}": count for i, count in enumerate(removed or [])}


def test_branches_dearer_than_the_limit_are_offered_where_they_are_asked_for_only() -> None:
    assert space().branches == (0, 1)
    assert space(branches=[2, 0]).branches == (0, 2)


def test_within_the_budget_parameters_are_taken_as_they_are() -> None:
    candidate = space().decode(point([0, 1, 0, 2]))
    assert candidate.steps == (Step(900), Step(700, branch=0), Step(500), Step(300, branch=1))


def test_the_first_step_is_made_a_full_one() -> None:
    assert space().decode(point([2, 0])).steps == (Step(900), Step(700))


def test_beyond_the_budget_the_last_of_the_dearest_partial_steps_becomes_cheaper_first() -> None:
    candidate = space(max_flops=2.5).decode(point([0, 2, 0, 2]))  # 2.6 networks
    assert candidate.branches == (None, 1, None, 0)


def test_the_dearest_becomes_the_next_cheaper_one() -> None:
    assert space(max_flops=1.4, branches=[0, 1, 2]).decode(point([0, 3])).branches == (None, 1)


def test_then_the_full_step_nearest_to_the_step_before_it_becomes_partial() -> None:
    parameters = point([0, 0, 0]) | {"t2": 890.0}
    assert space(max_flops=2.5).decode(parameters).branches == (None, 0, None)


def test_the_number_of_steps_is_what_the_budget_allows_with_one_full_step() -> None:
    assert space(max_flops=1.4, steps_max=None).steps_max == 5
    assert space(max_flops=1.4, steps_max=3).steps_max == 3
    with pytest.raises(UserError, match=r"max_flops must be at least 1\.300"):
        space(max_flops=1.25, steps_min=4)


def test_there_are_no_more_steps_than_times() -> None:
    few = replace(BRANCHED, train_steps=5, lowest=0.0, highest=4.0)
    built = build_space(few, kind="cached-steps", max_flops=9.0)
    assert isinstance(built, CachedSteps)
    assert built.steps_max == 5


def test_a_ranking_is_needed_where_layers_may_be_left_out_alone() -> None:
    needed = {
        layers: SPACES["cached-steps"].model_validate({"kind": "cached-steps", "max_flops": 3, "layers": layers})
        for layers in ("all", "ranked")
    }
    assert {layers: table.needs_ranking for layers, table in needed.items()} == {"all": False, "ranked": True}


def test_layers_of_full_steps_are_searched_where_they_may_go() -> None:
    chosen = space(layers="ranked")
    candidate = chosen.decode(point([0, 1, 0], [2, 5, 1]))
    assert [len(removed) for removed in candidate.removed] == [2, 0, 1]
    assert candidate.removed[0] == tuple(sorted(BRANCHED.ranking[0][:2]))
    assert chosen.encode(candidate)["r2"] == 0


def test_without_layers_none_may_be_removed_and_a_partial_step_removes_none() -> None:
    removing = Candidate((Step(900, (3,)), Step(500)))
    with pytest.raises(UserError, match="a full step in this space must remove at most 0 layers"):
        space().check(removing)
    space(layers="any").check(removing)
    with pytest.raises(UserError, match="a partial step in this space must remove at most 0 layers"):
        space(layers="any").check(Candidate((Step(900), Step(500, (0,), 1))))


def test_a_step_that_moves_to_a_free_time_removes_what_matters_least_there() -> None:
    twice = point([0, 0], [1, 1]) | {"t1": 667.0, "t2": 667.0}  # 667 is in the third at the noise, 666 in the next
    candidate = space(layers="ranked").decode(twice)
    assert candidate.steps == (Step(667, RANKING[0][:1]), Step(666, RANKING[1][:1]))


def test_a_joint_candidate_of_as_many_flops_is_in_the_space_with_layers() -> None:
    within = joint(BRANCHED, n_max=200, max_flops=3.0, steps_max=6, steps_min=2)
    cached, rng = space(layers="any"), np.random.default_rng(0)
    for _ in range(20):
        candidate = within.random(rng)
        cached.check(candidate)
        assert cached.nearest(candidate) == candidate


def test_a_full_step_more_is_paid_for_with_the_least_important_layers() -> None:
    candidate = Candidate((Step(900), Step(600), Step(300)))
    assert not any(name.startswith("a full step at") for name in space().restructured(candidate))
    neighbours = space(layers="any").restructured(candidate)
    paid = [made for name, made in neighbours.items() if name.startswith("a full step at")]
    assert paid
    for neighbour in paid:
        assert len(neighbour.steps) == 4
        assert any(neighbour.removed)
        assert cost.networks(BRANCHED, neighbour) <= 3.0


@pytest.mark.parametrize(
    ("table", "gaps"),
    [
        ({"max_flops": 4.1, "steps_max": 5}, 4),  # three gaps, and the one below the last
        ({"max_flops": 4.1, "steps_max": 4}, 0),
        ({"max_flops": 4.0, "steps_max": 9}, 0),
    ],
)
def test_a_partial_step_is_added_in_each_gap_where_the_budget_allows_it(table: dict[str, Any], gaps: int) -> None:
    times = (900.0, 800.0, 200.0, 100.0)
    chosen = space(**table)
    made = chosen.partial_steps_more(Candidate.from_time_steps(times))
    widest = [round(time) for time in BRANCHED.middles(times) if time < 900][:gaps]
    assert [*made] == [f"a partial step at {time}" for time in widest]
    for time, candidate in zip(widest, made.values(), strict=True):
        chosen.check(candidate)
        assert {*candidate.steps} == {*map(Step, times), Step(time, (), 0)}


def test_no_partial_step_is_added_where_a_gap_has_no_time() -> None:
    chosen = space(max_flops=4.5, steps_max=9)
    assert chosen.partial_steps_more(Candidate.from_time_steps([3, 2, 1, 0])) == {}
    assert [*chosen.partial_steps_more(Candidate.from_time_steps([4, 2, 1, 0]))] == ["a partial step at 3"]


def test_layers_stay_where_partial_steps_are_added() -> None:
    candidate = Candidate((Step(900, (3,)), Step(500), Step(100)))
    (first, *_) = space(layers="any", max_flops=3.2).partial_steps_more(candidate).values()
    assert first.steps[0] == Step(900, (3,))


def test_a_search_that_removes_fewer_layers_keeps_those_that_matter_least() -> None:
    whole = space(layers="any", max_flops=3.0)
    half = whole.with_layer_share(0.4)
    assert (whole.max_removed, half.max_removed) == (9, 3)
    many = Candidate((Step(900, BRANCHED.ranking[0][:6]), Step(500)))
    assert half.nearest(many).removed[0] == tuple(sorted(BRANCHED.ranking[0][:3]))


def test_the_layer_that_goes_first_matters_least_for_what_it_costs() -> None:
    cached = space(layers="any")
    cheaper = without_a_layer(cached.layer_choice, Candidate((Step(900),)), 9, BRANCHED.layer_flops.__getitem__)
    weights = {layer: (1 + place) / BRANCHED.layer_flops[layer] for place, layer in enumerate(BRANCHED.ranking[0])}
    assert cheaper == Candidate((Step(900, (min(weights, key=weights.__getitem__),)),))
    assert without_a_layer(cached.layer_choice, Candidate((Step(900),)), 0, BRANCHED.layer_flops.__getitem__) is None
