"""Partial steps in a pipeline: any solver, guidance, compiled layers, image to image, and after an exception."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from peers import partial_steps, pipelines

import autodiffusion_opt as ado
from autodiffusion_opt import Candidate, Step
from autodiffusion_opt.sampling.conditions import Labels, Prompts, Unconditional
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.schedule.state import steps_of_calls

CANDIDATE = Candidate((Step(900), Step(700, (), 1), Step(600, (), 0), Step(420), Step(150.0, (), 0), Step(20, (), 1)))
SCHEDULERS = ("ddim", "heun", "KDPM2DiscreteScheduler", "pndm", "dpmsolver++")


@contextlib.contextmanager
def straight_down(pipeline: Any, candidate: Candidate, peer: Callable[..., Any], layout: str) -> Iterator[None]:
    """The denoiser's forward replaced by a pass written straight down, full or partial by the number of its call."""
    steps = steps_of_calls(len(candidate.steps), layout)  # type: ignore[arg-type]
    calls = [(step, sum(earlier == step for earlier in steps[:index])) for index, step in enumerate(steps)]
    number, kept, own = [0], {}, pipeline.unet.forward  # kept: call within its step -> branch -> features

    def forward(sample: Any, timestep: Any, **given: Any) -> Any:
        step, call = calls[number[0] % len(calls)]
        number[0] += 1
        branch = candidate.branches[step]
        if branch is None and call == 0:
            kept.clear()
        keep = kept.setdefault(call, {}) if branch is None else kept[min(call, max(kept))]
        taken = {key: given[key] for key in ("encoder_hidden_states", "class_labels") if given.get(key) is not None}
        made = peer(pipeline.unet, keep, branch, sample, timestep, **taken)
        return (made,) if given.get("return_dict") is False else diffusers.models.unets.unet_2d.UNet2DOutput(made)

    pipeline.unet.forward = forward
    try:
        yield
    finally:
        pipeline.unet.forward = own
        del pipeline.unet.forward


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_images_with_guidance_and_any_solver_are_those_of_the_pass_written_straight_down(scheduler: str) -> None:
    pipeline = ado.load_pipeline(pipelines.saved("stable_diffusion"), scheduler=scheduler, device="cpu")
    whole = Candidate.from_time_steps([round(time) for time in CANDIDATE.times])
    candidate = Candidate(
        tuple(Step(time, (), branch) for time, branch in zip(whole.times, CANDIDATE.branches, strict=True))
    )
    sampler = ImageSampler(pipeline, Prompts(("a cat", "rain")), {"guidance_scale": 4.0}, micro_batch=2)
    layout = {"heun": "heun", "KDPM2DiscreteScheduler": "heun", "pndm": "plms"}.get(scheduler, "once")
    (images,) = sampler.images(candidate, [0, 1], seed=0)
    with straight_down(pipeline, candidate, partial_steps.unet_condition, layout):
        (expected,) = sampler.images(whole, [0, 1], seed=0)
    (full,) = sampler.images(whole, [0, 1], seed=0)
    assert (images.int() - expected.int()).abs().max() <= 1  # of 255: sums in another order
    assert not torch.equal(images, full)


def test_images_do_not_depend_on_what_was_made_before(digits: Any) -> None:
    fresh = ado.load_pipeline("digits", scheduler="ddim", device="cpu")
    (expected,) = ImageSampler(fresh, Unconditional(), micro_batch=4).images(CANDIDATE, range(4), seed=1)
    sampler = ImageSampler(digits, Unconditional(), micro_batch=4)
    list(sampler.images(CANDIDATE, range(4), seed=0))
    (images,) = sampler.images(CANDIDATE, range(4), seed=1)
    assert torch.equal(images, expected)
    (one,) = sampler.images(CANDIDATE, [2], seed=1)
    assert torch.equal(one[0], expected[2])


def test_an_exception_in_the_middle_of_a_call_leaves_nothing_behind(digits: Any) -> None:
    sampler = ImageSampler(digits, Unconditional(), micro_batch=4)
    (expected,) = sampler.images(CANDIDATE, range(4), seed=1)
    ado.apply(digits, CANDIDATE)
    try:
        handle = digits.unet.mid_block.register_forward_hook(_fail_second())
        with pytest.raises(RuntimeError, match="the second full step"):
            digits(batch_size=2, num_inference_steps=6)
        handle.remove()
        call = {"batch_size": 4, "output_type": "pt", "num_inference_steps": 6}
        first = digits(generator=torch.Generator().manual_seed(0), **call).images
        again = digits(generator=torch.Generator().manual_seed(0), **call).images
        assert (first == again).all()
    finally:
        ado.remove(digits)
    (images,) = sampler.images(CANDIDATE, range(4), seed=1)
    assert torch.equal(images, expected)


def _fail_second() -> Callable[..., None]:
    seen: list[int] = []

    def hook(*_: Any) -> None:
        seen.append(1)
        if len(seen) == 2:
            raise RuntimeError("the second full step")

    return hook


def test_a_dit_with_guidance_runs_partial_steps() -> None:
    pipeline = ado.load_pipeline("digits-dit", scheduler="ddim", device="cpu")
    sampler = ImageSampler(pipeline, Labels(range(10)), {"guidance_scale": 1.5}, micro_batch=4)
    (images,) = sampler.images(CANDIDATE, range(4), seed=0)
    (full,) = sampler.images(Candidate.from_time_steps(CANDIDATE.times), range(4), seed=0)
    assert not torch.equal(images, full)
    assert images.float().std() > 10


def test_compiled_layers_leave_the_decision_outside_of_what_is_compiled(digits: Any) -> None:
    (expected,) = ImageSampler(digits, Unconditional(), micro_batch=2).images(CANDIDATE, [0, 1], seed=0)
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = ado.load_pipeline("digits", scheduler="ddim", device="cpu")
    ado.compile_layers(compiled, backend=count)
    sampler = ImageSampler(compiled, Unconditional(), micro_batch=2)
    list(sampler.images(Candidate.from_time_steps([900, 500, 100]), [0, 1], seed=0))
    before = len(graphs)
    (images,) = sampler.images(CANDIDATE, [0, 1], seed=0)
    assert len(graphs) == before > 0
    assert (images.int() - expected.int()).abs().max() <= 1


def test_from_image_to_image_a_partial_step_that_comes_first_is_run_in_full() -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    plain = ado.load_pipeline(pipelines.saved("stable_diffusion"), scheduler="dpmsolver++", device="cpu")
    pipeline = StableDiffusionImg2ImgPipeline(**plain.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def image(candidate: Candidate) -> Any:
        ado.apply(pipeline, candidate)
        seed = torch.Generator().manual_seed(0)
        with pytest.warns(UserWarning, match="of the candidate's"):
            images = pipeline("rain", image=picture, strength=0.5, output_type="np", generator=seed).images
        ado.remove(pipeline)
        return images

    partial = Candidate((Step(900), Step(400, (), 0), Step(100, (), 0)))
    first_full = Candidate((Step(900), Step(400), Step(100, (), 0)))
    assert (image(partial) == image(first_full)).all()
    assert (image(partial) != image(Candidate.from_time_steps([900, 400, 100]))).any()
