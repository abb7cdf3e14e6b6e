"""The numbers of a model, given by a pipeline or by a user who has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import ModelInfo, TimeStepsConfig
from autodiffusion_opt.space.model_info import third_of


def test_the_number_of_training_steps_is_enough_for_a_space_of_time_steps() -> None:
    space = TimeStepsConfig(steps=4).space(ModelInfo(train_steps=1000))
    assert space.baselines()["leading"] == Candidate.from_time_steps([750, 500, 250, 0])
    assert space.baselines()["trailing"] == Candidate.from_time_steps([999, 749, 499, 249])


def test_the_highest_time_is_the_last_training_step_unless_given() -> None:
    assert ModelInfo(400).highest == 399
    assert ModelInfo(400, highest=400.0).highest == 400
    assert ModelInfo(400, highest=0.0).highest == 0


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"train_steps": 0}, "train_steps must be 1 or more; got 0"),
        ({"train_steps": 10, "lowest": 9.5}, "lowest must be from 0 to highest, 9; got 9.5"),
        ({"train_steps": 10, "lowest": -1.0}, "lowest must be from 0"),
        ({"train_steps": 10, "layers": 3, "removable": (0, 3)}, r"indices of the 3 layers; got \[3\]"),
        ({"train_steps": 10, "layers": 3, "layer_flops": (1, 2)}, "layer_flops must have 3 entries, .*got 2"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelInfo(**numbers)


def test_times_of_noise_levels_are_linear_in_log_sigma_between_training_times() -> None:
    info = ModelInfo(3, sigmas=(0.1, 1.0, 100.0))
    times = info.times_of_sigmas(np.array([1000.0, 100.0, 10.0, 1.0, 0.1**0.5, 0.01]))
    np.testing.assert_allclose(times, [2, 2, 1.5, 1, 0.5, 0])


def test_a_boundary_between_thirds_belongs_to_the_later_third() -> None:
    assert [third_of(t, 0, 999) for t in (1200, 999, 667, 666, 334, 333, 0, -5)] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert [third_of(t, 100, 400) for t in (400, 301, 300, 201, 200, 100)] == [0, 0, 1, 1, 2, 2]


def test_a_range_of_a_single_time_has_a_first_third_only() -> None:
    assert [third_of(t, 3, 3) for t in (2, 3, 4)] == [0, 0, 0]
