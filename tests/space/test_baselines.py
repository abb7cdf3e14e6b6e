"""The usual schedules are those of diffusers, of the papers, and of the numbers that these give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from space.examples import SIGMAS

from autodiffusion_opt.space import UNIFORM, ModelInfo, baselines

# Stable Diffusion 1: β linear in its root.
ROOTS = np.linspace(0.00085**0.5, 0.012**0.5, 1000)
ALPHA_BARS = np.cumprod(1 - ROOTS**2)
SD_SIGMAS = tuple(float(sigma) for sigma in np.sqrt((1 - ALPHA_BARS) / ALPHA_BARS))
AYS = (999.0, 850.0, 736.0, 645.0, 545.0, 455.0, 343.0, 233.0, 124.0, 24.0)
SD = ModelInfo(1000, sigmas=SD_SIGMAS, ays=AYS)


@pytest.mark.parametrize("steps", [2, 3, 4, 6, 7, 10, 13, 50])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_spacings_are_those_of_diffusers_ddim(spacing: str, offset: int, steps: int) -> None:
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(steps)
    times = baselines.named_times(ModelInfo(1000, steps_offset=offset), steps)[spacing]
    assert list(times) == scheduler.timesteps.tolist()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, under numpy 2
@pytest.mark.parametrize("steps", [2, 5, 6, 12])
@pytest.mark.parametrize("name", ["karras", "exponential", "beta"])
def test_schedules_of_noise_levels_are_those_of_diffusers_euler(name: str, steps: int) -> None:
    option: dict[str, Any] = {f"use_{name}_sigmas": True}
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="linspace", **option
    )
    scheduler.set_timesteps(steps)
    # diffusers rounds σ to float32, which near the image is some 0.001 of a time step.
    np.testing.assert_allclose(baselines.named_times(SD, steps)[name], scheduler.timesteps.tolist(), atol=2e-3)


@pytest.mark.parametrize(
    ("steps", "times"),
    # ⌊(i · √800 / (K - 1))²⌋ by hand.
    [(4, [800, 355, 88, 0]), (5, [800, 450, 200, 50, 0]), (10, [800, 632, 483, 355, 246, 158, 88, 39, 9, 0])],
)
def test_quadratic_times_are_squares_up_to_four_fifths_of_the_range(steps: int, times: list[float]) -> None:
    assert list(baselines.quadratic(ModelInfo(1000), steps)) == times


def test_log_snr_times_are_even_in_log_sigma_and_leave_a_whole_step_to_the_least_noise() -> None:
    # log σ from 5.0473 (time 999) down to -4.6051 (time 0) in four equal parts, read back from the table of β.
    times = baselines.log_snr(ModelInfo(1000, sigmas=SIGMAS), 4)
    np.testing.assert_allclose(times, [999, 721.5637, 302.3083, 30.1475], atol=1e-3)


def test_align_your_steps_at_ten_steps_are_the_published_times() -> None:
    np.testing.assert_allclose(baselines.ays(SD, 10), AYS, atol=1e-9)


def test_align_your_steps_at_five_steps_are_the_papers_log_linear_interpolation() -> None:
    # The paper's σ 14.615 6.475 3.861 2.697 1.886 1.396 0.963 0.652 0.399 0.152 (Sabour et al., 2024), interpolated
    # by its own loglinear_interp: 14.615 3.5298 1.6226 0.7188 0.152. Their times; published σ have three decimals.
    np.testing.assert_allclose(baselines.ays(SD, 5), [999, 714.108, 500.800, 258.771, 24.148], atol=0.4)


def test_a_single_step_starts_at_the_first_or_the_last_time() -> None:
    info = ModelInfo(1000, steps_offset=1, sigmas=SD_SIGMAS, ays=AYS)
    assert baselines.named_times(info, 1) == {"leading": (1.0,), "trailing": (999.0,)}


def test_uniform_is_first_and_schedules_of_noise_levels_need_noise_levels() -> None:
    plain = ["leading", "linspace", "trailing", "quadratic"]
    of_sigmas = ["karras", "exponential", "beta", "log-snr"]
    assert list(baselines.named_times(ModelInfo(1000), 4)) == plain
    assert list(baselines.named_times(ModelInfo(1000, sigmas=SD_SIGMAS), 4)) == plain + of_sigmas
    assert list(baselines.named_times(SD, 4)) == [*plain, *of_sigmas, "ays"]
    assert list(baselines.named_times(ModelInfo(1000, ays=AYS), 4)) == plain
    assert plain[0] == UNIFORM


def test_a_noise_level_of_zero_is_no_end_of_a_schedule() -> None:
    info = ModelInfo(4, sigmas=(0.0, 0.5, 1.0, 2.0))
    assert info.sigma_range == (0.5, 2.0)
    np.testing.assert_allclose(baselines.exponential(info, 3), [3, 2, 1])
