"""Candidates in ComfyUI's custom sampling: the exported numbers, run by ComfyUI's conventions, give the same images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peers import comfyui, pipelines
from peers.samples import load

from autodiffusion_opt import Candidate, Step, UserError
from autodiffusion_opt.sampling.apply import install, watch_samples
from autodiffusion_opt.sampling.engines.comfyui import comfy_sampling, noise_levels

UNEVEN = Candidate.from_time_steps([901, 733, 404, 58])
FROM_THE_GREATEST = Candidate.from_time_steps([999, 500, 120])
ENDS_EARLY = Candidate.from_time_steps([870, 500, 120], end_time=7)
DDIM = diffusers.DDIMScheduler
DPM = diffusers.DPMSolverMultistepScheduler
EULER = diffusers.EulerDiscreteScheduler
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: DDIM(clip_sample=False),
    "ddim ending in the least noise": lambda: DDIM(clip_sample=False, set_alpha_to_one=False),
    "ddim, v": lambda: DDIM(clip_sample=False, prediction_type="v_prediction", **pipelines.BETAS),
    "euler": lambda: EULER(**pipelines.BETAS),
    "euler, leading": lambda: EULER(timestep_spacing="leading"),
    "heun": lambda: diffusers.HeunDiscreteScheduler(),
    "dpm++ 2m": lambda: DPM(**pipelines.BETAS),
    "lms": lambda: diffusers.LMSDiscreteScheduler(),
    "dpm++ 1": lambda: DPM(solver_order=1),
}


def sampled(pipeline: Any, candidate: Candidate, **call: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """What a pipeline makes: its last sample, the noise that it starts from, the arguments of its denoiser."""
    calls: list[dict[str, Any]] = []
    draws: list[torch.Tensor] = []
    denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
    taken = denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append({"args": args, **kwargs}), with_kwargs=True
    )
    last: list[torch.Tensor] = []
    with install(pipeline, candidate), torch.no_grad():
        watch_samples(pipeline, lambda before, after: (draws.append(before), last.append(after)))
        pipeline(**call, generator=torch.Generator().manual_seed(4), num_inference_steps=len(candidate.steps))
    taken.remove()
    return last[-1], draws[0], calls[0]


@pytest.mark.parametrize("candidate", [UNEVEN, FROM_THE_GREATEST, ENDS_EARLY], ids=["uneven", "greatest", "ends early"])
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Heun
def test_a_discrete_models_list_gives_the_same_images_in_comfyuis_sampling(name: str, candidate: Candidate) -> None:
    scheduler = SCHEDULERS[name]()
    pipeline = load("stable_diffusion").to(dtype=torch.float64)
    pipeline.scheduler = scheduler
    settings = comfy_sampling(pipeline, candidate)
    expected, start, given = sampled(pipeline, candidate, prompt="a cat", guidance_scale=1.0, output_type="latent")
    noise = start / scale_of(scheduler, candidate)

    def model(x: torch.Tensor, time: float) -> torch.Tensor:
        with torch.no_grad():
            output = pipeline.unet(x, torch.tensor(time), encoder_hidden_states=given["encoder_hidden_states"])
        return torch.as_tensor(output.sample)

    peer = comfyui.Discrete(model, scheduler.betas.numpy(), scheduler.config.prediction_type)
    made = comfyui.sample(peer, settings.to_dict(), noise)
    apart = float((made - expected).abs().max() / expected.abs().max())  # latents of random weights are of any size
    if settings.is_same:
        assert apart < 1e-5
    else:  # said by name, and not without reason
        assert "nearest" in settings.remarks[0]
        assert apart > 1e-6  # the same are nearer than 6e-7
    if candidate.end_time is None:
        assert settings.is_same or name == "lms"  # whose step to σ = 0 is Euler's in ComfyUI
    else:
        assert settings.is_same or name in ("dpm++ 2m", "heun")


def scale_of(scheduler: Any, candidate: Candidate) -> float:
    """How the pipeline scales its noise: by the greatest σ, or its root with 1, where samples are not kept at 1."""
    if not isinstance(scheduler, EULER | diffusers.HeunDiscreteScheduler | diffusers.LMSDiscreteScheduler):
        return 1.0
    sigma = comfyui.training_sigmas(scheduler.betas.numpy())[int(candidate.times[0])]
    return float(np.sqrt(sigma**2 + 1) if scheduler.config.timestep_spacing == "leading" else sigma)


@pytest.mark.parametrize("times", [[1000, 733.5, 404, 58], [930, 500, 120]], ids=["from noise", "from less"])
@pytest.mark.parametrize(("name", "multiplier"), [("sd3", 1000.0), ("flux", 1.0)])
def test_a_flow_models_list_gives_the_same_images_in_comfyuis_sampling(
    name: str, multiplier: float, times: list[float]
) -> None:
    pipeline, candidate = load(name), Candidate.from_time_steps(times)
    settings = comfy_sampling(pipeline, candidate)
    call = {**pipelines.CALLS.get(name, {}), "prompt": "a cat", "output_type": "latent"}
    if name == "sd3":
        call["guidance_scale"] = 1.0
    expected, noise, given = sampled(pipeline, candidate, **call)

    def model(x: torch.Tensor, time: float) -> torch.Tensor:
        arguments = {key: value for key, value in given.items() if key not in ("args", "hidden_states", "timestep")}
        with torch.no_grad():
            output = pipeline.transformer(
                hidden_states=x.float(), timestep=torch.tensor([time]), **arguments | {"return_dict": False}
            )
        return torch.as_tensor(output[0]).double()

    made = comfyui.sample(comfyui.Flow(model, multiplier), settings.to_dict(), noise.double())
    assert settings.is_same
    assert float((made - expected.double()).abs().max()) < 1e-5


def test_a_start_that_comfyui_has_not_makes_other_images() -> None:
    """That the list for AddNoise is needed at all."""
    torch.manual_seed(0)
    unet, scheduler = pipelines.unet().double(), DDIM(clip_sample=False)
    pipeline = diffusers.DDPMPipeline(unet, scheduler)
    settings = comfy_sampling(pipeline, ENDS_EARLY).to_dict()
    expected, noise, _ = sampled(pipeline, ENDS_EARLY, output_type="np")
    del settings["add_noise_sigmas"]

    def model(x: torch.Tensor, time: float) -> torch.Tensor:
        with torch.no_grad():
            return torch.as_tensor(unet(x, torch.tensor(time)).sample)

    made = comfyui.sample(comfyui.Discrete(model, scheduler.betas.numpy()), settings, noise)
    assert float((made - expected).abs().max()) > 1e-3


def test_what_comfyui_cannot_express_is_told_by_name() -> None:
    pipeline = diffusers.DDPMPipeline(pipelines.unet(), DDIM())
    steps = (Step(901.5), Step(640, removed=(1,)), Step(222, branch=0))
    settings = comfy_sampling(pipeline, Candidate(steps, None))
    said = "\n".join(settings.remarks)
    for part in ("layer sets", "640", "partial steps", "222", "901.5", "nearest integer", "clip_sample"):
        assert part in said
    assert not settings.is_same


def test_guidance_is_comfyuis_cfg_or_flux_guidance() -> None:
    candidate = Candidate.from_time_steps([900, 400], guidance_scale=2.5)
    assert comfy_sampling(load("sd3"), candidate).to_dict()["cfg"] == 2.5
    assert comfy_sampling(load("flux"), candidate).to_dict()["flux_guidance"] == 2.5


def test_a_scheduler_that_comfyui_has_no_sampler_for_is_refused() -> None:
    pipeline = diffusers.DDPMPipeline(pipelines.unet(), diffusers.TCDScheduler())
    with pytest.raises(UserError, match="ComfyUI has no sampler for TCDScheduler"):
        comfy_sampling(pipeline, UNEVEN)


@pytest.mark.parametrize("scheduler", [diffusers.SCMScheduler(), diffusers.DDPMWuerstchenScheduler()])
def test_so_is_one_without_noise_levels_of_its_own(scheduler: Any) -> None:
    pipeline = diffusers.DDPMPipeline(pipelines.unet(), scheduler)
    with pytest.raises(UserError, match=f"ComfyUI has no sampler for {type(scheduler).__name__}"):
        comfy_sampling(pipeline, Candidate.from_time_steps([900, 400]))


def test_inverted_flow_times_end_at_sigma_zero() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    assert noise_levels(scheduler, Candidate.from_time_steps([1000, 400])) == pytest.approx((1.0, 0.4, 0.0))
