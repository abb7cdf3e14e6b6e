"""What can be asked of a scheduler and of the schedule on it, and what they refuse."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peers.scheduler_runs import Stepper, called
from peers.schedulers import TWO_CALLS

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling import schedule as schedules
from autodiffusion_opt.sampling.schedule.noise import sigmas_at, times_of
from autodiffusion_opt.sampling.schedule.state import steps_of_calls
from autodiffusion_opt.space import cost

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must:DeprecationWarning"),
]
TIMES = (950, 700, 690, 210, 40)
every_scheduler = pytest.mark.parametrize("name", schedules.accepted())


def make(name: str, **config: Any) -> Any:
    config = {"skip_prk_steps": True, **config} if name == "PNDMScheduler" else config
    return getattr(diffusers, name)(**config)


def same_state(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """The same attributes in the same order, each the very same object."""
    return list(before) == list(after) and all(after[key] is value for key, value in before.items())


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        (
            "DDIMInverseScheduler",
            {},
            r"must be one of: .*DDIMScheduler, .*got 'DDIMInverseScheduler'. Did you mean",
        ),
        ("IPNDMScheduler", {}, "got 'IPNDMScheduler'"),
        ("KDPM2DiscreteScheduler", {"prediction_type": "sample"}, "has no prediction_type='sample'"),
        ("PNDMScheduler", {"skip_prk_steps": False}, "needs skip_prk_steps=True"),
        ("FlowMatchLCMScheduler", {"invert_sigmas": True}, "other way round"),
        ("EDMEulerScheduler", {"prediction_type": "sample"}, "has no prediction_type='sample'"),
        ("DEISMultistepScheduler", {"use_flow_sigmas": True}, "leaves noise"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, "with predict_x0=False divides by zero"),
        ("UniPCMultistepScheduler", {"lower_order_final": False}, "with lower_order_final=False divides by zero"),
        ("UniPCMultistepScheduler", {"solver_p": object()}, "with solver_p is two schedulers"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "final_sigmas_type": "sigma_min"}, "noise"),
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous", "prediction_type": "v_prediction", "final_sigmas_type": "sigma_min"},
            "needs final_sigmas_type='zero'",
        ),
    ],
)
def test_refused_by_name_with_the_reason(name: str, config: dict[str, Any], said: str) -> None:
    scheduler = make(name, **config)
    before = dict(vars(scheduler))
    for asked in (
        schedules.check_scheduler,
        schedules.time_range,
        lambda refused: schedules.install_schedule(refused, TIMES),
    ):
        with pytest.raises(UserError, match=said):
            asked(scheduler)
    assert same_state(before, vars(scheduler))


@pytest.mark.parametrize(
    ("name", "times", "said"),
    [
        ("DDIMScheduler", (1000, 3), "from 0 to 999 for this model; got 1000"),
        ("DDIMScheduler", (-1,), "got -1"),
        ("DDIMScheduler", (), "at least one time"),
        ("DDIMScheduler", (9, 9), "distinct in float32; got 9 twice"),
        ("DDIMScheduler", (900.000001, 900), "distinct in float32"),
        ("DDIMScheduler", (3, 9), "downwards; got 3 before 9"),
        ("DDIMScheduler", (900, float("nan")), "finite number; got nan"),
        ("DDIMScheduler", (float("inf"), 3), "finite number; got inf"),
        ("DDIMScheduler", (900, float("-inf")), "finite number; got -inf"),
        ("FlowMatchEulerDiscreteScheduler", (np.float32("nan"),), r"finite number; got np.float32\(nan\)"),
        ("DDIMScheduler", (True,), "finite number; got True"),
        ("DDIMScheduler", (1000, 3, 9), "from 0 to 999 for this model; got 1000; times must go .* got 3 before 9"),
        ("DDIMScheduler", (999.001, 3), "from 0 to 999 for this model; got 999.001"),
        ("DDIMScheduler", ("9",), "finite number"),
        ("DDIMScheduler", (None,), "finite number"),
        ("LCMScheduler", (900.5, 3), "integer times; got 900.5"),
        ("DDPMWuerstchenScheduler", (999, 0), "above 0 to 999 for this model; got 0"),
        ("FlowMatchEulerDiscreteScheduler", (1000.5, 0), "above 0 to 1000 for this model; got 1000.5, 0"),
    ],
)
def test_times_that_cannot_be(name: str, times: tuple[Any, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        schedules.install_schedule(make(name), times)


@every_scheduler
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_default_times_can_be_installed(name: str, steps: int) -> None:
    scheduler = make(name)
    before = dict(vars(scheduler))
    times = schedules.default_times(scheduler, steps)
    assert same_state(before, vars(scheduler))
    schedules.install_schedule(scheduler, times)
    assert len(times) == steps
    sample, step = torch.ones(1, 3, 4, 4), Stepper(scheduler)
    for time in called(scheduler):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, time)
        sample = step(torch.sin(sample), time, sample)
    assert torch.isfinite(sample).all()
    assert schedules.default_times(scheduler, steps) == times  # also of a scheduler that has others installed


@pytest.mark.parametrize("setting", ["use_karras_sigmas", "use_exponential_sigmas"])
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_sigma_settings_do_not_disturb_the_times(name: str, setting: str) -> None:
    plain, shaped = make(name), make(name, **{setting: True})
    for scheduler in (plain, shaped):
        schedules.install_schedule(scheduler, TIMES)
    assert torch.equal(plain.sigmas, shaped.sigmas)
    schedules.check_times(shaped, schedules.default_times(shaped, 30))


def test_default_times_beyond_the_model_are_its_last() -> None:
    """ "leading" spacing in quarters, with an offset of 300."""
    scheduler = make("DDIMScheduler", steps_offset=300)
    assert schedules.default_times(scheduler, 4) == (999, 800, 550, 300)


def test_a_dynamic_shift_is_the_one_given_or_the_greatest() -> None:
    scheduler, copied = (make("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True) for _ in range(2))
    for mu, options in ((0.8, {"mu": 0.8}), (1.15, {})):
        copied.set_timesteps(4, mu=mu)
        assert schedules.default_times(scheduler, 4, **options) == tuple(copied.timesteps.double().tolist())


@pytest.mark.parametrize("between", ["log", "linear"])
def test_times_of_noise_levels_undo_the_noise_levels_of_times(between: Any) -> None:
    scheduler, times = make("DDIMScheduler"), [990.25, 500.5, 40.75, 3.0]
    np.testing.assert_allclose(times_of(scheduler, sigmas_at(scheduler, times, between), between), times, atol=1e-9)


def test_a_number_of_steps_that_is_not_there() -> None:
    for name, steps in (("LCMScheduler", 60), ("DDIMScheduler", 1001), ("DDIMScheduler", 0)):
        with pytest.raises(UserError, match="steps"):
            schedules.default_times(make(name), steps)


def test_what_a_scheduler_can_be_asked() -> None:
    ddim, flow = make("DDIMScheduler"), make("FlowMatchEulerDiscreteScheduler")
    assert (schedules.time_range(ddim), schedules.time_range(flow)) == ((0.0, 999.0), (0.0, 1000.0))
    sigmas = schedules.sigmas_of(ddim)
    assert sigmas is not None
    assert sigmas.dtype == np.float64
    assert (np.diff(sigmas) > 0).all()
    assert sigmas[-1] == pytest.approx(float(((1 - ddim.alphas_cumprod) / ddim.alphas_cumprod)[-1] ** 0.5))
    assert schedules.sigmas_of(flow) is None


@every_scheduler
def test_the_layout_counts_the_calls_that_the_schedule_makes(name: str) -> None:
    """The cost formula of spaces and the schedule's own list of calls agree."""
    layout = schedules.layout_of(make(name))
    assert layout == ("heun" if name in TWO_CALLS else "plms" if name == "PNDMScheduler" else "once")
    for steps in (1, 2, 5):
        made = steps_of_calls(steps, layout)
        assert cost.calls(layout, steps) == tuple(made.count(step) for step in range(steps))


def test_noise_levels_are_finite_also_where_no_signal_is_left() -> None:
    """Zero terminal SNR: ᾱ = 0 at the last training time, taken as 2⁻²⁴, so σ = √(2²⁴ - 1)."""
    sigmas = schedules.sigmas_of(make("DDIMScheduler", rescale_betas_zero_snr=True))
    assert sigmas is not None
    assert np.isfinite(sigmas).all()
    assert sigmas[-1] == pytest.approx((2.0**24 - 1) ** 0.5)


def test_a_time_that_is_not_of_the_schedule() -> None:
    scheduler = make("DDIMScheduler")
    schedules.install_schedule(scheduler, TIMES)
    with pytest.raises(UserError, match="called at time 500; its times are 950, 700, 690, 210, 40"):
        scheduler.step(torch.ones(1, 3, 4, 4), 500, torch.ones(1, 3, 4, 4))


def test_uneven_coefficients_are_for_pndm() -> None:
    with pytest.raises(UserError, match="is for PNDMScheduler; got DDIMScheduler"):
        schedules.install_schedule(make("DDIMScheduler"), TIMES, uneven_coefficients=True)


def test_a_schedule_is_found_on_its_scheduler() -> None:
    scheduler = make("DDIMScheduler")
    assert schedules.schedule_on(scheduler) is None
    schedule = schedules.install_schedule(scheduler, TIMES)
    assert schedules.schedule_on(scheduler) is schedule
    schedule.remove()
    assert schedules.schedule_on(scheduler) is None


@pytest.mark.parametrize(("timestep", "step"), [(950, 0), (949.6, 0), (699.75, 1), (690.25, 2), (torch.tensor(40), 4)])
def test_a_time_that_half_precision_rounded_is_found(timestep: Any, step: int) -> None:
    schedule = schedules.install_schedule(make("DDIMScheduler"), TIMES)
    assert (schedule.find(timestep), schedule.step) == (step, step)


@pytest.mark.parametrize("timestep", [950.6, 700.6, 689.4, 39.4])
def test_a_time_that_is_near_but_not_of_the_schedule_is_refused(timestep: float) -> None:
    schedule = schedules.install_schedule(make("DDIMScheduler"), TIMES)
    with pytest.raises(UserError, match=f"called at time {timestep:g}; its times are 950, 700, 690, 210, 40"):
        schedule.find(timestep)
