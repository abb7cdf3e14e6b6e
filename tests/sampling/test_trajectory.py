"""Local errors against a loop of our own over the network, on all kinds of prediction and of noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from peers.samples import load, sampler_of

from autodiffusion_opt import Candidate, UserError
from autodiffusion_opt.sampling.apply import applied, apply, remove
from autodiffusion_opt.sampling.generate import ImageSampler, noise_generator
from autodiffusion_opt.sampling.introspect import read_model_info
from autodiffusion_opt.sampling.load import load_pipeline
from autodiffusion_opt.sampling.trajectory import _first_order, local_errors
from autodiffusion_opt.space.local_errors import LocalErrors

pytestmark = pytest.mark.usefixtures("cache")
POINTS, IMAGES = 5, 3
TIMES = [999, 749, 500, 250, 0]


def measured(sampler: ImageSampler, **more: Any) -> LocalErrors:
    given = {"points": POINTS, "images": IMAGES} | more
    return local_errors(sampler, read_model_info(sampler.pipeline), **given).errors


def digits(scheduler: Any = None, **settings: Any) -> ImageSampler:
    """The embedded model in float64, so that a formula can be met to many digits; nothing is clipped."""
    pipeline = load_pipeline("digits", scheduler="ddim", scheduler_settings={"clip_sample": False} | settings)
    pipeline.unet.double()
    pipeline.unet.register_forward_pre_hook(lambda _, args: (args[0].double(), *args[1:]))
    if scheduler is not None:
        runs = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **runs)
    return ImageSampler(pipeline, micro_batch=2, batch_size=2)


def by_formula(pipeline: Any) -> tuple[np.ndarray, np.ndarray]:
    """DDIM's update, equation 12 of Song et al. (2021) with η = 0, from each point of its own trajectory."""
    alpha_bars = pipeline.scheduler.alphas_cumprod.double()[TIMES]
    alphas = torch.cat([alpha_bars.sqrt(), torch.ones(1)]).double()
    sigmas = torch.cat([(1 - alpha_bars).sqrt(), torch.zeros(1)]).double()
    noise = [
        torch.randn(1, 1, 8, 8, generator=noise_generator(0, index), dtype=torch.float64) for index in range(IMAGES)
    ]
    points, predicted = [torch.cat(noise)], []
    with torch.no_grad():
        for i, time in enumerate(TIMES):
            epsilon = pipeline.unet(points[-1], time).sample
            image = (points[-1] - sigmas[i] * epsilon) / alphas[i]
            predicted.append((image, epsilon))
            points.append(alphas[i + 1] * image + sigmas[i + 1] * epsilon)
    start = [float(alphas[j] ** 2 * (points[0] - points[j]).square().sum() / IMAGES) for j in range(POINTS)]
    errors = np.full((POINTS, POINTS + 1), np.inf)
    for i, (image, epsilon) in enumerate(predicted):
        for j in range(i + 1, POINTS + 1):
            apart = alphas[j] * image + sigmas[j] * epsilon - points[j]
            errors[i, j] = float(alphas[j] ** 2 * apart.square().sum() / IMAGES)
    return np.array(start), errors


def test_errors_are_those_of_single_ddim_steps_along_the_trajectory() -> None:
    sampler = digits()
    start, errors = by_formula(sampler.pipeline)
    given = measured(sampler)
    assert given.times.tolist() == TIMES
    np.testing.assert_allclose(given.start, start, rtol=1e-4)
    np.testing.assert_allclose(given.errors, errors, rtol=1e-4, atol=1e-6)
    assert errors[0, 2] > 0.1  # neighbours have none
    assert errors[0, 1] < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_errors_do_not_depend_on_the_studys_solver(scheduler: Any) -> None:
    """Also not on one that adds noise, nor on the order, the size of its samples, or a first step made twice."""
    given, plain = measured(digits(scheduler)), measured(digits())
    np.testing.assert_allclose(given.errors, plain.errors, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(given.start, plain.start, rtol=1e-4)


class Predicting(torch.nn.Module):
    """A network that predicts ε, asked for another quantity of the same meaning."""

    def __init__(self, unet: Any, scheduler: Any, kind: str) -> None:
        super().__init__()
        self.unet, self.alpha_bars, self.kind = unet, scheduler.alphas_cumprod.double(), kind
        self.config, self.dtype, self.device = unet.config, torch.float64, unet.device

    def forward(self, sample: Any, timestep: Any, **_: Any) -> Any:
        output = self.unet(sample, timestep)
        alpha, sigma = self.alpha_bars[timestep].sqrt(), (1 - self.alpha_bars[timestep]).sqrt()
        image = (sample - sigma * output.sample) / alpha
        output.sample = image if self.kind == "sample" else alpha * output.sample - sigma * image
        return output


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_errors_do_not_depend_on_what_the_network_predicts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = digits(prediction_type=kind)
    vars(sampler.pipeline)["unet"] = Predicting(sampler.pipeline.unet, sampler.pipeline.scheduler, kind)
    info = read_model_info(digits().pipeline)
    given = local_errors(sampler, info, points=POINTS, images=IMAGES).errors
    np.testing.assert_allclose(given.errors, measured(digits()).errors, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scheduler", [None, "unipc"])
def test_errors_of_flow_matching_are_those_of_eulers_steps(scheduler: str | None) -> None:
    """x + (σ_j - σ_i)·v, with v the secant between neighbours, which is what the network gave there."""
    settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if scheduler else {}
    pipeline = load("sd3", **({"scheduler": scheduler, "scheduler_settings": settings} if scheduler else {}))
    sampler = sampler_of(pipeline, "sd3", micro_batch=3, call={"guidance_scale": 1.0})
    given = measured(sampler)
    sigmas = np.append(given.times / 1000, 0.0)
    points = points_of(sampler, given.times)
    for i in range(len(sigmas) - 1):
        velocity = (points[i + 1] - points[i]) / (sigmas[i + 1] - sigmas[i])
        for j in range(i + 1, len(sigmas)):
            apart = points[i] + (sigmas[j] - sigmas[i]) * velocity - points[j]
            wanted = (1 - sigmas[j]) ** 2 * float((apart**2).sum()) / IMAGES
            assert given.errors[i, j] == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def points_of(sampler: ImageSampler, times: np.ndarray) -> list[np.ndarray]:
    """The latents before each step and after the last, seen from the pipeline's own callback."""
    seen: list[np.ndarray] = []

    def keep(_: Any, __: int, ___: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"].double().numpy())
        return {}

    pipeline = sampler.pipeline
    scheduler, pipeline.scheduler = pipeline.scheduler, FlowMatchEulerDiscreteScheduler()
    candidate = Candidate.from_time_steps(times.tolist())
    apply(pipeline, candidate)
    generators = [noise_generator(0, index) for index in range(IMAGES)]
    prompts = sampler.conditions.arguments(pipeline, list(range(IMAGES)))
    first = torch.cat([torch.randn(1, 4, 8, 8, generator=noise_generator(0, index)) for index in range(IMAGES)])
    pipeline(
        **prompts,
        guidance_scale=1.0,
        num_inference_steps=len(times),
        generator=generators,
        output_type="latent",
        callback_on_step_end=keep,
    )
    remove(pipeline)
    pipeline.scheduler = scheduler
    return [first.double().numpy(), *seen]


def test_guidance_is_part_of_the_trajectory_and_repeated_samples_are_counted_once() -> None:
    def of(scale: float) -> LocalErrors:
        return measured(sampler_of(load("dit"), "dit", micro_batch=3, call={"guidance_scale": scale}))

    weak, strong = of(1.5), of(4.0)
    assert np.isfinite(weak.start).all()
    assert strong.errors[0, -1] != pytest.approx(weak.errors[0, -1], rel=1e-3)


def test_the_pipeline_is_left_as_it_was_found_with_its_candidate() -> None:
    sampler = digits(DDPMScheduler)
    scheduler, candidate = sampler.pipeline.scheduler, Candidate.from_time_steps([900, 300])
    apply(sampler.pipeline, candidate)
    measured(sampler)
    assert applied(sampler.pipeline) == candidate
    assert remove(sampler.pipeline).scheduler is scheduler


@pytest.mark.slow
def test_errors_are_kept_on_disk_and_another_call_measures_its_own(cache: Path) -> None:
    def files() -> int:
        return len(list(cache.glob("local-errors-*")))

    told: list[Any] = []
    first = measured(digits(), progress=lambda *words: told.append(words))
    assert told == [("sampling the teacher's trajectory", 0, 3), ("sampling the teacher's trajectory", 2, 3)]
    again = measured(digits(), progress=lambda *words: pytest.fail("sampled again"))
    np.testing.assert_array_equal(first.errors, again.errors)
    assert files() == 1
    measured(digits(), seed=1)
    measured(digits(), points=4)
    measured(digits(), images=2)
    assert files() == 4


def test_what_is_no_trajectory_is_refused() -> None:
    with pytest.raises(UserError, match="one for LCMScheduler is distilled to few: leave dp out of start_from"):
        measured(digits(LCMScheduler))
    sampler = digits()
    with torch.no_grad():
        next(sampler.pipeline.unet.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="the trajectory of 5 steps must be finite: the model overflows"):
        measured(sampler)


def test_a_scheduler_that_clips_clips_here_too() -> None:
    clipped = measured(ImageSampler(load_pipeline("digits", scheduler="ddim"), micro_batch=2, batch_size=2))
    assert not np.allclose(clipped.errors[0, 2:], measured(digits()).errors[0, 2:], rtol=1e-3)
    assert isinstance(load_pipeline("digits").scheduler, DDIMScheduler | DDPMScheduler)


@pytest.mark.parametrize(
    "scheduler",
    [
        EDMEulerScheduler(),
        DDPMWuerstchenScheduler(),
        EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
    ],
)
def test_a_model_on_a_noise_scale_of_its_own_has_no_dynamic_programming(scheduler: Any) -> None:
    with pytest.raises(UserError, match=f"one for {type(scheduler).__name__} as it is configured has neither"):
        _first_order(scheduler)


def test_cogvideox_keeps_its_shifted_noise_levels() -> None:
    scheduler = CogVideoXDPMScheduler(prediction_type="v_prediction", snr_shift_scale=2.0)
    solver = _first_order(scheduler)
    assert torch.equal(solver.alphas_cumprod, scheduler.alphas_cumprod)
    assert solver.config.prediction_type == "v_prediction"
