"""A candidate for ComfyUI's custom sampling: noise levels for ``ManualSigmas``, a sampler for ``KSamplerSelect``.

ComfyUI's conventions (comfy/model_sampling.py and comfy_extras/nodes_custom_sampler.py, read in November 2026):

- a discrete model (``ModelSamplingDiscrete``) has σ_t = √((1-ᾱ_t)/ᾱ_t), log σ linear between integer times, and is
  called at the integer time whose log σ is nearest; the sample is x_0 + σ ε, the model sees it divided by √(1+σ²);
- a flow model (``ModelSamplingDiscreteFlow``, ``ModelSamplingFlux``) has σ = t/T after its shift, and is called at σ
  itself, whatever its shift; the sample is (1-σ) x_0 + σ ε;
- sampling starts from σ_1·ε (``noise_scaling``), a discrete model that starts at its greatest σ from √(1+σ_1²)·ε;
- the samplers are k-diffusion's: σ is the only clock.

diffusers starts from ε where its samples preserve variance, that is from √(1+σ_1²)·ε here, at any σ_1. ``AddNoise``
with one level of its own, before a ``SamplerCustomAdvanced`` without noise, makes that start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.schedule import install_schedule, untouched
from autodiffusion_opt.sampling.schedule.noise import sigmas_at, training_sigmas
from autodiffusion_opt.sampling.schedule.specs import is_flow, spec_of

# Factors nearer to 1 than this are none.
NO_FACTOR = 1e-6
# ComfyUI takes a σ this near to the model's greatest, as a share, for the greatest.
GREATEST = 1e-5
# ManualSigmas reads no exponents: decimals alone, enough for float32.
DECIMALS = 9
# Schedulers whose sample is scaled as k-diffusion's, x_0 + σ ε; the samples of the others preserve variance.
EXPLODING = ("Euler", "LMS", "Heun", "KDPM2", "DPMSolverSDE")

SAME_STEPS = "ComfyUI's sampler makes the same steps"
OWN_NOISE = "it draws noise at every step, and ComfyUI draws other noise: images are of the same kind, not the same"
NEAREST = "is the nearest that ComfyUI has; its steps are not the same"
# ComfyUI's sampler for each scheduler class, and how near it is; of the solvers with options see `_sampler`.
SAMPLERS: dict[str, tuple[str, str]] = {
    "DDIMScheduler": ("euler", SAME_STEPS),
    "DDIMParallelScheduler": ("euler", SAME_STEPS),
    "CogVideoXDDIMScheduler": ("euler", SAME_STEPS),
    "EulerDiscreteScheduler": ("euler", SAME_STEPS),
    "FlowMatchEulerDiscreteScheduler": ("euler", SAME_STEPS),
    "HeunDiscreteScheduler": ("heun", SAME_STEPS),
    "FlowMatchHeunDiscreteScheduler": ("heun", SAME_STEPS),
    "LMSDiscreteScheduler": ("lms", SAME_STEPS),
    "KDPM2DiscreteScheduler": ("dpm_2", NEAREST),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", OWN_NOISE),
    "KDPM2AncestralDiscreteScheduler": ("dpm_2_ancestral", OWN_NOISE),
    "DPMSolverSDEScheduler": ("dpmpp_sde", OWN_NOISE),
    "DDPMScheduler": ("ddpm", OWN_NOISE),
    "DDPMParallelScheduler": ("ddpm", OWN_NOISE),
    "LCMScheduler": ("lcm", OWN_NOISE),
    "FlowMatchLCMScheduler": ("lcm", OWN_NOISE),
    "PNDMScheduler": ("ipndm", NEAREST),
    "DEISMultistepScheduler": ("deis", NEAREST),
    "UniPCMultistepScheduler": ("uni_pc_bh2", NEAREST),
    "SASolverScheduler": ("sa_solver", NEAREST),
    "DPMSolverSinglestepScheduler": ("dpmpp_2m", NEAREST),
}


@dataclass(frozen=True)
class ComfySampling:
    """What to set in ComfyUI.

    Attributes:
        sampler: for ``KSamplerSelect``.
        sigmas: for ``ManualSigmas``: a noise level a step, then the one at the end; N + 1 of them.
        start: the level for the ``ManualSigmas`` of ``AddNoise``, which makes the candidate's start; None: ComfyUI's
            own start is the candidate's.
        end_factor: by which the latent that comes out is to be multiplied (``LatentMultiply``); 1: it is the
            candidate's.
        guidance_scale: for ``cfg``, or for ``FluxGuidance`` where the model has its guidance embedded.
        is_embedded: whether it has.
        is_same: whether all of the candidate is in these numbers: the images are the same but for rounding.
        remarks: sentences on what ComfyUI cannot express, or does otherwise.
    """

    sampler: str
    sigmas: tuple[float, ...]
    start: float | None
    end_factor: float
    guidance_scale: float | None
    is_embedded: bool
    is_same: bool
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; ``manual_sigmas`` are texts to paste."""
        values: dict[str, Any] = {
            "engine": "comfyui",
            "sampler_name": self.sampler,
            "sigmas": list(self.sigmas),
            "manual_sigmas": manual_sigmas(self.sigmas),
            "same_images": self.is_same,
        }
        if self.start is not None:
            values["add_noise_sigmas"] = manual_sigmas((self.start,))
        if abs(self.end_factor - 1) > NO_FACTOR:
            values["latent_multiply"] = self.end_factor
        if self.guidance_scale is not None:
            values["flux_guidance" if self.is_embedded else "cfg"] = self.guidance_scale
        return values | {"remarks": list(self.remarks)}


def comfy_sampling(pipeline: Any, candidate: Candidate) -> ComfySampling:
    """The settings of ComfyUI's custom sampling for a candidate.

    Args:
        pipeline: with the scheduler that the candidate was searched with.
        candidate: what it has beside times, an end and a guidance scale is told in ``remarks``.

    Raises:
        UserError: for a scheduler whose steps none of ComfyUI's samplers is near.
    """
    scheduler = untouched(pipeline.scheduler)
    _check_sampler(scheduler)
    sigmas = noise_levels(scheduler, candidate)
    sampler, nearness = _sampler(scheduler, sigmas)
    start, started = _start(scheduler, sigmas)
    end_factor = _end_factor(scheduler, sigmas[-1])
    left_out = _left_out(scheduler, candidate)
    remarks = [] if nearness == SAME_STEPS else [f"{type(scheduler).__name__}: {sampler!r} {nearness}"]
    remarks += [*left_out, *started, *_about_the_model(scheduler, candidate)]
    if abs(end_factor - 1) > NO_FACTOR:
        remarks.append(f"the last step ends at sigma {sigmas[-1]:.6g}: multiply the latent by {end_factor:.9f}")
    config = getattr(denoiser_of(pipeline), "config", None)
    return ComfySampling(
        sampler,
        sigmas,
        start,
        end_factor,
        candidate.guidance_scale,
        bool(getattr(config, "guidance_embeds", False)),
        nearness == SAME_STEPS and not left_out,
        tuple(remarks),
    )


def noise_levels(scheduler: Any, candidate: Candidate) -> tuple[float, ...]:
    """σ at each of a candidate's times, and at the end of the last step, in ComfyUI's convention; N + 1 of them."""
    copied = untouched(scheduler)
    schedule = install_schedule(copied, candidate.times, end_time=candidate.end_time)
    spec = spec_of(copied)
    if is_flow(copied, spec):
        levels = [time / copied.config.num_train_timesteps for time in candidate.times]
        last = float(copied.sigmas[-1])
        return (*levels, 1 - last if copied.config.get("invert_sigmas") else last)
    levels = sigmas_at(copied, candidate.times, spec.between).tolist()
    if spec.last_sigma is not None:
        return (*levels, float(copied.sigmas[-1]))
    last = float(schedule.alpha_bars[-1])
    return (*levels, math.sqrt((1 - last) / last))


def manual_sigmas(sigmas: tuple[float, ...]) -> str:
    """The text of ``ManualSigmas``."""
    return ", ".join(f"{sigma:.{DECIMALS}f}" for sigma in sigmas)


def _check_sampler(scheduler: Any) -> None:
    """Raises UserError for a scheduler that none of ComfyUI's samplers is near."""
    name = type(scheduler).__name__
    if name not in SAMPLERS and name != "DPMSolverMultistepScheduler":
        raise UserError(
            f"ComfyUI has no sampler for {name}: search with one of {', '.join(sorted(SAMPLERS))}, or "
            "DPMSolverMultistepScheduler"
        )


def _sampler(scheduler: Any, sigmas: tuple[float, ...]) -> tuple[str, str]:
    """The name of ComfyUI's sampler, and how near it is."""
    name, config = type(scheduler).__name__, scheduler.config
    if name == "DPMSolverMultistepScheduler":
        return _of_multistep(scheduler, sigmas)
    if name == "UniPCMultistepScheduler" and config.solver_type == "bh1":
        return "uni_pc", NEAREST
    sampler, nearness = SAMPLERS[name]
    if config.get("stochastic_sampling"):
        nearness = OWN_NOISE
    if sampler == "heun" and sigmas[-1] > 0:  # k-diffusion corrects a last step that does not go to σ = 0
        nearness = NEAREST
    if sampler == "lms" and sigmas[-1] == 0 and len(sigmas) > 2:  # ComfyUI's last step to σ = 0 is of order 1
        nearness = NEAREST
    return sampler, nearness


def _of_multistep(scheduler: Any, sigmas: tuple[float, ...]) -> tuple[str, str]:
    """DPM-Solver++ of order 2 by the midpoint rule is k-diffusion's 2M; of order 1, Euler. Others are only near.

    k-diffusion lowers the order in a last step to σ = 0 alone, diffusers where ``lower_order_final`` says so too.
    """
    config = scheduler.config
    if config.algorithm_type.startswith("sde"):
        return "dpmpp_2m_sde", OWN_NOISE
    if config.solver_order == 1:
        return "euler", SAME_STEPS
    is_2m = config.algorithm_type == "dpmsolver++" and config.solver_order == 2 and config.solver_type == "midpoint"
    lowers_alike = sigmas[-1] == 0 or len(sigmas) == 2 or not (config.lower_order_final or config.euler_at_final)
    is_discrete = not is_flow(scheduler, spec_of(scheduler))
    return "dpmpp_2m", SAME_STEPS if is_2m and lowers_alike and is_discrete else NEAREST


def _start(scheduler: Any, sigmas: tuple[float, ...]) -> tuple[float | None, list[str]]:
    """The level for ``AddNoise``, and the sentence on it; None and nothing where ComfyUI starts alike."""
    if is_flow(scheduler, spec_of(scheduler)):
        if abs(sigmas[0] - 1) <= NO_FACTOR:
            return None, []
        start, own = 1 / (1 - sigmas[0]), sigmas[0]  # the sampler multiplies a latent by 1-σ
        scale = 1.0
    else:
        greatest = float(training_sigmas(scheduler)[-1])
        preserving = math.sqrt(1 + sigmas[0] ** 2)
        own = preserving if sigmas[0] >= greatest * (1 - GREATEST) else sigmas[0]
        start = scale = preserving
        if type(scheduler).__name__.startswith(EXPLODING) and scheduler.config.get("timestep_spacing") != "leading":
            start = scale = sigmas[0]
        if abs(scale / own - 1) <= NO_FACTOR:
            return None, []
    return start, [
        f"ComfyUI starts from noise times {own:.6g}, the candidate from noise times {scale:.6g}: to start as the "
        f"candidate, make the latent by AddNoise with ManualSigmas '{start:.{DECIMALS}f}' from an empty latent, and "
        "give SamplerCustomAdvanced DisableNoise"
    ]


def _end_factor(scheduler: Any, sigma: float) -> float:
    """What makes the candidate's sample of the sample that comes out at a noise level."""
    if is_flow(scheduler, spec_of(scheduler)):
        return 1 - sigma  # ComfyUI divides by it
    return 1.0 if type(scheduler).__name__.startswith(EXPLODING) else 1 / math.sqrt(1 + sigma**2)


def _left_out(scheduler: Any, candidate: Candidate) -> list[str]:
    """Sentences on the parts of a candidate that no list of noise levels holds, and on clipping."""
    told = []
    removed = [f"{step.time:g}" for step in candidate.steps if step.removed]
    partial = [f"{step.time:g}" for step in candidate.steps if step.branch is not None]
    broken = [f"{time:g}" for time in candidate.times if not time.is_integer()]
    if removed:
        told.append(f"layer sets are left out (of the steps at {', '.join(removed)}): ComfyUI runs every layer")
    if partial:
        told.append(f"partial steps are left out (at {', '.join(partial)}): ComfyUI runs them in full")
    if broken and not is_flow(scheduler, spec_of(scheduler)):
        told.append(f"times between integers ({', '.join(broken)}): ComfyUI calls the model at the nearest integer")
    for key in ("clip_sample", "thresholding"):
        if scheduler.config.get(key):
            told.append(f"{key}: the scheduler cuts the predicted image to a range at every step, ComfyUI does not")
    return told


def _about_the_model(scheduler: Any, candidate: Candidate) -> list[str]:
    """Sentences on what ComfyUI's model must be, for the levels to be those that it was trained with."""
    config = scheduler.config
    if is_flow(scheduler, spec_of(scheduler)):
        return ["the levels have the model's shift in them: leave ModelSamplingSD3 and ModelSamplingFlux out"]
    told = []
    if config.get("trained_betas") is None and (config.beta_schedule, config.beta_start, config.beta_end) != (
        "scaled_linear",
        0.00085,
        0.012,
    ):
        told.append(
            f"the model was trained with {config.beta_schedule} betas from {config.beta_start:g} to "
            f"{config.beta_end:g}: ComfyUI must know it by these, and by default knows scaled_linear ones from 0.00085 "
            "to 0.012"
        )
    if config.prediction_type != "epsilon":
        told.append(f"the model predicts {config.prediction_type}: ComfyUI must know it so (ModelSamplingDiscrete)")
    if config.get("rescale_betas_zero_snr"):
        told.append("betas are rescaled to zero terminal SNR: turn zsnr on in ModelSamplingDiscrete")
    return told
