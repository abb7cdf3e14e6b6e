"""What pattern search proposes where partial steps led to the best, over plain lists of observations: no SQL."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from space.examples import BRANCHED, build_space

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.optimizer.local import LocalSearch
from autodiffusion_opt.optimizer.stage import Stage
from autodiffusion_opt.study.config import build_optimizer
from autodiffusion_opt.trials.history import Observation, Observations

FULL = (Step(800), Step(500), Step(200))
CACHED = Candidate((*FULL[:2], Step(350, branch=0), FULL[2]))


def search_of(beginnings: int) -> LocalSearch:
    space = build_space(BRANCHED, kind="cached-steps", max_flops=4.5, steps_max=9)
    sampler = build_optimizer({"kind": "local", "beginnings": beginnings}, "here").sampler(space, 0)
    assert isinstance(sampler, LocalSearch)
    return sampler


def proposed(
    search: LocalSearch, start: Observation, value: Callable[[Candidate], float], count: int
) -> list[Observation]:
    """So many proposals after a start."""
    past = [start]
    for position in range(1, count + 1):
        rng = np.random.default_rng([search.seed, position])
        proposal = search.propose(Observations(past).before(position), rng)
        search.space.check(proposal.candidate)
        past.append(Observation(position, proposal.candidate, (value(proposal.candidate),), stage=proposal.stage))
    return past[1:]


def partial_steps(candidate: Candidate) -> int:
    return sum(branch is not None for branch in candidate.branches)


@pytest.mark.parametrize("beginnings", [1, 2])
def test_more_partial_steps_come_before_the_times_where_some_led_to_the_best(beginnings: int) -> None:
    search = search_of(beginnings)
    tried = proposed(search, Observation(0, CACHED, (1.0,)), lambda _: 2.0, 2 * beginnings + 1)
    gaps = [{*each.candidate.steps} - {*CACHED.steps} for each in tried[:-1]]
    assert all(len(added) == 1 and next(iter(added)).branch == 0 for added in gaps)
    assert len({frozenset(added) for added in gaps}) == 2 * beginnings
    # Of all gaps, the widest: no more of them, and the times after that.
    widest = [round(time) for time in BRANCHED.middles(CACHED.times) if time < 800]
    assert [next(iter(added)).time for added in gaps] == widest[: 2 * beginnings]
    stage = Stage.parsed(tried[-1].stage)
    assert stage is not None
    assert stage.step == 0.4


def test_a_partial_step_that_is_better_is_followed_by_others() -> None:
    tried = proposed(search_of(1), Observation(0, CACHED, (9.0,)), lambda made: 10.0 - partial_steps(made), 4)
    assert [partial_steps(each.candidate) for each in tried] == [2, 3, 4, 5]


@pytest.mark.parametrize(
    "best",
    [Observation(0, Candidate(FULL), (1.0,)), Observation(0, CACHED, (1.0,), stage=str(Stage(1, 0.4)))],
    ids=["no partial step", "a neighbour"],
)
def test_the_times_come_first_from_full_steps_and_from_a_neighbour(best: Observation) -> None:
    (tried,) = proposed(search_of(1), best, lambda _: 2.0, 1)
    assert tried.stage == "descent 1, step 0.4"
    assert len(tried.candidate.steps) == len(best.candidate.steps)
