"""The joint space: its parameters, its budget, its repairs, its table."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from space.examples import DOWN, FEW_TIMES, MIDDLE, TEN, UP, joint

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.config import build
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import JointConfig, LayerRanking, Layout, ModelInfo, cost

HEUN, PLMS = dataclasses.replace(TEN, layout="heun"), dataclasses.replace(TEN, layout="plms")


def counts(candidate: Candidate) -> list[int]:
    return [len(removed) for removed in candidate.removed]


def test_parameters_are_those_of_the_longest_candidate_whatever_the_number_of_steps() -> None:
    space = joint(steps_min=2, steps_max=4)
    assert list(space.distributions()) == ["steps", "t1", "t2", "t3", "t4", "r1", "r2", "r3", "r4"]
    point = {"steps": 2, "t1": 10, "t2": 500, "r1": 1, "r2": 0}
    ignored = {"t3": 7, "t4": 900, "r3": 5, "r4": 5}
    assert space.decode(point | ignored) == space.decode(point | dict.fromkeys(ignored, 0))


def test_parameters_beyond_the_number_of_steps_are_the_lowest_time_and_no_layer() -> None:
    info = dataclasses.replace(TEN, lowest=3.0)
    point = joint(info, steps_max=3, layers="ranked").encode(Candidate.from_time_steps([900, 100], [(0,), ()]))
    assert point == {"steps": 2, "t1": 900, "t2": 100, "t3": 3, "r1": 1, "r2": 0, "r3": 0}


def test_layers_go_along_with_their_time_when_times_are_sorted_and_made_distinct() -> None:
    point = {"steps": 3, "t1": 100, "t2": 900, "t3": 900, "r1": 1, "r2": 2, "r3": 3}
    candidate = joint(steps_max=3, layers="ranked").decode(point)
    assert candidate.times == (900, 899, 100)
    assert candidate.removed == ((0, 1), (0, 1, 2), (5,))


def test_decode_removes_a_layer_more_where_fewest_are_removed_the_noisiest_step_first() -> None:
    point = {"steps": 3, "t1": 900, "t2": 500, "t3": 100, "r1": 0, "r2": 4, "r3": 0}
    space = joint(n_max=24, steps_max=4, layers="ranked")
    assert counts(space.decode(point)) == [1, 4, 1]
    assert counts(space.decode(point | {"r1": 1, "r2": 0})) == [2, 2, 2]
    assert counts(joint(n_max=25, steps_max=4, layers="ranked").decode(point | {"r2": 0})) == [2, 2, 1]


@pytest.mark.parametrize(("n_max", "removed"), [(30, [0, 0, 0]), (29, [1, 0, 0]), (28, [1, 1, 0])])
def test_decode_removes_nothing_at_the_budget_and_a_layer_for_each_run_above_it(n_max: int, removed: list[int]) -> None:
    point = {"steps": 3, "t1": 900, "t2": 500, "t3": 100, "r1": 0, "r2": 0, "r3": 0}
    assert counts(joint(n_max=n_max, steps_max=3).decode(point)) == removed


@pytest.mark.parametrize(
    ("info", "n_max", "removed"),
    # Three whole steps are 30, 50 (2 + 2 + 1 calls) and 40 (2 + 1 + 1 calls) layer runs.
    [(HEUN, 50, [0, 0, 0]), (HEUN, 49, [1, 0, 0]), (HEUN, 46, [1, 1, 0]), (HEUN, 45, [1, 1, 1]), (PLMS, 38, [1, 0, 0])],
)
def test_decode_counts_every_call_of_a_step(info: ModelInfo, n_max: int, removed: list[int]) -> None:
    point = {"steps": 3, "t1": 900, "t2": 500, "t3": 100, "r1": 0, "r2": 0, "r3": 0}
    assert counts(joint(info, n_max=n_max, steps_max=3).decode(point)) == removed


@pytest.mark.parametrize(("layout", "runs"), [("once", 24), ("heun", 41), ("plms", 33)])
def test_a_candidate_of_exactly_n_max_is_accepted_and_of_one_run_more_refused(layout: Layout, runs: int) -> None:
    info = dataclasses.replace(TEN, layout=layout)
    candidate = Candidate.from_time_steps([900, 500, 100], [(0,), (1, 2), (3, 4, 5)])
    joint(info, n_max=runs).check(candidate)
    with pytest.raises(UserError, match=f"n_max = {runs - 1} layers over all steps; got {runs}"):
        joint(info, n_max=runs - 1).check(candidate)


def test_the_ends_of_every_range_are_in_the_space() -> None:
    space = joint(n_max=100, steps_min=2, steps_max=4)
    space.check(Candidate.from_time_steps([999, 0], [range(5), ()]))
    space.check(Candidate.from_time_steps([999, 2, 1, 0], [range(5)] * 4))


@pytest.mark.parametrize(
    ("times", "removed", "message"),
    [
        ([5], [()], "2 to 4 steps; got 1"),
        ([5, 4, 3, 2, 1], [range(5)] * 5, "2 to 4 steps; got 5"),
        ([9, 5], [range(6), ()], "at most 5 of 10 layers; got 6 at time 9"),
        ([9, 5], [(), (10,)], r"only the layers .* may be removed; got \[10\]"),
        ([9.5, 5], [(), ()], "times must be integers"),
        ([1000, 5], [(), ()], "from 0 to 999; got 1000"),
    ],
)
def test_a_candidate_just_outside_the_space_is_refused(times: list[float], removed: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        joint(n_max=25, steps_min=2, steps_max=4).check(Candidate.from_time_steps(times, removed))


def test_a_partial_step_is_refused() -> None:
    with pytest.raises(UserError, match="must be a full one; got 5p0"):
        joint().check(Candidate((Step(9), Step(5, branch=0))))


def test_a_guidance_scale_outside_the_range_is_refused() -> None:
    space = joint(guidance_scale=[1.0, 3.0])
    with pytest.raises(UserError, match="guidance_scale"):
        space.check(Candidate.from_time_steps([9, 5], guidance_scale=4.0))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"n_max": 9, "steps_min": 2}, "n_max must be at least 10: steps_min = 2 steps, each .* least 5 of 10 .*got 9"),
        ({"removable": [3, 12]}, r"removable must be indices from 0 to 9.*got \[12\]"),
        ({"removable": [3, 10]}, r"got \[10\]"),
        ({"removable": [0, 1], "n_max": 7}, "n_max must be at least 8"),
        ({"steps_min": 5, "steps_max": 4}, "steps_max must be at least steps_min, 5; got 4"),
        ({"steps_max": 1001, "n_max": 99999}, "steps_max must be at most 1000"),
        ({"steps_min": 1001, "n_max": 99999}, "steps_min must be at most 1000"),
        ({"layers": "rank"}, "Did you mean 'ranked'"),
        ({"max_removed_share": 1.5}, "max_removed_share"),
        ({"nmax": 3}, "Did you mean 'n_max'"),
        ({"pipeline": {"model": "digits"}}, "key pipeline is unknown"),
    ],
)
def test_a_wrong_table_names_its_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(JointConfig, {"n_max": 40} | keys, "here").space(TEN)


@pytest.mark.parametrize(
    ("info", "least"),
    # Two steps of at least 5 of 10 layers: 2, 3 and 3 calls.
    [(TEN, 10), (HEUN, 15), (PLMS, 15)],
)
def test_the_least_budget_is_accepted_and_one_run_less_refused(info: ModelInfo, least: int) -> None:
    assert joint(info, n_max=least, steps_min=2).steps_max == 2
    with pytest.raises(UserError, match=f"n_max must be at least {least}: .* got {least - 1}"):
        joint(info, n_max=least - 1, steps_min=2)


def test_a_layer_whose_bypass_does_not_fit_may_not_be_named() -> None:
    info = ModelInfo(1000, layers=10, removable=(2, 1, 0))
    with pytest.raises(UserError, match=r"layers \[7\] cannot be bypassed"):
        joint(info, removable=[1, 7])
    assert joint(info).layer_choice.removable == (0, 1, 2)
    assert joint(info).max_removed == 3


def test_a_model_without_counted_layers_is_refused() -> None:
    with pytest.raises(UserError, match="not counted"):
        joint(ModelInfo(1000))


def test_ranked_without_a_complete_ranking_is_refused() -> None:
    for ranking in ((), (UP, DOWN), (UP, DOWN, MIDDLE[1:])):
        with pytest.raises(UserError, match=f"needs a ranking .* got {len(ranking)} rankings"):
            joint(dataclasses.replace(TEN, ranking=ranking), layers="ranked")


def test_the_ranking_of_some_layers_is_that_of_all_without_the_rest() -> None:
    ranking = LayerRanking(((1, 4, 8), (8, 4, 1), (4, 8, 1)), 0.0, 999.0)
    for layers in ("any", "ranked"):
        assert joint(layers=layers, removable=[8, 1, 4]).layer_choice.ranking == ranking  # type: ignore[attr-defined]


def test_layers_are_drawn_uniformly_only_if_asked_for() -> None:
    assert joint().layer_choice.ranking is not None  # type: ignore[attr-defined]
    assert joint(draw="uniform").layer_choice.ranking is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("keys", "needed"),
    [
        ({}, True),
        ({"draw": "uniform"}, False),
        ({"layers": "ranked"}, True),
        ({"layers": "ranked", "draw": "uniform"}, True),
    ],
)
def test_a_ranking_is_needed_unless_layers_are_drawn_uniformly(keys: dict[str, Any], needed: bool) -> None:
    config = JointConfig(n_max=40, **keys)
    assert config.needs_layers
    assert config.needs_ranking is needed


def test_the_share_that_may_be_removed_is_rounded_down() -> None:
    info = ModelInfo(1000, layers=100, removable=tuple(range(100)))
    shares = [joint(info, n_max=1000, max_removed_share=share).max_removed for share in (0.29, 0.295, 0.3, 1.0)]
    assert shares == [29, 29, 30, 100]


@pytest.mark.parametrize(
    ("info", "keys", "steps_max"),
    [
        (TEN, {}, 8),
        (TEN, {"steps_max": 100}, 8),
        (TEN, {"steps_max": 6}, 6),
        (TEN, {"max_removed_share": 1.0}, 1000),
        (TEN, {"max_removed_share": 0.0}, 4),
        (HEUN, {}, 4),  # 7 calls of 5 layers
        (HEUN, {"n_max": 45}, 5),
        (PLMS, {}, 7),
    ],
)
def test_steps_max_is_lowered_to_what_the_budget_allows(info: ModelInfo, keys: dict[str, Any], steps_max: int) -> None:
    assert joint(info, **keys).steps_max == steps_max


@pytest.mark.parametrize(("info", "steps"), [(TEN, 4), (HEUN, 2), (PLMS, 3)])
def test_baselines_spend_the_budget_on_whole_networks(info: ModelInfo, steps: int) -> None:
    for candidate in joint(info, n_max=45).baselines().values():
        assert counts(candidate) == [0] * steps
        assert cost.layer_runs(info, candidate) <= 45 < cost.layer_runs_of(info, [0] * (steps + 1))


def test_baselines_of_a_budget_below_the_fewest_whole_steps_remove_as_little_as_they_must() -> None:
    space = joint(n_max=17, steps_min=2)
    leading = space.baselines()["leading"]
    assert counts(leading) == [2, 1]
    assert space.with_layer_share(0.0).baselines()["leading"] == leading


@pytest.mark.parametrize(
    ("info", "keys", "share", "max_removed", "steps_max"),
    [
        (TEN, {}, 0.0, 0, 4),
        (TEN, {}, 0.5, 2, 5),
        (TEN, {}, 0.6, 3, 5),
        (TEN, {}, 1.0, 5, 8),
        (TEN, {"n_max": 17, "steps_min": 2}, 0.0, 2, 2),  # two steps of 8 layers
        (HEUN, {"n_max": 26, "steps_min": 2}, 0.0, 2, 2),  # three calls of 8 layers
    ],
)
def test_a_share_of_the_layers_is_rounded_down_but_never_below_what_the_budget_needs(
    info: ModelInfo, keys: dict[str, Any], share: float, max_removed: int, steps_max: int
) -> None:
    space = joint(info, **keys).with_layer_share(share)
    assert (space.max_removed, space.steps_max) == (max_removed, steps_max)


def test_a_space_of_few_times_has_no_more_steps_than_times() -> None:
    assert joint(FEW_TIMES, n_max=99, max_removed_share=0.75).steps_max == 5
