"""The guidance scale: absent, fixed, searched."""

from __future__ import annotations

import numpy as np
import pytest
from optuna.distributions import FloatDistribution

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.guidance import Guidance

SEARCHED = Guidance(1.0, 7.5)


def test_a_setting_is_absent_fixed_or_a_range() -> None:
    assert Guidance.from_setting(None) == Guidance(None, None)
    assert Guidance.from_setting(3.0) == Guidance(3.0, 3.0)
    assert Guidance.from_setting((1, 7.5)) == SEARCHED
    assert [scale.searched for scale in (Guidance(), Guidance(3.0, 3.0), SEARCHED)] == [False, False, True]


def test_only_a_range_has_a_parameter() -> None:
    assert SEARCHED.distributions() == {"guidance_scale": FloatDistribution(1.0, 7.5)}
    assert SEARCHED.parameters(2.5) == {"guidance_scale": 2.5}
    for scale in (Guidance(), Guidance(3.0, 3.0)):
        assert scale.distributions() == {}
        assert scale.parameters(3.0) == {}


def test_no_value_becomes_the_middle_of_the_range() -> None:
    assert SEARCHED.settle(None) == 4.25
    assert Guidance(3.0, 3.0).settle(None) == 3.0
    assert Guidance().settle(5.0) is None


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
    scale = Guidance(0.0, 20.0)
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


@pytest.mark.parametrize("scale", [Guidance(), Guidance(3.0, 3.0)])
def test_nothing_is_drawn_where_there_is_nothing_to_choose(scale: Guidance) -> None:
    rng = np.random.default_rng(0)
    made = {scale.random(rng), scale.mutate(9.0, rng, 1.0), scale.crossover(9.0, 8.0, rng)}
    assert made == {scale.low}
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize(
    ("scale", "value", "message"),
    [
        (Guidance(), 3.0, "must be absent, .*got 3"),
        (SEARCHED, 0.999, "from 1 to 7.5, .*got 0.999"),
        (SEARCHED, 7.501, "got 7.501"),
        (SEARCHED, 2.0001, "at most 3 decimals; got 2.0001"),
        (SEARCHED, None, "got None"),
        (Guidance(3.0, 3.0), 3.1, "from 3 to 3"),
    ],
)
def test_a_scale_that_is_not_allowed_is_refused(scale: Guidance, value: float | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scale.check(value)


def test_both_ends_and_an_absent_scale_are_allowed() -> None:
    SEARCHED.check(1.0)
    SEARCHED.check(7.5)
    Guidance().check(None)
