"""The space of time steps alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from space.examples import FEW_TIMES

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.config import build
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import Layout, ModelInfo, TimeSteps, TimeStepsConfig

INFO = ModelInfo(1000)


def time_steps(info: ModelInfo = INFO, **table: Any) -> TimeSteps:
    return TimeStepsConfig.model_validate(table).space(info)


def test_the_first_parameter_is_the_noisiest_time() -> None:
    assert time_steps(steps=3).encode(Candidate.from_time_steps([100, 900, 500])) == {"t1": 900, "t2": 500, "t3": 100}


def test_any_values_decode_to_distinct_times() -> None:
    assert time_steps(steps=3).decode({"t1": 5, "t2": 900, "t3": 900}).times == (900, 899, 5)


def test_the_guidance_scale_is_a_parameter_where_it_is_searched_and_the_middle_in_baselines() -> None:
    space = time_steps(steps=1, guidance_scale=[1.0, 4.0])
    assert space.decode({"t1": 5, "guidance_scale": 2.5}) == Candidate.from_time_steps([5], guidance_scale=2.5)
    assert space.encode(Candidate.from_time_steps([5], guidance_scale=2.5)) == {"t1": 5, "guidance_scale": 2.5}
    assert {candidate.guidance_scale for candidate in space.baselines().values()} == {2.5}


@pytest.mark.parametrize(
    ("layout", "nfe", "steps"), [("once", 8, 8), ("heun", 8, 4), ("heun", 7, 4), ("heun", 1, 1), ("plms", 8, 7)]
)
def test_nfe_allows_as_many_steps_as_the_solver_makes_with_it(layout: Layout, nfe: int, steps: int) -> None:
    assert time_steps(dataclasses.replace(INFO, layout=layout), nfe=nfe).steps == steps


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"step": 4}, "key step is unknown.* Did you mean 'steps'"),
        ({"steps": 1001}, "steps must be at most 1000"),
        ({}, "must have steps, or nfe instead; steps is missing"),
        ({"steps": 4, "nfe": 5}, "got both, steps = 4, nfe = 5"),
        ({"steps": 4, "guidance_scale": [3, 1]}, "low < high"),
        ({"steps": 4, "guidance_scale": [3, 3]}, "low < high"),
        ({"steps": 4, "guidance_scale": [-1, 3]}, "low < high"),
    ],
)
def test_a_wrong_table_says_what_is_wrong(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(TimeStepsConfig, table, "here").space(INFO)


def test_every_time_of_a_small_space_may_be_a_step() -> None:
    assert time_steps(FEW_TIMES, steps=5).baselines()["leading"].times == (4, 3, 2, 1, 0)
    with pytest.raises(UserError, match="steps must be at most 5"):
        time_steps(FEW_TIMES, steps=6)


def test_a_number_of_steps_beside_the_spaces_is_refused() -> None:
    for times in ([900, 100], [900, 500, 200, 100]):
        with pytest.raises(UserError, match=f"must have 3 steps; got {len(times)}"):
            time_steps(steps=3).check(Candidate.from_time_steps(times))


def test_a_step_without_a_layer_is_refused() -> None:
    with pytest.raises(UserError, match="must run every layer"):
        time_steps(steps=2).check(Candidate.from_time_steps([900, 100], [(), (0,)]))


def test_random_draws_every_candidate_of_a_small_space_equally_often() -> None:
    space, rng = time_steps(FEW_TIMES, steps=2), np.random.default_rng(0)
    drawn = Counter(space.random(rng) for _ in range(3000))
    assert set(drawn) == {Candidate.from_time_steps(times) for times in combinations(range(5), 2)}
    assert min(drawn.values()) > 230  # 300 each, deviation 16


def test_a_child_has_each_position_from_either_parent_equally_often() -> None:
    space, rng = time_steps(steps=3), np.random.default_rng(0)
    first, second = Candidate.from_time_steps([900, 500, 100]), Candidate.from_time_steps([901, 501, 101])
    children = Counter(space.crossover(first, second, rng).times for _ in range(1600))
    assert set(children) == {(a, b, c) for a in (900, 901) for b in (500, 501) for c in (100, 101)}
    assert min(children.values()) > 140  # 200 each, deviation 13


def test_a_time_that_both_parents_give_to_two_positions_moves() -> None:
    space, rng = time_steps(steps=2), np.random.default_rng(0)
    first, second = Candidate.from_time_steps([900, 500]), Candidate.from_time_steps([500, 100])
    children = {space.crossover(first, second, rng).times for _ in range(100)}
    assert children == {(900, 500), (500, 100), (900, 100), (500, 499)}


def test_mutation_changes_each_time_with_its_probability() -> None:
    space, rng = time_steps(steps=4), np.random.default_rng(0)
    parent = Candidate.from_time_steps([900, 700, 400, 100])
    changed = sum(len(set(space.mutate(parent, rng, 0.25).times) - set(parent.times)) for _ in range(2000))
    assert abs(changed / 8000 - 0.25) < 0.02


def test_a_layer_share_changes_nothing() -> None:
    space = time_steps(steps=4)
    assert space.with_layer_share(0.0) == space
    assert not TimeStepsConfig(steps=4).needs_layers
    assert not TimeStepsConfig(steps=4).needs_ranking
