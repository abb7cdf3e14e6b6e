"""A schedule on a scheduler: it comes off without a trace, counts steps, and refuses what it cannot do."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peers.scheduler_runs import Stepper, called, set_own_times
from peers.schedulers import TWO_CALLS

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling import schedule as schedules
from autodiffusion_opt.sampling.schedule.solver_steps import ADAMS_BASHFORTH, uneven_adams_bashforth

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning"),  # torchsde's, of σ that diffusers rounds
]
TIMES = (950, 700, 690, 210, 40)
# The times of the denoiser calls and the steps that they belong to, for solvers with two calls in some step: the second
# call is made at the step's end.
ALPHA_BAR = np.cumprod(1 - np.linspace(0.00085, 0.012, 1000))
LOG_SIGMAS = np.log(1 / ALPHA_BAR - 1) / 2
# The time at which log σ is halfway between those of two times.
HALFWAY = np.interp([LOG_SIGMAS[list(pair)].mean() for pair in pairwise(TIMES)], LOG_SIGMAS, np.arange(1000)).tolist()
HEUN_CALLED = [950, 700, 700, 690, 690, 210, 210, 40, 40]
QUARTER_LOG_SIGMAS = [math.log(0.002 * (80 / 0.002) ** (time / 999)) / 4 for time in TIMES]
HALFWAY_CALLED = [950, HALFWAY[0], 700, HALFWAY[1], 690, HALFWAY[2], 210, HALFWAY[3], 40]
CALLED = {
    "CosineDPMSolverMultistepScheduler": [2 / math.pi * math.atan(0.3 * (500 / 0.3) ** (time / 999)) for time in TIMES],
    "DPMSolverSDEScheduler": HALFWAY_CALLED,
    "EDMDPMSolverMultistepScheduler": QUARTER_LOG_SIGMAS,
    "EDMEulerScheduler": QUARTER_LOG_SIGMAS,
    "DDPMWuerstchenScheduler": [*(time / 999 for time in TIMES), 0.0],
    "HeunDiscreteScheduler": HEUN_CALLED,
    "FlowMatchHeunDiscreteScheduler": HEUN_CALLED,
    "KDPM2AncestralDiscreteScheduler": HEUN_CALLED,
    "KDPM2DiscreteScheduler": HALFWAY_CALLED,
    "PNDMScheduler": [950, 700, 700, 690, 210, 40],
    "SCMScheduler": [*(math.atan2(time, 1000 - time) for time in TIMES), 0.0],
}
SEEN = {**{key: [0, 0, 1, 1, 2, 2, 3, 3, 4] for key in TWO_CALLS}, "PNDMScheduler": [0, 0, 1, 2, 3, 4]}
every_scheduler = pytest.mark.parametrize("name", schedules.accepted())


def has_times(scheduler: Any, name: str) -> None:
    assert scheduler.timesteps.tolist() == pytest.approx(CALLED.get(name, list(TIMES)), rel=1e-6)


def make(name: str, **config: Any) -> Any:
    if name in ("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler"):
        pytest.importorskip("torchsde")
    config = {"skip_prk_steps": True, **config} if name == "PNDMScheduler" else config
    return getattr(diffusers, name)(**config)


def run(scheduler: Any, schedule: schedules.InstalledSchedule | None = None, calls: int | None = None) -> list[int]:
    """Runs a scheduler; the step that the schedule said at each call."""
    sample, said, step = torch.ones(1, 3, 4, 4), [], Stepper(scheduler)
    for instant in called(scheduler)[:calls]:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, instant)
        said.append(schedule.step if schedule else 0)
        sample = step(torch.sin(sample), instant, sample)
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
    assert type(scheduler) is getattr(diffusers, name)
    assert str(values) == str(vars(scheduler))


@every_scheduler
def test_it_comes_off_in_the_middle(name: str) -> None:
    """After an exception, and the scheduler then works as if nothing had been."""
    scheduler, untouched = make(name), make(name)
    before = dict(vars(scheduler))
    schedule = schedules.install_schedule(scheduler, TIMES)
    run(scheduler, calls=2)
    with pytest.raises(RuntimeError, match="size of tensor"):
        Stepper(scheduler)(torch.ones(1, 3, 9, 9), scheduler.timesteps[2], torch.ones(1, 3, 4, 4))
    schedule.remove()
    assert same_state(before, vars(scheduler))
    for made in (scheduler, untouched):
        set_own_times(made, 4)
        run(made)
    assert torch.equal(scheduler.timesteps, untouched.timesteps)


@every_scheduler
def test_pipelines_see_what_they_always_saw(name: str, tmp_path: Path) -> None:
    scheduler, untouched = make(name), make(name)
    schedules.install_schedule(scheduler, TIMES)
    assert isinstance(scheduler, type(untouched))
    names = ("__name__", "__module__", "__qualname__", "__doc__")
    assert all(getattr(type(scheduler), name) == getattr(type(untouched), name) for name in names)
    assert scheduler.config == untouched.config
    for method in ("step", "set_timesteps"):
        now, before = (inspect.signature(getattr(made, method)) for made in (scheduler, untouched))
        added = now.parameters.keys() - before.parameters.keys()  # so that a pipeline hands the generators on
        assert added == ({"generator"} if (name, method) == ("DPMSolverSDEScheduler", "step") else set())
        assert [now.parameters[key] for key in before.parameters] == list(before.parameters.values())
    for folder, saved in (("with", scheduler), ("without", untouched)):
        saved.save_pretrained(tmp_path / folder)
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
    has_times(copied, name)


@every_scheduler
def test_the_times_are_those_given(name: str) -> None:
    scheduler = make(name)
    schedule = schedules.install_schedule(scheduler, TIMES)
    scheduler.set_timesteps(5, device="cpu")
    assert scheduler.num_inference_steps == 5  # also where there are more calls
    assert schedule.times == (950.0, 700.0, 690.0, 210.0, 40.0)
    has_times(scheduler, name)
    integer = (
        "CogVideoX",
        "DDIM",
        "DDPMS",
        "DEIS",
        "DPMSolverM",
        "DPMSolverSi",
        "LCM",
        "PNDM",
        "SASolver",
        "TCD",
        "Uni",
    )
    whole = name.startswith(integer)
    assert scheduler.timesteps.dtype == (torch.int64 if whole else torch.float32)
    if schedules.takes_continuous(scheduler):
        schedules.install_schedule(scheduler, (900.5, 3))
        assert scheduler.timesteps.dtype == torch.float32


@every_scheduler
def test_steps_are_counted(name: str) -> None:
    scheduler = make(name)
    schedule = schedules.install_schedule(scheduler, TIMES)
    assert run(scheduler, schedule) == SEEN.get(name, [0, 1, 2, 3, 4])
    assert schedule.step == 4
    scheduler.set_timesteps(5)
    assert schedule.step == 0


# Wuerstchen's pipelines, and its scheduler, begin at the noise.
FROM_NOISE = ("DDPMWuerstchenScheduler", "PNDMScheduler")


@pytest.mark.parametrize("name", [name for name in schedules.accepted() if name not in FROM_NOISE])
def test_image_to_image_starts_in_the_middle(name: str) -> None:
    scheduler = make(name)
    schedule = schedules.install_schedule(scheduler, TIMES)
    order = scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(2 * order)
    sample, said, step = torch.ones(1, 3, 4, 4), [], Stepper(scheduler)
    for instant in called(scheduler)[2 * order :]:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, instant)
        said.append(schedule.step)
        sample = step(sample, instant, sample)
    assert said == ([2, 2, 3, 3, 4] if name in TWO_CALLS else [2, 3, 4])


@pytest.mark.parametrize(
    "name", [name for name in schedules.accepted() if hasattr(getattr(diffusers, name), "set_begin_index")]
)
def test_after_image_to_image_the_first_step_comes_first_again(name: str) -> None:
    scheduler = make(name)
    schedule = schedules.install_schedule(scheduler, TIMES)
    scheduler.set_begin_index(2 * scheduler.order)
    assert schedule.step == 2
    scheduler.set_timesteps(5)
    assert (scheduler.begin_index, schedule.step) == (None, 0)


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
    has_times(scheduler, name)


def test_the_last_one_installed_counts() -> None:
    scheduler = make("DDIMScheduler")
    before = dict(vars(scheduler))
    first = schedules.install_schedule(scheduler, TIMES)
    second = schedules.install_schedule(scheduler, (900, 100))
    first.remove()
    assert scheduler.timesteps.tolist() == [900, 100]
    second.remove()
    assert same_state(before, vars(scheduler))


@pytest.mark.parametrize(("set_alpha_to_one", "end"), [(False, 0.0), (True, -1.0)])
def test_pndm_ends_at_time_zero_or_one_before_it(set_alpha_to_one: bool, end: float) -> None:
    """ᾱ of time 0 is not yet 1; where the last step goes to ᾱ = 1, its end is a time further."""
    schedule = schedules.install_schedule(make("PNDMScheduler", set_alpha_to_one=set_alpha_to_one), TIMES)
    assert schedule.end_time == end


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DEISMultistepScheduler"])
def test_a_last_step_of_no_length_answers_as_it_is_asked(name: str) -> None:
    """Pipelines ask for a tuple."""
    config = {} if name.startswith("DEIS") else {"final_sigmas_type": "sigma_min"}
    for return_dict in (True, False):
        scheduler = make(name, **config)
        schedules.install_schedule(scheduler, (700, 0))
        sample = torch.ones(1, 3, 4, 4)
        for instant in scheduler.timesteps:
            answer = scheduler.step(sample, instant, sample, return_dict=return_dict)
            sample = answer.prev_sample if return_dict else answer[0]
        assert isinstance(answer, tuple) is not return_dict
        assert torch.isfinite(sample).all()


@pytest.mark.parametrize(
    ("order", "count", "config", "orders"),
    [
        (2, 4, {}, [1, 2, 1, 1]),  # to σ = 0
        (3, 7, {"final_sigmas_type": "sigma_min"}, [1, 2, 3, 1, 2, 3, 1]),
        (3, 6, {"final_sigmas_type": "sigma_min", "lower_order_final": True}, [1, 2, 3, 1, 2, 1]),
        (3, 6, {"final_sigmas_type": "sigma_min", "lower_order_final": False}, [1, 2, 3, 1, 2, 3]),
        (3, 5, {"final_sigmas_type": "sigma_min", "lower_order_final": False}, [1, 2, 3, 1, 2]),
    ],
)
def test_blocks_of_singlestep_calls_end_in_time(
    order: int, count: int, config: dict[str, Any], orders: list[int]
) -> None:
    scheduler = make("DPMSolverSinglestepScheduler", solver_order=order, **config)
    schedules.install_schedule(scheduler, range(900, 900 - 100 * count, -100))
    assert scheduler.order_list == orders
    run(scheduler)


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_a_flow_may_start_at_pure_noise(name: str) -> None:
    """σ = 1, where log((1-σ)/σ) is -∞: diffusers' UniPC starts at 1 - 10⁻⁶ instead."""
    scheduler = make(name, use_flow_sigmas=True, prediction_type="flow_prediction")
    schedules.install_schedule(scheduler, (1000, 500, 100))
    assert 1 - float(scheduler.sigmas[0]) == pytest.approx(1e-6, rel=0.1)
    run(scheduler)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_uneven_coefficients_on_even_times_are_those_published(count: int) -> None:
    nodes = 500.0 + 20.0 * np.arange(count)
    np.testing.assert_allclose(uneven_adams_bashforth(nodes, 480.0), ADAMS_BASHFORTH[count - 1], atol=1e-12)
    np.testing.assert_allclose(uneven_adams_bashforth(nodes, 500.0), [1.0] + [0.0] * (count - 1), atol=1e-12)


@every_scheduler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_samples_keep_their_precision(name: str, dtype: torch.dtype) -> None:
    """As far as diffusers' own does: some of its schedulers answer in float32."""
    results = []
    for installed in (True, False):
        scheduler = make(name)
        if installed:
            schedules.install_schedule(scheduler, TIMES)
        set_own_times(scheduler, 5)
        sample, instant = torch.ones(1, 3, 4, 4, dtype=dtype), scheduler.timesteps[0]
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, instant)
        results.append(Stepper(scheduler)(sample, instant, sample).dtype)
    assert results[0] == results[1]


def test_the_first_noise_is_that_of_the_first_time() -> None:
    for spacing, extra in (("linspace", 0.0), ("leading", 1.0)):
        scheduler = make("EulerDiscreteScheduler", timestep_spacing=spacing)
        schedules.install_schedule(scheduler, (500, 20))
        sigmas = schedules.sigmas_of(scheduler)
        assert sigmas is not None
        assert float(scheduler.init_noise_sigma) == pytest.approx((sigmas[500] ** 2 + extra) ** 0.5)


@pytest.mark.parametrize("name", ["EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"])
def test_the_first_noise_of_edm_is_that_of_the_first_time(name: str) -> None:
    scheduler = make(name)
    schedule = schedules.install_schedule(scheduler, (500, 20))
    copied = copy.deepcopy(scheduler)
    sigma = 0.002 * (80 / 0.002) ** (500 / 999)
    assert scheduler.init_noise_sigma == copied.init_noise_sigma == pytest.approx((sigma**2 + 1) ** 0.5)
    schedule.remove()
    assert scheduler.init_noise_sigma == pytest.approx((80**2 + 1) ** 0.5)
    assert schedules.untouched(copied).init_noise_sigma == scheduler.init_noise_sigma


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


def test_warnings_go_to_the_caller() -> None:
    scheduler = make("DDIMScheduler")
    schedules.install_schedule(scheduler, TIMES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scheduler.set_timesteps(3)
    assert caught[0].filename == __file__
