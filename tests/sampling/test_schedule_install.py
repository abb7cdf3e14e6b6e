"""The handle of a schedule: it comes off without a trace, counts steps, and refuses what it cannot do."""

from __future__ import annotations

import copy
import inspect
import time
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling import schedule as schedules
from autodiffusion_opt.sampling.schedule.solver_steps import ADAMS_BASHFORTH, uneven_adams_bashforth

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must:DeprecationWarning"),
]
TIMES = (950, 700, 690, 210, 40)
every_scheduler = pytest.mark.parametrize("name", schedules.accepted())


def make(name: str, **config: Any) -> Any:
    config = {"skip_prk_steps": True, **config} if name == "PNDMScheduler" else config
    return getattr(diffusers, name)(**config)


def run(scheduler: Any, schedule: schedules.InstalledSchedule | None = None, calls: int | None = None) -> list[int]:
    """Runs a scheduler; the step that the schedule said at each call."""
    sample, said = torch.ones(1, 3, 4, 4), []
    for instant in scheduler.timesteps[:calls]:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, instant)
        said.append(schedule.step if schedule else 0)
        sample = scheduler.step(torch.sin(sample), instant, sample).prev_sample
    assert torch.isfinite(sample).all()
    return said


def same_state(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """The same attributes in the same order, each the very same object."""
    return list(before) == list(after) and all(after[key] is value for key, value in before.items())


@every_scheduler
def test_it_comes_off_without_a_trace(name: str) -> None:
    scheduler = make(name)
    before, values = dict(vars(scheduler)), copy.deepcopy(vars(scheduler))
    schedule = schedules.install_schedule(scheduler, TIMES)
    scheduler.set_timesteps(5)
    run(scheduler)
    schedule.remove()
    schedule.remove()
    assert same_state(before, vars(scheduler))
    assert str(values) == str(vars(scheduler))


@every_scheduler
def test_it_comes_off_in_the_middle(name: str) -> None:
    """After an exception, and the scheduler then works as if nothing had been."""
    scheduler, untouched = make(name), make(name)
    before = dict(vars(scheduler))
    schedule = schedules.install_schedule(scheduler, TIMES)
    run(scheduler, calls=2)
    with pytest.raises(RuntimeError, match="size of tensor"):
        scheduler.step(torch.ones(1, 3, 9, 9), scheduler.timesteps[2], torch.ones(1, 3, 4, 4))
    schedule.remove()
    assert same_state(before, vars(scheduler))
    for one in (scheduler, untouched):
        one.set_timesteps(4)
        run(one)
    assert torch.equal(scheduler.timesteps, untouched.timesteps)


@every_scheduler
def test_pipelines_see_what_they_always_saw(name: str, tmp_path: Path) -> None:
    scheduler, untouched = make(name), make(name)
    schedules.install_schedule(scheduler, TIMES)
    assert type(scheduler) is type(untouched)
    assert scheduler.config == untouched.config
    for method in ("step", "set_timesteps"):
        assert inspect.signature(getattr(scheduler, method)) == inspect.signature(getattr(untouched, method))
    for folder, one in (("with", scheduler), ("without", untouched)):
        one.save_pretrained(tmp_path / folder)
    file = "scheduler_config.json"
    assert (tmp_path / "with" / file).read_text() == (tmp_path / "without" / file).read_text()


@every_scheduler
def test_a_deep_copy_has_a_schedule_of_its_own(name: str) -> None:
    scheduler = make(name)
    schedule = schedules.install_schedule(scheduler, TIMES)
    copied = copy.deepcopy(scheduler)
    run(copied)
    assert schedule.step == 0
    schedule.remove()
    copied.set_timesteps(5)
    assert len(copied.timesteps) == schedules.nfe(copied, 5)


@every_scheduler
def test_the_times_are_those_given(name: str) -> None:
    scheduler = make(name)
    schedule = schedules.install_schedule(scheduler, TIMES)
    scheduler.set_timesteps(5, device="cpu")
    assert schedule.times == tuple(float(one) for one in TIMES)
    assert sorted({float(one) for one in scheduler.timesteps}, reverse=True) == list(schedule.times)
    assert len(scheduler.timesteps) == schedules.nfe(scheduler, 5)
    whole = name.startswith(("DD", "DEIS", "DPM", "LCM", "PNDM", "TCD", "UniPC"))
    assert scheduler.timesteps.dtype == (torch.int64 if whole else torch.float32)
    if schedules.takes_continuous(scheduler):
        schedules.install_schedule(scheduler, (900.5, 3))
        assert scheduler.timesteps.dtype == torch.float32


@every_scheduler
def test_steps_are_counted(name: str) -> None:
    scheduler = make(name)
    schedule = schedules.install_schedule(scheduler, TIMES)
    said = run(scheduler, schedule)
    expected = {2: [0, 0, 1, 1, 2, 2, 3, 3, 4]}.get(schedules.calls_per_step(scheduler), [0, 1, 2, 3, 4])
    assert said == ([0, 0, 1, 2, 3, 4] if name == "PNDMScheduler" else expected)
    assert len(said) == schedules.nfe(scheduler, 5)
    assert schedule.step == 4
    scheduler.set_timesteps(5)
    assert schedule.step == 0


@pytest.mark.parametrize("name", [one for one in schedules.accepted() if one != "PNDMScheduler"])
def test_image_to_image_starts_in_the_middle(name: str) -> None:
    scheduler = make(name)
    schedule = schedules.install_schedule(scheduler, TIMES)
    order = scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(2 * order)
    sample, said = torch.ones(1, 3, 4, 4), []
    for instant in scheduler.timesteps[2 * order :]:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, instant)
        said.append(schedule.step)
        sample = scheduler.step(sample, instant, sample).prev_sample
    assert sorted(set(said)) == [2, 3, 4]


def test_pndm_does_not_start_in_the_middle() -> None:
    scheduler = make("PNDMScheduler")
    schedules.install_schedule(scheduler, TIMES)
    with pytest.raises(UserError, match=r"first to the last; call 0 came at time 690, expected 950"):
        scheduler.step(torch.ones(1, 3, 4, 4), 690, torch.ones(1, 3, 4, 4))


@every_scheduler
def test_another_number_of_steps_warns_once(name: str) -> None:
    scheduler = make(name)
    schedules.install_schedule(scheduler, TIMES)
    with pytest.warns(UserWarning, match="num_inference_steps=50 is not used: installed times give 5 steps"):
        scheduler.set_timesteps(50)
    scheduler.set_timesteps(50)  # a second warning would be an error here
    scheduler.set_timesteps(num_inference_steps=5, device=None, mu=1.0, sigmas=[1.0, 0.5])
    assert len(scheduler.timesteps) == schedules.nfe(scheduler, 5)


def test_the_last_one_installed_counts() -> None:
    scheduler = make("DDIMScheduler")
    before = dict(vars(scheduler))
    first = schedules.install_schedule(scheduler, TIMES)
    second = schedules.install_schedule(scheduler, (900, 100))
    first.remove()
    assert scheduler.timesteps.tolist() == [900, 100]
    second.remove()
    assert same_state(before, vars(scheduler))


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        (
            "DDIMInverseScheduler",
            {},
            r"must be one of: DDIMScheduler, .*got 'DDIMInverseScheduler'. Did you mean",
        ),
        ("KDPM2DiscreteScheduler", {}, "got 'KDPM2DiscreteScheduler'"),
        ("PNDMScheduler", {"skip_prk_steps": False}, "needs skip_prk_steps=True"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "other way round"),
        ("DEISMultistepScheduler", {"use_flow_sigmas": True}, "leaves noise"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, "divides by zero"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "final_sigmas_type": "sigma_min"}, "noise"),
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous", "prediction_type": "v_prediction"},
            "log σ",
        ),
    ],
)
def test_refused_by_name_with_the_reason(name: str, config: dict[str, Any], said: str) -> None:
    scheduler = make(name, **config)
    before = dict(vars(scheduler))
    for asked in (schedules.check_scheduler, schedules.time_range, lambda one: schedules.install_schedule(one, TIMES)):
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
        ("DDIMScheduler", (float("nan"),), "finite number"),
        ("DDIMScheduler", ("9",), "finite number"),
        ("DDIMScheduler", (None,), "finite number"),
        ("LCMScheduler", (900.5, 3), "integer times; got 900.5"),
        ("FlowMatchEulerDiscreteScheduler", (1000.5, 0), "above 0 to 1000 for this model; got 1000.5, 0"),
    ],
)
def test_times_that_cannot_be(name: str, times: tuple[Any, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        schedules.install_schedule(make(name), times)


def test_a_time_that_is_not_of_the_schedule() -> None:
    scheduler = make("DDIMScheduler")
    schedules.install_schedule(scheduler, TIMES)
    with pytest.raises(UserError, match="called at time 500; its times are 950, 700, 690, 210, 40"):
        scheduler.step(torch.ones(1, 3, 4, 4), 500, torch.ones(1, 3, 4, 4))


def test_uneven_coefficients_are_for_pndm() -> None:
    with pytest.raises(UserError, match="is for PNDMScheduler; got DDIMScheduler"):
        schedules.install_schedule(make("DDIMScheduler"), TIMES, uneven_coefficients=True)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_uneven_coefficients_on_even_times_are_those_published(count: int) -> None:
    nodes = 500.0 + 20.0 * np.arange(count)
    np.testing.assert_allclose(uneven_adams_bashforth(nodes, 480.0), ADAMS_BASHFORTH[count - 1], atol=1e-12)
    np.testing.assert_allclose(uneven_adams_bashforth(nodes, 500.0), [1.0] + [0.0] * (count - 1), atol=1e-12)


@every_scheduler
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_default_times_can_be_installed(name: str, steps: int) -> None:
    scheduler = make(name)
    before = dict(vars(scheduler))
    times = schedules.default_times(scheduler, steps)
    assert same_state(before, vars(scheduler))
    schedule = schedules.install_schedule(scheduler, times)
    assert len(times) == steps
    run(scheduler, schedule)
    assert schedules.default_times(scheduler, steps) == times


@pytest.mark.parametrize("setting", ["use_karras_sigmas", "use_exponential_sigmas"])
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_sigma_settings_do_not_disturb_the_times(name: str, setting: str) -> None:
    plain, other = make(name), make(name, **{setting: True})
    for one in (plain, other):
        schedules.install_schedule(one, TIMES)
    assert torch.equal(plain.sigmas, other.sigmas)
    schedules.check_times(other, schedules.default_times(other, 30))


def test_a_number_of_steps_that_is_not_there() -> None:
    for name, steps in (("LCMScheduler", 60), ("DDIMScheduler", 1001), ("DDIMScheduler", 0)):
        with pytest.raises(UserError, match="steps"):
            schedules.default_times(make(name), steps)


@every_scheduler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_samples_keep_their_precision(name: str, dtype: torch.dtype) -> None:
    """As far as diffusers' own does: some of its schedulers answer in float32."""
    results = []
    for installed in (True, False):
        scheduler = make(name)
        if installed:
            schedules.install_schedule(scheduler, TIMES)
        scheduler.set_timesteps(5)
        sample, instant = torch.ones(1, 3, 4, 4, dtype=dtype), scheduler.timesteps[0]
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, instant)
        results.append(scheduler.step(sample, instant, sample).prev_sample.dtype)
    assert results[0] == results[1]


def test_what_a_scheduler_can_be_asked() -> None:
    ddim, heun, flow = (make(f"{one}Scheduler") for one in ("DDIM", "HeunDiscrete", "FlowMatchEulerDiscrete"))
    assert [schedules.nfe(one, 6) for one in (ddim, heun, make("PNDMScheduler"))] == [6, 11, 7]
    assert (schedules.calls_per_step(ddim), schedules.calls_per_step(heun)) == (1, 2)
    assert (schedules.time_range(ddim), schedules.time_range(flow)) == ((0.0, 999.0), (0.0, 1000.0))
    sigmas = schedules.sigmas_of(ddim)
    assert sigmas is not None
    assert sigmas.dtype == np.float64
    assert (np.diff(sigmas) > 0).all()
    assert sigmas[-1] == pytest.approx(float(((1 - ddim.alphas_cumprod) / ddim.alphas_cumprod)[-1] ** 0.5))
    assert schedules.sigmas_of(flow) is None


def test_the_first_noise_is_that_of_the_first_time() -> None:
    for spacing, extra in (("linspace", 0.0), ("leading", 1.0)):
        scheduler = make("EulerDiscreteScheduler", timestep_spacing=spacing)
        schedules.install_schedule(scheduler, (500, 20))
        sigmas = schedules.sigmas_of(scheduler)
        assert sigmas is not None
        assert float(scheduler.init_noise_sigma) == pytest.approx((sigmas[500] ** 2 + extra) ** 0.5)


def test_zero_terminal_snr_has_an_end() -> None:
    scheduler = make("DDIMScheduler", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    schedules.install_schedule(scheduler, (999, 998.5, 400, 0))
    run(scheduler)


def test_a_pipeline_runs_it() -> None:
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    for pipeline in (diffusers.DDIMPipeline, diffusers.DDPMPipeline):
        seen: list[float] = []
        hook = unet.register_forward_pre_hook(lambda module, given, seen=seen: seen.append(float(given[1])))
        pipe = pipeline(unet, diffusers.DDPMScheduler())
        pipe.set_progress_bar_config(disable=True)
        schedule = schedules.install_schedule(pipe.scheduler, (900.5, 310, 20))
        pipe(num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np")
        hook.remove()
        schedule.remove()
        assert seen == [900.5, 310.0, 20.0]


def test_it_costs_little() -> None:
    """Far below the 1 ms that even a tiny denoiser takes; the best of three, as other jobs run here."""
    scheduler, sample, best = make("DDIMScheduler"), torch.ones(1, 3, 8, 8), float("inf")
    for _ in range(3):
        began = time.perf_counter()
        schedule = schedules.install_schedule(scheduler, tuple(range(990, 0, -10)))
        for instant in scheduler.timesteps:
            scheduler.step(sample, instant, sample)
        schedule.remove()
        best = min(best, (time.perf_counter() - began) / 99)
    assert best < 1e-3


def test_warnings_go_to_the_caller() -> None:
    scheduler = make("DDIMScheduler")
    schedules.install_schedule(scheduler, TIMES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scheduler.set_timesteps(3)
    assert caught[0].filename == __file__
