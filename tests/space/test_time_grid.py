"""The grid of times: its ends, its repairs, its draws."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import ModelInfo, TimeGrid, TimeStepsConfig

FIVE = TimeGrid(0, 4)
HUNDREDTHS = TimeGrid(0.0, 999.0, 0.01)


def test_both_ends_are_on_the_grid() -> None:
    assert FIVE.points == 5
    assert [FIVE.time(point) for point in range(5)] == [0, 1, 2, 3, 4]
    assert HUNDREDTHS.points == 99_901
    assert (HUNDREDTHS.time(0), HUNDREDTHS.time(1), HUNDREDTHS.time(99_900)) == (0.0, 0.01, 999.0)


def test_no_time_lies_above_the_highest() -> None:
    assert TimeGrid(0.0, 0.999, 0.01).points == 100
    assert TimeGrid(0.0, 0.999, 0.01).time(99) == 0.99


def test_a_time_goes_to_the_nearest_point_and_outside_to_the_nearest_end() -> None:
    grid = TimeGrid(10, 20)
    assert [grid.point(time) for time in (-5, 9.4, 10.4, 10.6, 19.6, 25)] == [0, 0, 0, 1, 10, 10]


def test_distributions_have_the_ends_of_the_grid() -> None:
    assert TimeGrid(1, 999).distribution() == IntDistribution(1, 999)
    assert TimeGrid(0.5, 1.0049, 0.01).distribution() == FloatDistribution(0.5, 1.0)


def test_parameters_are_integers_on_an_integer_grid() -> None:
    assert (FIVE.parameter(3.0), type(FIVE.parameter(3.0))) == (3, int)
    assert HUNDREDTHS.parameter(3.07) == 3.07


def test_a_time_that_is_taken_moves_to_the_nearest_free_time_the_lower_of_two() -> None:
    assert TimeGrid(0, 999).place([500, 500, 500, 500, 500]) == (500, 499, 501, 498, 502)
    assert TimeGrid(0, 999).place([0, 0, 999, 999]) == (0, 1, 999, 998)
    assert FIVE.place([2, 3, 2]) == (2, 3, 1)


def test_places_keep_the_order_given_and_settled_times_go_from_noise_to_image() -> None:
    assert FIVE.place([1, 4, 2]) == (1, 4, 2)
    assert FIVE.settle([1, 4, 2]) == (4, 2, 1)


def test_a_full_grid_holds_every_time_and_no_more() -> None:
    assert FIVE.settle([2, 2, 2, 2, 2]) == (4, 3, 2, 1, 0)
    with pytest.raises(ValueError, match="no more than 5 distinct times"):
        FIVE.settle([2] * 6)


def test_every_set_of_times_is_drawn_equally_often() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(FIVE.random(3, rng) for _ in range(5000))
    assert set(counts) == {tuple(sorted(times, reverse=True)) for times in combinations(range(5), 3)}
    assert 400 < min(counts.values()) <= max(counts.values()) < 600  # 500 each, deviation 21


def test_mutation_replaces_each_time_with_its_probability_by_any_time() -> None:
    rng = np.random.default_rng(0)
    grid = TimeGrid(0, 9)
    children = [grid.mutate([3.0, 7.0], rng, 0.3) for _ in range(4000)]
    replaced = sum(times[0] != 3.0 for times in children) / 4000
    assert abs(replaced - 0.3 * 0.9) < 0.03  # one time in ten is replaced by itself
    assert {times[1] for times in children} == set(range(10))
    assert grid.mutate([3.0, 7.0], rng, 0.0) == (3.0, 7.0)


def test_times_off_the_grid_are_refused_and_both_ends_are_not() -> None:
    FIVE.check([4.0, 0.0])
    HUNDREDTHS.check([999.0, 0.01, 0.0])
    for wrong in (4.5, 5.0):
        with pytest.raises(UserError, match=rf"times must be integers from 0 to 4; got {wrong:g}"):
            FIVE.check([2.0, wrong])
    with pytest.raises(UserError, match=r"multiples of 0.01 from 0 to 999; got 0.005"):
        HUNDREDTHS.check([0.005])


def test_as_many_steps_as_there_are_times_are_allowed_and_no_more() -> None:
    FIVE.check_count("steps", 5)
    with pytest.raises(UserError, match=r"^steps must be at most 5, .* got 6"):
        FIVE.check_count("steps", 6)


@pytest.mark.parametrize(
    ("times", "lowest", "highest", "grid"),
    [
        ("integer", 0.0, 999.0, TimeGrid(0.0, 999.0)),
        ("integer", 0.3, 998.7, TimeGrid(1.0, 998.0)),
        ("integer", 1.0, 1000.0, TimeGrid(1.0, 1000.0)),
        ("continuous", 0.3, 998.7, TimeGrid(0.3, 998.7, 0.01)),
    ],
)
def test_a_space_has_the_times_that_the_scheduler_accepts(
    times: str, lowest: float, highest: float, grid: TimeGrid
) -> None:
    config = TimeStepsConfig.model_validate({"steps": 4, "times": times})
    assert config.time_grid(ModelInfo(1000, lowest, highest, continuous=True)) == grid


def test_continuous_times_are_refused_where_the_scheduler_takes_integers_only() -> None:
    with pytest.raises(UserError, match="takes integer times only"):
        TimeStepsConfig(steps=4, times="continuous").space(ModelInfo(1000))
