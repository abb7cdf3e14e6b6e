"""The accepted schedulers: one entry each, with what is particular to it.

To add one: a line in :data:`SPECS`, and an entry in ``tests/peers/schedulers.py`` that proves it on uneven steps
against a formula of its own. One that is not listed is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from autodiffusion_opt.errors import UserError, unknown
from autodiffusion_opt.sampling.schedule.noise import (
    Between,
    Floats,
    first_sigma,
    sigmas_at,
    tells_log_sigma,
    times_of,
    train_steps,
)
from autodiffusion_opt.sampling.schedule.objections import (
    REFUSED,
    continuous_v_objection,
    deis_objection,
    dpm_objection,
    pndm_objection,
    prediction_objection,
    scale_wise_objection,
    unipc_objection,
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
        stops_early: an end time may be given; not where a model is distilled to end in the image.
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


def _reset_multistep(scheduler: Any, schedule: ScheduleState) -> None:
    scheduler.model_outputs = [None] * scheduler.config.solver_order
    scheduler.lower_order_nums = 0


def _reset_unipc(scheduler: Any, schedule: ScheduleState) -> None:
    _reset_multistep(scheduler, schedule)
    scheduler.timestep_list = [None] * scheduler.config.solver_order
    scheduler.last_sample = None


def _reset_sa(scheduler: Any, schedule: ScheduleState) -> None:
    kept = max(scheduler.config.predictor_order, scheduler.config.corrector_order - 1)
    past: dict[str, Any] = {name: [None] * kept for name in ("model_outputs", "timestep_list")}
    vars(scheduler).update(**past, lower_order_nums=0, last_sample=None)


def _reset_singlestep(scheduler: Any, schedule: ScheduleState) -> None:
    scheduler.model_outputs = [None] * scheduler.config.solver_order
    scheduler.sample = None
    to_zero = float(scheduler.sigmas[-1]) == 0
    scheduler.order_list = singlestep_orders(scheduler.config, len(schedule.sampled), to_zero)


def singlestep_orders(config: Any, count: int, to_zero: bool) -> list[int]:
    """The order of each step: 1, 2, .., k, 1, 2, .., k, ..; the last is 1 if it would be k or goes to σ = 0.

    https://arxiv.org/abs/2206.00927, section 3.3: a block of k calls is one step of order k.
    """
    order = config.solver_order
    orders = [index % order + 1 for index in range(count)]
    whole = not config.lower_order_final and count % order == 0
    if to_zero or (orders[-1] == order and not whole):
        orders[-1] = 1
    return orders


def _reset_derivatives(scheduler: Any, schedule: ScheduleState) -> None:
    scheduler.derivatives = []


def _reset_heun(scheduler: Any, schedule: ScheduleState) -> None:
    scheduler.prev_derivative = None
    scheduler.dt = None  # None: the next call is the first of its step


def _reset_kdpm2(scheduler: Any, schedule: ScheduleState) -> None:
    """σ of the middle of each step where diffusers' step reads it: that of step k at 2k+1 and 2k+2."""
    sigmas, middles = scheduler.sigmas, (scheduler.sigmas[::2] * scheduler.sigmas[1::2]) ** 0.5
    middles[-1] = sigmas[-1]  # the last step is Euler's, of one call
    interpolated = torch.cat([sigmas[:1], middles.repeat_interleave(2)])[: len(sigmas)]
    vars(scheduler).update(sigmas_interpol=interpolated, sample=None)  # None: the next call is the first of its step


def _reset_kdpm2_ancestral(scheduler: Any, schedule: ScheduleState) -> None:
    """σ_down = σ'²/σ of each step from σ to σ', σ_up and the middle √(σ σ_down) = σ'; those of step k at 2k."""
    starts, ends = scheduler.sigmas[::2], scheduler.sigmas[1::2]
    down = ends**2 / starts
    up = (ends**2 - down**2) ** 0.5
    of_steps = {"sigmas_down": down, "sigmas_up": up, "sigmas_interpol": ends}
    of_calls = {name: levels.repeat_interleave(2) for name, levels in of_steps.items()}
    vars(scheduler).update(**of_calls, sample=None)


def _reset_plms(scheduler: Any, schedule: ScheduleState) -> None:
    scheduler.prk_timesteps = np.array([])
    scheduler.plms_timesteps = np.array(called_times(schedule.sampled, "plms"))
    scheduler._timesteps = np.array(schedule.sampled[::-1])
    scheduler.ets = []  # slopes of up to four calls, oldest first
    scheduler.counter = 0
    scheduler.cur_model_output = 0
    scheduler.cur_sample = None


def _reset_custom(scheduler: Any, schedule: ScheduleState) -> None:
    scheduler.custom_timesteps = True  # else diffusers looks up the previous time as t - T // N


def _quarter_log_sigmas(scheduler: Any, times: Floats) -> Floats:
    """c_noise = ln(σ)/4; https://arxiv.org/abs/2206.00364, table 1."""
    return np.log(sigmas_at(scheduler, times.tolist(), "log")) / 4 if tells_log_sigma(scheduler) else times


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
    "DDIMScheduler": SchedulerSpec(methods={"step": ddim_step, **_ON_ALPHA_BARS}),
    "DDPMWuerstchenScheduler": SchedulerSpec(integer=False, told=_shares, times_told=_times_of_shares, tells_end=True),
    "DDPMScheduler": SchedulerSpec(reset=_reset_custom, methods={"step": ddpm_step, **_ON_ALPHA_BARS}),
    "DEISMultistepScheduler": SchedulerSpec(last_sigma=first_sigma, reset=_reset_multistep, objection=deis_objection),
    "DPMSolverMultistepScheduler": SchedulerSpec(
        last_sigma=_configured_last, reset=_reset_multistep, objection=dpm_objection
    ),
    "DPMSolverSinglestepScheduler": SchedulerSpec(
        last_sigma=_configured_last, reset=_reset_singlestep, objection=dpm_objection
    ),
    "EDMDPMSolverMultistepScheduler": SchedulerSpec(
        integer=False,
        last_sigma=_configured_last,
        told=_quarter_log_sigmas,
        noise_of_first=True,
        reset=_reset_multistep,
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
        integer=False, last_sigma=_zero, flow=True, layout="heun", reset=_reset_heun
    ),
    "HeunDiscreteScheduler": SchedulerSpec(
        integer=False, between="linear", last_sigma=_zero, layout="heun", reset=_reset_heun
    ),
    "KDPM2AncestralDiscreteScheduler": SchedulerSpec(
        integer=False,
        between="linear",
        last_sigma=_zero,
        layout="heun",
        middle=lambda starts, ends: ends,
        reset=_reset_kdpm2_ancestral,
        objection=prediction_objection,
    ),
    "KDPM2DiscreteScheduler": SchedulerSpec(
        integer=False,
        between="linear",
        last_sigma=_zero,
        layout="heun",
        middle=_geometric_mean,
        reset=_reset_kdpm2,
        objection=prediction_objection,
    ),
    "LCMScheduler": SchedulerSpec(continuous=False, stops_early=False, reset=_reset_custom),
    "LMSDiscreteScheduler": SchedulerSpec(integer=False, between="linear", last_sigma=_zero, reset=_reset_derivatives),
    "PNDMScheduler": SchedulerSpec(
        layout="plms",
        reset=_reset_plms,
        methods={"step": pndm_step, "add_noise": add_noise},
        objection=pndm_objection,
    ),
    "SASolverScheduler": SchedulerSpec(
        last_sigma=first_sigma, reset=_reset_sa, methods={"add_noise": add_noise}, objection=deis_objection
    ),
    "SCMScheduler": SchedulerSpec(
        integer=False,
        stops_early=False,
        flow=True,
        told=_trigflow_angles,
        times_told=_times_of_angles,
        tells_end=True,
    ),
    "TCDScheduler": SchedulerSpec(continuous=False, stops_early=False, reset=_reset_custom),
    "UniPCMultistepScheduler": SchedulerSpec(
        last_sigma=_configured_last, reset=_reset_unipc, objection=unipc_objection
    ),
}


def spec_of(scheduler: Any) -> SchedulerSpec:
    """The scheduler's spec. Raises UserError for a class, or a configuration of it, that is not accepted."""
    name = type(scheduler).__name__
    if name in REFUSED:
        raise UserError(f"{name} {REFUSED[name]}")
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
