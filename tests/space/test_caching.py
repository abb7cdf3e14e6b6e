"""What the spaces with partial steps share: the budget, and the uniform schedules that they are compared with."""

from __future__ import annotations

import pytest
from space.examples import BRANCHED

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.caching import CostBudget, offered_branches, uniform_presets
from autodiffusion_opt.space.scalars import Scalars

TWO = Candidate((Step(900), Step(500, branch=0)))  # 1.1 networks, 2 calls


@pytest.mark.parametrize(
    ("budget", "is_kept"),
    [
        (CostBudget(), True),
        (CostBudget(max_flops=1.1), True),
        (CostBudget(max_flops=1.09), False),
        (CostBudget(nfe=2), True),
        (CostBudget(nfe=1), False),
        (CostBudget(max_flops=1.1, nfe=1), False),
    ],
)
def test_a_budget_bounds_flops_and_calls(budget: CostBudget, is_kept: bool) -> None:
    assert budget.is_kept(BRANCHED, TWO) == is_kept
    if not is_kept:
        with pytest.raises(UserError, match=r"got 1\.1 whole networks and 2 calls"):
            budget.check(BRANCHED, TWO)


def test_presets_are_the_most_even_steps_within_the_budget_with_a_full_one_every_so_many() -> None:
    made = uniform_presets(BRANCHED, Scalars(), CostBudget(max_flops=2.3), 0, BRANCHED.train_steps)
    assert made["fewer steps"] == Candidate.from_time_steps([500, 0])
    assert made["full every 2"] == Candidate((Step(750), Step(500, branch=0), Step(250), Step(0, branch=0)))
    assert made["full every 3"].branches == (None, 0, 0, None, 0)
    assert made["full every 5"].branches == (None, 0, 0, 0, 0)


def test_without_enough_for_one_step_there_is_no_preset() -> None:
    one = uniform_presets(BRANCHED, Scalars(), CostBudget(max_flops=1.0), 0, BRANCHED.train_steps)
    assert one["fewer steps"] == Candidate.from_time_steps([0])
    assert uniform_presets(BRANCHED, Scalars(), CostBudget(max_flops=0.5), 0, BRANCHED.train_steps) == {}


def test_branches_that_are_not_there_are_refused_with_what_is() -> None:
    assert offered_branches(BRANCHED, None) == (0, 1)
    with pytest.raises(UserError, match=r"0 \(0\.10\), 1 \(0\.30\), 2 \(0\.70\); got \[3\]"):
        offered_branches(BRANCHED, (1, 3))
