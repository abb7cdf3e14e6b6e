"""The guidance scale and the end time: absent, fixed, searched."""

from __future__ import annotations

import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from space.examples import build_space

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import ModelInfo
from autodiffusion_opt.space.scalars import Scalar, Scalars

NAME = "guidance_scale"
ABSENT, FIXED, SEARCHED = Scalar(NAME), Scalar(NAME, 3.0, 3.0), Scalar(NAME, 1.0, 7.5)


def test_a_setting_is_absent_fixed_or_a_range() -> None:
    assert Scalars.from_settings(None).guidance_scale == ABSENT
    assert Scalars.from_settings(3.0).guidance_scale == FIXED
    assert Scalars.from_settings((1, 7.5)).guidance_scale == SEARCHED
    assert Scalars.from_settings(end_time=(1, 20)).end_time == Scalar("end_time", 1.0, 20.0, decimals=2)
    assert [scale.searched for scale in (ABSENT, FIXED, SEARCHED)] == [False, False, True]


def test_only_a_range_has_a_parameter() -> None:
    assert SEARCHED.distributions() == {"guidance_scale": FloatDistribution(1.0, 7.5)}
    candidate = Candidate.from_time_steps([9], guidance_scale=2.5, end_time=3.0)
    assert Scalars(SEARCHED).parameters(candidate) == {"guidance_scale": 2.5}
    assert Scalars.from_settings(2.5, (1.0, 4.0)).parameters(candidate) == {"end_time": 3.0}
    assert ABSENT.distributions() == FIXED.distributions() == {}


def test_no_value_becomes_the_middle_of_the_range() -> None:
    assert SEARCHED.settle(None) == 4.25
    assert FIXED.settle(None) == 3.0
    assert ABSENT.settle(5.0) is None


def test_values_are_put_into_the_range_and_rounded_to_three_decimals() -> None:
    assert [SEARCHED.settle(value) for value in (0.0, 2.34567, 9.0)] == [1.0, 2.346, 7.5]


def test_draws_are_uniform_over_the_range() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([SEARCHED.random(rng) for _ in range(4000)])
    parts, _ = np.histogram(drawn, bins=5, range=(1.0, 7.5))
    assert parts.sum() == 4000
    assert parts.min() > 700  # 800 each, deviation 25


def test_mutation_is_a_normal_step_of_a_tenth_of_the_range_with_its_probability() -> None:
    rng = np.random.default_rng(0)
    scale = Scalar(NAME, 0.0, 20.0)
    steps = np.array([scale.mutate(10.0, rng, 0.25) for _ in range(8000)], dtype=float) - 10.0
    moved = steps[steps != 0]
    assert abs(len(moved) / 8000 - 0.25) < 0.02
    assert abs(moved.mean()) < 0.15
    assert abs(moved.std() - 2.0) < 0.1


def test_mutation_stays_in_the_range() -> None:
    rng = np.random.default_rng(0)
    assert {SEARCHED.mutate(7.4, rng, 1.0) for _ in range(100)} > {7.5}
    assert all(1.0 <= (SEARCHED.mutate(1.1, rng, 1.0) or 0) <= 7.5 for _ in range(100))


def test_a_child_has_the_scale_of_either_parent_equally_often() -> None:
    rng = np.random.default_rng(0)
    children = [SEARCHED.crossover(2.0, 5.0, rng) for _ in range(1000)]
    assert set(children) == {2.0, 5.0}
    assert abs(children.count(2.0) - 500) < 60


@pytest.mark.parametrize("scale", [ABSENT, FIXED])
def test_nothing_is_drawn_where_there_is_nothing_to_choose(scale: Scalar) -> None:
    rng = np.random.default_rng(0)
    made = {scale.random(rng), scale.mutate(9.0, rng, 1.0), scale.crossover(9.0, 8.0, rng)}
    assert made == {scale.low}
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize(
    ("scale", "value", "message"),
    [
        (ABSENT, 3.0, "must be absent, .*got 3"),
        (SEARCHED, 0.999, "from 1 to 7.5, .*got 0.999"),
        (SEARCHED, 7.501, "got 7.501"),
        (SEARCHED, 2.0001, "at most 3 decimals; got 2.0001"),
        (SEARCHED, None, "got None"),
        (FIXED, 3.1, "from 3 to 3"),
    ],
)
def test_a_scale_that_is_not_allowed_is_refused(scale: Scalar, value: float | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scale.check(value)


def test_both_ends_and_an_absent_scale_are_allowed() -> None:
    SEARCHED.check(1.0)
    SEARCHED.check(7.5)
    ABSENT.check(None)


def test_the_end_is_brought_below_the_last_step_and_stays_in_its_range() -> None:
    scalars = Scalars.from_settings(end_time=(3.0, 20.0))
    ends = [scalars.candidate([Step(time)], {"end_time": 15.0}).end_time for time in (900.0, 15.0, 12.5, 3.01)]
    assert ends == [15.0, 14.99, 12.49, 3.0]
    assert scalars.candidate([Step(900.0)], {}).end_time == 11.5  # the middle


@pytest.mark.parametrize("times", ["integer", "continuous"])
def test_the_grid_begins_above_the_least_end(times: str) -> None:
    space = build_space(ModelInfo(1000, continuous=True), kind="time-steps", steps=2, times=times, end_time=[3.0, 20.0])
    lowest = space.decode({"t1": 0, "t2": 500, "end_time": 20.0})
    assert lowest.times == (500.0, 4.0 if times == "integer" else 3.01)
    assert lowest.end_time == (3.99 if times == "integer" else 3.0)


@pytest.mark.parametrize(
    ("info", "end", "message"),
    [
        (ModelInfo(1000, stops_early=False), 3.0, "leave end_time out"),
        (ModelInfo(1000), 999.0, "below the model's highest time, 999; got 999"),
        (ModelInfo(1000), [3.0, 1200.0], "got 1200"),
    ],
)
def test_an_end_that_the_model_cannot_stop_at_is_refused(info: ModelInfo, end: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_space(info, kind="time-steps", steps=2, end_time=end)
