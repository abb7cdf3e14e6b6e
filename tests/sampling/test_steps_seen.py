"""At every call of the denoiser the schedule says the step that the call belongs to, and the layers follow it.

Nothing here calls ``scale_model_input`` for a pipeline that does not: DDIMPipeline and DDPMPipeline never do, and a
schedule that learns of a step only there removes layers one call late.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from marks import slow_but
from peers import pipelines
from peers.scheduler_runs import Stepper, called
from peers.schedulers import TWO_CALLS

from autodiffusion_opt.sampling.hooks import before_forward
from autodiffusion_opt.sampling.layers import install_bypass, list_layers
from autodiffusion_opt.sampling.schedule import accepted, install_schedule, layout_of
from autodiffusion_opt.space import cost

pytestmark = [
    # diffusers 0.42's and transformers' own
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning"),
    # LMS wants it for the right images; here only steps are looked at
    pytest.mark.filterwarnings("ignore:The .scale_model_input. function should be called:UserWarning"),
]

TIMES = (950, 700, 690, 210, 40)
ONCE = [0, 1, 2, 3, 4]
# Most solvers of two calls make one in the last step; PLMS makes its first step twice.
TWICE = {**{key: [0, 0, 1, 1, 2, 2, 3, 3, 4] for key in TWO_CALLS}, "PNDMScheduler": [0, 0, 1, 2, 3, 4]}


def make(name: str, **config: Any) -> Any:
    return getattr(diffusers, name)(**({"skip_prk_steps": True} if name == "PNDMScheduler" else {}), **config)


@pytest.mark.parametrize("name", accepted())
def test_a_loop_that_only_steps_is_at_each_step_in_turn(name: str) -> None:
    scheduler = make(name)
    schedule = install_schedule(scheduler, TIMES)
    for _ in range(2):  # again after set_timesteps
        scheduler.set_timesteps(5)
        sample, seen, step = torch.ones(1, 3, 4, 4), [], Stepper(scheduler)
        for time in called(scheduler):
            seen.append(schedule.step)
            sample = step(0.1 * sample, time, sample)
        assert seen == TWICE.get(name, ONCE)
        assert schedule.step == 4  # after the last call: still the last


@pytest.mark.parametrize("name", accepted())
def test_calls_are_counted_by_the_step_that_they_are_seen_at(name: str) -> None:
    scheduler = make(name)
    for steps in (1, 2, 5):
        schedule = install_schedule(scheduler, TIMES[:steps])
        sample, seen, step = torch.ones(1, 3, 4, 4), [], Stepper(scheduler)
        for time in called(scheduler):
            seen.append(schedule.step)
            sample = step(0.1 * sample, time, sample)
        assert cost.calls(layout_of(scheduler), steps) == tuple(seen.count(index) for index in range(steps))


def denoiser_of(pipeline: Any) -> Any:
    return pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet


def labelled(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Class labels for a denoiser whose pipeline gives it none."""
    return args, kwargs | {"class_labels": torch.zeros(len(args[0]), dtype=torch.long)}


@contextlib.contextmanager
def recorded(denoiser: Any, schedule: Any, layer: Any, seen: list[int], ran: list[int]) -> Iterator[None]:
    """The steps at which the denoiser is called, and at which a layer is computed."""
    block = denoiser.get_submodule(layer.path)
    inside = block.conv1 if hasattr(block, "conv1") else list(block.modules())[-1]  # not what a bypass still computes
    with (
        before_forward(denoiser, lambda *_: seen.append(schedule.step)),
        before_forward(inside, lambda *_: ran.append(schedule.step)),
    ):
        yield


def arguments(name: str) -> dict[str, Any]:
    given = dict(pipelines.CALLS.get(name, {}))
    if name in pipelines.TEXT:
        given["prompt"] = "a cat"
    if name == "dit":
        given["class_labels"] = [1]
    if name in ("consistency", "adm_guided"):
        given["class_labels"] = 1
    return given


def steps_of(pipeline: Any, name: str, times: tuple[float, ...]) -> tuple[list[int], list[int]]:
    """(steps seen by the denoiser, steps at which layer 0 ran) with layer 0 removed at the odd steps."""
    denoiser = denoiser_of(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    schedule = install_schedule(pipeline.scheduler, times)
    removed = [(0,) if step % 2 else () for step in range(len(times))]
    seen: list[int] = []
    ran: list[int] = []
    with (
        before_forward(denoiser, labelled) if name == "adm" else contextlib.nullcontext(),
        recorded(denoiser, schedule, list_layers(denoiser)[0], seen, ran),
        install_bypass(denoiser, removed, lambda: schedule.step),
    ):
        pipeline(
            **arguments(name),
            num_inference_steps=len(times),
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        )
    schedule.remove()
    return seen, ran


@pytest.mark.parametrize("name", slow_but(pipelines.BUILDERS, "ddim", "dit", "stable_diffusion", "flux"))
def test_a_pipeline_calls_its_denoiser_at_each_step_in_turn(name: str) -> None:
    pipeline = pipelines.BUILDERS[name]()
    seen, ran = steps_of(pipeline, name, TIMES)
    assert seen == TWICE.get(type(pipeline.scheduler).__name__, ONCE)
    assert ran == [step for step in seen if step % 2 == 0]


def _takes_what_stable_diffusion_gives(name: str) -> bool:
    """Its betas, and its step's output, time and sample: CogVideoX's DPM is given what it predicted before, too."""
    scheduler = getattr(diffusers, name)
    given = [*inspect.signature(scheduler.step).parameters][1:4]
    return "beta_start" in inspect.signature(scheduler).parameters and given == ["model_output", "timestep", "sample"]


WITH_BETAS = [name for name in accepted() if _takes_what_stable_diffusion_gives(name)]


@pytest.mark.parametrize("name", slow_but(WITH_BETAS, "DDIMScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler"))
def test_every_scheduler_of_a_pipeline_is_at_each_step_in_turn(name: str) -> None:
    pipeline = pipelines.BUILDERS["stable_diffusion"]()
    pipeline.scheduler = make(name, **pipelines.BETAS)
    seen, ran = steps_of(pipeline, "stable_diffusion", TIMES)
    assert seen == TWICE.get(name, ONCE)
    assert ran == [step for step in seen if step % 2 == 0]


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_a_pipeline_that_tells_no_time_beforehand_is_not_one_step_late(name: str) -> None:
    """The first layer is removed at step 1 alone."""
    pipeline = pipelines.BUILDERS[name]()
    seen, ran = steps_of(pipeline, name, (950, 700, 210))
    assert (seen, ran) == ([0, 1, 2], [0, 2])
