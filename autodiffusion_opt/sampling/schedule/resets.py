"""What each scheduler remembers between its steps, set to how it is before the first."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from autodiffusion_opt.sampling.schedule.state import ScheduleState, called_times


def reset_multistep(scheduler: Any, schedule: ScheduleState) -> None:
    scheduler.model_outputs = [None] * scheduler.config.solver_order
    scheduler.lower_order_nums = 0


def reset_unipc(scheduler: Any, schedule: ScheduleState) -> None:
    reset_multistep(scheduler, schedule)
    scheduler.timestep_list = [None] * scheduler.config.solver_order
    scheduler.last_sample = None


def reset_sa(scheduler: Any, schedule: ScheduleState) -> None:
    kept = max(scheduler.config.predictor_order, scheduler.config.corrector_order - 1)
    past: dict[str, Any] = {name: [None] * kept for name in ("model_outputs", "timestep_list")}
    vars(scheduler).update(**past, lower_order_nums=0, last_sample=None)


def reset_singlestep(scheduler: Any, schedule: ScheduleState) -> None:
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


def reset_derivatives(scheduler: Any, schedule: ScheduleState) -> None:
    scheduler.derivatives = []


def reset_heun(scheduler: Any, schedule: ScheduleState) -> None:
    scheduler.prev_derivative = None
    scheduler.dt = None  # None: the next call is the first of its step


def reset_kdpm2(scheduler: Any, schedule: ScheduleState) -> None:
    """σ of the middle of each step where diffusers' step reads it: that of step k at 2k+1 and 2k+2."""
    sigmas, middles = scheduler.sigmas, (scheduler.sigmas[::2] * scheduler.sigmas[1::2]) ** 0.5
    middles[-1] = sigmas[-1]  # the last step is Euler's, of one call
    interpolated = torch.cat([sigmas[:1], middles.repeat_interleave(2)])[: len(sigmas)]
    vars(scheduler).update(sigmas_interpol=interpolated, sample=None)  # None: the next call is the first of its step


def reset_kdpm2_ancestral(scheduler: Any, schedule: ScheduleState) -> None:
    """σ_down = σ'²/σ of each step from σ to σ', σ_up and the middle √(σ σ_down) = σ'; those of step k at 2k."""
    starts, ends = scheduler.sigmas[::2], scheduler.sigmas[1::2]
    down = ends**2 / starts
    up = (ends**2 - down**2) ** 0.5
    of_steps = {"sigmas_down": down, "sigmas_up": up, "sigmas_interpol": ends}
    of_calls = {name: levels.repeat_interleave(2) for name, levels in of_steps.items()}
    vars(scheduler).update(**of_calls, sample=None)


def reset_cosine_dpm(scheduler: Any, schedule: ScheduleState) -> None:
    reset_multistep(scheduler, schedule)
    scheduler.noise_sampler = None


def reset_dpm_sde(scheduler: Any, schedule: ScheduleState) -> None:
    vars(scheduler).update(sample=None, mid_point_sigma=None, noise_sampler=None)


def reset_plms(scheduler: Any, schedule: ScheduleState) -> None:
    scheduler.prk_timesteps = np.array([])
    scheduler.plms_timesteps = np.array(called_times(schedule.sampled, "plms"))
    scheduler._timesteps = np.array(schedule.sampled[::-1])
    scheduler.ets = []  # slopes of up to four calls, oldest first
    scheduler.counter = 0
    scheduler.cur_model_output = 0
    scheduler.cur_sample = None


def reset_custom(scheduler: Any, schedule: ScheduleState) -> None:
    scheduler.custom_timesteps = True  # else diffusers looks up the previous time as t - T // N
