"""What a joint space may cost: layer runs, FLOPs, and what is removed to keep to them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from space.examples import TEN, joint

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.config import build
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import JointConfig, ModelInfo, cost

# Layer i costs i + 1 of 100; 45 are in no layer.
COUNTED = dataclasses.replace(TEN, flops=100, layer_flops=tuple(range(1, 11)))
HEUN = dataclasses.replace(COUNTED, layout="heun")


def networks(info: ModelInfo, candidate: Candidate) -> float:
    return cost.flops(info, candidate) / info.flops


def test_a_candidate_of_exactly_max_flops_is_accepted_and_a_dearer_one_refused() -> None:
    candidate = Candidate.from_time_steps([900, 500, 100], [[9], [], [0, 1]])
    assert networks(COUNTED, candidate) == pytest.approx(2.87)
    joint(COUNTED, n_max=None, max_flops=2.87).check(candidate)
    with pytest.raises(UserError, match=r"at most max_flops = 2\.86 whole networks; got 2\.87"):
        joint(COUNTED, n_max=None, max_flops=2.86).check(candidate)


def test_both_budgets_hold_at_once() -> None:
    space, rng = joint(COUNTED, n_max=25, max_flops=2.4, steps_min=2, steps_max=4), np.random.default_rng(0)
    drawn = [space.random(rng) for _ in range(300)]
    drawn += [space.mutate(candidate, rng, 0.5) for candidate in drawn]
    assert max(networks(COUNTED, candidate) for candidate in drawn) <= 2.4 + 1e-9
    assert max(cost.layer_runs(COUNTED, candidate) for candidate in drawn) <= 25
    assert max(networks(COUNTED, candidate) for candidate in drawn) > 2.35


@pytest.mark.parametrize(
    ("info", "max_flops", "steps"),
    [
        (COUNTED, 4.0, 4),
        (COUNTED, 4.99, 4),
        (HEUN, 5.0, 3),  # 2 N - 1 calls
        (HEUN, 4.99, 2),
    ],
)
def test_baselines_have_as_many_whole_networks_as_the_flops_pay_for(
    info: ModelInfo, max_flops: float, steps: int
) -> None:
    for candidate in joint(info, n_max=None, max_flops=max_flops).baselines().values():
        assert (len(candidate.steps), set(candidate.removed)) == (steps, {()})


def test_the_greatest_number_of_steps_is_what_the_costliest_removals_pay_for() -> None:
    # Layers 5 .. 9 cost 6 + ... + 10 = 40; what is left is 0.6 of a network.
    assert joint(COUNTED, n_max=None, max_flops=4.0).steps_max == 6
    assert joint(COUNTED, n_max=None, max_flops=4.2).steps_max == 7
    assert joint(COUNTED, n_max=41, max_flops=4.2).steps_max == 7
    assert joint(COUNTED, n_max=34, max_flops=4.2).steps_max == 6
    # Of the ranked ones those that matter least may be the cheapest: 1 + ... + 5 in the first third.
    assert joint(COUNTED, n_max=None, max_flops=4.2, layers="ranked").steps_max == 4


def test_where_the_least_flops_leave_no_choice_the_costliest_layers_go() -> None:
    space, rng = joint(COUNTED, n_max=None, max_flops=1.8, steps_min=3), np.random.default_rng(0)
    for candidate in (space.random(rng), space.baselines()["leading"], space.nearest(Candidate.from_time_steps([3]))):
        assert candidate.removed == ((5, 6, 7, 8, 9),) * 3


def test_what_matters_least_for_what_it_saves_goes_first() -> None:
    # In the first third layer 0 matters least and 9 most, but 9 saves ten times as much: 1/1, 2/2, ..., 10/10.
    dear = dataclasses.replace(COUNTED, layer_flops=(1, 1, 1, 1, 20, 1, 1, 1, 1, 1))
    space = joint(dear, n_max=None, max_flops=1.81, steps_max=2)
    paid = space.moved(Candidate.from_time_steps([900, 800], [[4], []]), space.info.log_snr([900, 800]).tolist())
    assert paid.removed == ((4,), ())
    tight = joint(dear, n_max=None, max_flops=1.7, steps_max=2)
    assert tight.nearest(Candidate.from_time_steps([900, 800], [[4], []])).times == (900, 800)
    restructured = joint(dear, n_max=None, max_flops=1.7, steps_max=2).restructured(Candidate.from_time_steps([900]))
    assert all((4,) in candidate.removed for candidate in restructured.values())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "must have a budget: n_max, or max_flops, or both; got neither"),
        ({"max_flops": 0}, "max_flops: should be greater than 0; got 0"),
        ({"max_flops": 1.19, "steps_min": 2}, "max_flops must be at least 1.2: steps_min = 2 .* least 5 of 10 .*1.19"),
        ({"max_flops": 9.0, "n_max": 9, "steps_min": 2}, "n_max must be at least 10"),
    ],
)
def test_budgets_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(JointConfig, keys, "here").space(COUNTED)


def test_without_counted_flops_a_budget_of_them_is_refused() -> None:
    with pytest.raises(UserError, match="max_flops needs the FLOPs of the model's layers; they were not counted"):
        build(JointConfig, {"max_flops": 4.0}, "here").space(TEN)


def test_toggles_come_by_importance_and_one_outside_of_the_budget_is_none() -> None:
    space = joint(n_max=19, max_removed_share=0.2)
    candidate = Candidate.from_time_steps([900, 100], [[3, 7], []])
    toggles = space.toggles(candidate)
    # At 900 no third layer may go. At 100 the order is 5, 4, 6, 3, ...; the returns at 900 are 7, then 3.
    assert toggles == [(1, layer) for layer in (5, 4, 6, 3, 7, 2, 8, 1, 9, 0)] + [(0, 7), (0, 3)]
    returned = space.toggled(candidate, [(0, 7)])
    assert returned == Candidate.from_time_steps([900, 100], [[3], []])
    assert space.toggled(returned, [(0, 3)]) is None
    assert space.toggled(returned, [(0, 3), (1, 5)]) == Candidate.from_time_steps([900, 100], [[], [5]])
    assert space.toggled(candidate, [(0, 1)]) is None


def test_a_candidate_with_another_number_of_steps_has_the_layers_of_the_nearest_steps() -> None:
    info = dataclasses.replace(TEN, sigmas=tuple(np.geomspace(0.01, 80, 1000)))
    space = joint(info, n_max=30, steps_max=3, guidance_scale=[0.0, 4.0])
    candidate = Candidate.from_time_steps([900, 100], [[3, 7], [2]], 2.0)
    made = space.restructured(candidate)
    more, fewer = ["a step at 999", "a step at 500", "a step at 0"], ["no step at 900", "no step at 100"]
    assert list(made) == ["respaced to 3", "respaced to 1", *more, *fewer]
    assert made["a step at 500"].removed in (((3, 7), (3, 7), (2,)), ((3, 7), (2,), (2,)))
    assert made["no step at 900"] == Candidate.from_time_steps([100], [[2]], 2.0)
    assert made["respaced to 3"].times == tuple(round(time) for time in space.info.respaced([900, 100], 3))
    tight = joint(space.info, n_max=20, steps_max=3).restructured(candidate)["a step at 500"]
    assert cost.layer_runs(space.info, tight) == 20
