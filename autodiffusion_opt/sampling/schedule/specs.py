"""The accepted schedulers: one entry each, with what is particular to it.

To add one: a line in :data:`SPECS`, and an entry in ``tests/peers/schedulers.py`` that proves it on uneven steps
against a formula of its own. One that is not listed is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autodiffusion_opt.errors import UserError, unknown
from autodiffusion_opt.sampling.schedule.brownian import brownian_step
from autodiffusion_opt.sampling.schedule.noise import (
    Between,
    Floats,
    first_sigma,
    is_log_linear,
    sigmas_at,
    times_of,
    train_steps,
)
from autodiffusion_opt.sampling.schedule.objections import (
    continuous_v_objection,
    cosine_dpm_objection,
    deis_objection,
    dpm_objection,
    pndm_objection,
    prediction_objection,
    scale_wise_objection,
    unipc_objection,
)
from autodiffusion_opt.sampling.schedule.resets import (
    reset_cosine_dpm,
    reset_custom,
    reset_derivatives,
    reset_dpm_sde,
    reset_heun,
    reset_kdpm2,
    reset_kdpm2_ancestral,
    reset_multistep,
    reset_plms,
    reset_sa,
    reset_singlestep,
    reset_unipc,
)
from autodiffusion_opt.sampling.schedule.solver_steps import (
    add_noise,
    cogvideox_ddim_step,
    cogvideox_dpm_step,
    ddim_step,
    ddpm_step,
    pndm_step,
    scale_model_input,
    scale_noise,
)
from autodiffusion_opt.sampling.schedule.state import ScheduleState, called_times
from autodiffusion_opt.space.model_info import Layout

# How much less noise a last step that would have no length ends in, as a share: solvers divide by its length in
# log σ, and what else such a step does (UniPC's corrector, a block of a singlestep solver) is not to be lost.
LEAST_STEP = 1e-6
# Where a flow starts at pure noise, log(1-σ) is -∞; diffusers' UniPC stops as far short of it.
MOST_FLOW_SIGMA = 1 - 1e-6
# π/2 as diffusers rounds it: the time of pure noise of SCM.
FIRST_ANGLE = 1.57080


@dataclass(frozen=True)
class SchedulerSpec:
    """How one scheduler class takes times.

    Attributes:
        integer: diffusers keeps its ``timesteps`` as int64.
        continuous: the times may lie between integers; not where a model is distilled at integer times.
        stops_early: an end time may be given; not where a model is distilled to end in the image, nor where only a
            step to σ = 0 is made with one call.
        between: how σ is read between two integer times.
        last_sigma: σ after the last step, from the scheduler; None for a scheduler that works on ᾱ.
        layout: how often the denoiser is called in each step (``heun``: 2N-1 calls, ``plms``: N+1).
        middle: σ of the second call of a step, from those of its two ends; None: at its end.
        flow: flow matching, σ = t/T.
        told: what ``timesteps`` holds for times, where that is not the times themselves.
        times_told: the inverse, of what ``timesteps`` holds.
        tells_end: ``timesteps`` ends with where the last step ends, at which the denoiser is not called.
        noise_of_first: ``init_noise_sigma`` is that of the model's greatest σ; to be that of the first time.
        reset: sets what the scheduler remembers between steps to how it is before the first.
        adds_generator: its ``step`` takes a generator, which diffusers' does not: from a pipeline that hands on what a
            step takes.
        methods: methods replaced by ours, ``f(scheduler, schedule, ...)``; without ``step``, diffusers' own.
        objection: why a scheduler of this class, as it is configured, cannot be accepted; None if it can.
    """

    integer: bool = True
    continuous: bool = True
    stops_early: bool = True
    between: Between = "log"
    last_sigma: Callable[[Any], float] | None = None
    layout: Layout = "once"
    middle: Callable[[Floats, Floats], Floats] | None = None
    flow: bool = False
    told: Callable[[Any, Floats], Floats] = lambda scheduler, times: times
    times_told: Callable[[Any, Floats], Floats] = lambda scheduler, told: told
    tells_end: bool = False
    noise_of_first: bool = False
    reset: Callable[[Any, ScheduleState], None] = lambda scheduler, schedule: None
    adds_generator: bool = False
    methods: dict[str, Callable[..., Any]] = field(default_factory=dict)
    objection: Callable[[Any], str | None] = lambda scheduler: None


def _zero(scheduler: Any) -> float:
    return 0.0


def _configured_last(scheduler: Any) -> float:
    """``final_sigmas_type``: 0, or the least noise that the model was trained at."""
    kind = scheduler.config.final_sigmas_type
    if kind not in ("zero", "sigma_min"):
        raise UserError(f"final_sigmas_type must be zero or sigma_min; got {kind!r}")
    return 0.0 if kind == "zero" else first_sigma(scheduler)


def _quarter_log_sigmas(scheduler: Any, times: Floats) -> Floats:
    """c_noise = ln(σ)/4; https://arxiv.org/abs/2206.00364, table 1."""
    return np.log(sigmas_at(scheduler, times.tolist(), "log")) / 4 if is_log_linear(scheduler) else times


def _angle_shares(scheduler: Any, times: Floats) -> Floats:
    """2 atan(σ)/π, as Stable Audio's model is told."""
    return np.arctan(sigmas_at(scheduler, times.tolist(), "log")) * 2 / np.pi


def _inverted(scheduler: Any, times: Floats) -> Floats:
    """T - t for OmniGen, whose times go from 0 at the noise to T at the image; its own inverse."""
    return scheduler.config.num_train_timesteps - times if scheduler.config.invert_sigmas else times


def _trigflow_angles(scheduler: Any, times: Floats) -> Floats:
    """The angle a of x = cos(a) x_0 + sin(a) σ_d ε that has the noise of a flow at t: tan(a) = σ/(1-σ) with σ = t/T.

    https://arxiv.org/abs/2410.11081, section 3; Sana Sprint tells its flow model σ again. At T it is diffusers' 1.5708,
    a little more than π/2.
    """
    sigmas = times / scheduler.config.num_train_timesteps
    return np.where(sigmas == 1, FIRST_ANGLE, np.arctan2(sigmas, 1 - sigmas))


def _times_of_angles(scheduler: Any, angles: Floats) -> Floats:
    shares: Floats = np.sin(angles) / (np.sin(angles) + np.cos(angles))
    return shares * float(scheduler.config.num_train_timesteps)


def _shares(scheduler: Any, times: Floats) -> Floats:
    return times / (train_steps(scheduler) - 1)


def _times_of_shares(scheduler: Any, shares: Floats) -> Floats:
    return shares * (train_steps(scheduler) - 1)


def _geometric_mean(starts: Floats, ends: Floats) -> Floats:
    return np.sqrt(starts * ends)


# Of schedulers that work on ᾱ and count no steps of their own.
_ON_ALPHA_BARS: dict[str, Callable[..., Any]] = {
    "add_noise": add_noise,
    "scale_model_input": scale_model_input,
}

SPECS: dict[str, SchedulerSpec] = {
    "CogVideoXDDIMScheduler": SchedulerSpec(methods={"step": cogvideox_ddim_step, **_ON_ALPHA_BARS}),
    "CogVideoXDPMScheduler": SchedulerSpec(methods={"step": cogvideox_dpm_step, **_ON_ALPHA_BARS}),
    "CosineDPMSolverMultistepScheduler": SchedulerSpec(
        integer=False,
        last_sigma=_configured_last,
        told=_angle_shares,
        noise_of_first=True,
        reset=reset_cosine_dpm,
        methods={"step": brownian_step},
        objection=cosine_dpm_objection,
    ),
    "DDIMScheduler": SchedulerSpec(methods={"step": ddim_step, **_ON_ALPHA_BARS}),
    "DDPMWuerstchenScheduler": SchedulerSpec(integer=False, told=_shares, times_told=_times_of_shares, tells_end=True),
    "DDPMScheduler": SchedulerSpec(reset=reset_custom, methods={"step": ddpm_step, **_ON_ALPHA_BARS}),
    "DEISMultistepScheduler": SchedulerSpec(last_sigma=first_sigma, reset=reset_multistep, objection=deis_objection),
    "DPMSolverMultistepScheduler": SchedulerSpec(
        last_sigma=_configured_last, reset=reset_multistep, objection=dpm_objection
    ),
    "DPMSolverSDEScheduler": SchedulerSpec(
        integer=False,
        stops_early=False,
        between="linear",
        last_sigma=_zero,
        layout="heun",
        middle=_geometric_mean,
        reset=reset_dpm_sde,
        adds_generator=True,
        methods={"step": brownian_step},
        objection=prediction_objection,
    ),
    "DPMSolverSinglestepScheduler": SchedulerSpec(
        last_sigma=_configured_last, reset=reset_singlestep, objection=dpm_objection
    ),
    "EDMDPMSolverMultistepScheduler": SchedulerSpec(
        integer=False,
        last_sigma=_configured_last,
        told=_quarter_log_sigmas,
        noise_of_first=True,
        reset=reset_multistep,
        objection=prediction_objection,
    ),
    "EDMEulerScheduler": SchedulerSpec(
        integer=False,
        last_sigma=_configured_last,
        told=_quarter_log_sigmas,
        noise_of_first=True,
        objection=prediction_objection,
    ),
    "EulerAncestralDiscreteScheduler": SchedulerSpec(integer=False, between="linear", last_sigma=_zero),
    "EulerDiscreteScheduler": SchedulerSpec(
        integer=False,
        between="linear",
        last_sigma=_configured_last,
        told=_quarter_log_sigmas,
        objection=continuous_v_objection,
    ),
    "FlowMatchEulerDiscreteScheduler": SchedulerSpec(
        integer=False,
        last_sigma=_zero,
        flow=True,
        told=_inverted,
        times_told=_inverted,
        methods={"scale_noise": scale_noise},
    ),
    "FlowMatchLCMScheduler": SchedulerSpec(
        integer=False, stops_early=False, last_sigma=_zero, flow=True, objection=scale_wise_objection
    ),
    "FlowMatchHeunDiscreteScheduler": SchedulerSpec(
        integer=False, last_sigma=_zero, flow=True, layout="heun", reset=reset_heun
    ),
    "HeunDiscreteScheduler": SchedulerSpec(
        integer=False, between="linear", last_sigma=_zero, layout="heun", reset=reset_heun
    ),
    "KDPM2AncestralDiscreteScheduler": SchedulerSpec(
        integer=False,
        between="linear",
        last_sigma=_zero,
        layout="heun",
        middle=lambda starts, ends: ends,
        reset=reset_kdpm2_ancestral,
        objection=prediction_objection,
    ),
    "KDPM2DiscreteScheduler": SchedulerSpec(
        integer=False,
        between="linear",
        last_sigma=_zero,
        layout="heun",
        middle=_geometric_mean,
        reset=reset_kdpm2,
        objection=prediction_objection,
    ),
    "LCMScheduler": SchedulerSpec(continuous=False, stops_early=False, reset=reset_custom),
    "LMSDiscreteScheduler": SchedulerSpec(integer=False, between="linear", last_sigma=_zero, reset=reset_derivatives),
    "PNDMScheduler": SchedulerSpec(
        layout="plms",
        reset=reset_plms,
        methods={"step": pndm_step, "add_noise": add_noise},
        objection=pndm_objection,
    ),
    "SASolverScheduler": SchedulerSpec(
        last_sigma=first_sigma, reset=reset_sa, methods={"add_noise": add_noise}, objection=deis_objection
    ),
    "SCMScheduler": SchedulerSpec(
        integer=False,
        stops_early=False,
        flow=True,
        told=_trigflow_angles,
        times_told=_times_of_angles,
        tells_end=True,
    ),
    "TCDScheduler": SchedulerSpec(continuous=False, stops_early=False, reset=reset_custom),
    "UniPCMultistepScheduler": SchedulerSpec(last_sigma=_configured_last, reset=reset_unipc, objection=unipc_objection),
}


def spec_of(scheduler: Any) -> SchedulerSpec:
    """The scheduler's spec. Raises UserError for a class, or a configuration of it, that is not accepted."""
    name = type(scheduler).__name__
    if name not in SPECS:
        raise unknown("the scheduler", name, SPECS)
    objection = SPECS[name].objection(scheduler)
    if objection:
        raise UserError(f"{name} {objection}")
    return SPECS[name]


def is_flow(scheduler: Any, spec: SchedulerSpec) -> bool:
    """Whether the model is a flow matching one, also under a solver for both (``use_flow_sigmas``)."""
    return spec.flow or bool(getattr(scheduler.config, "use_flow_sigmas", False))


def model_times(scheduler: Any, spec: SchedulerSpec, times: Sequence[float], stop: float | None = None) -> Floats:
    """What ``timesteps`` holds, what the model is told at each call: as diffusers' pipelines read it. float64.

    The time of a second call in the middle of a step is read where log σ is linear, as diffusers reads it.
    """
    called = np.array(called_times(times, spec.layout))
    if spec.middle is not None:
        sigmas = sigmas_at(scheduler, times, spec.between)
        called[1::2] = times_of(scheduler, spec.middle(sigmas[:-1], sigmas[1:]), "log")
    if spec.tells_end:
        called = np.append(called, 0.0 if stop is None else stop)
    return spec.told(scheduler, called)


def called_sigmas(scheduler: Any, spec: SchedulerSpec, times: Sequence[float], stop: float | None = None) -> Floats:
    """σ of each call, then σ after the last step (at time ``stop``), in the layout that diffusers' ``step`` reads.

    float64.

    Shape (N + 1,); for Heun's method (2N,), the σ of all but the first time and the end twice.
    """
    assert spec.last_sigma is not None
    if is_flow(scheduler, spec):
        sigmas = np.array(times, dtype=np.float64) / scheduler.config.num_train_timesteps  # σ = t/T
        last = 0.0 if stop is None else stop / scheduler.config.num_train_timesteps
        if not spec.flow:  # a solver for both kinds, which takes log((1-σ)/σ)
            sigmas = sigmas.clip(max=MOST_FLOW_SIGMA)
    else:
        sigmas = sigmas_at(scheduler, times, spec.between)
        last = spec.last_sigma(scheduler) if stop is None else float(sigmas_at(scheduler, [stop], spec.between)[0])
    last = min(last, sigmas[-1] * (1 - LEAST_STEP))
    inner = np.repeat(sigmas[1:], 2 if spec.layout == "heun" else 1)
    called = np.concatenate([sigmas[:1], inner, [last]])
    return 1 - called if scheduler.config.get("invert_sigmas", False) else called
