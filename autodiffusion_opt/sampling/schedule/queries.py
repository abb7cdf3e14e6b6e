"""What can be asked of a scheduler before times are put on it."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.sampling.schedule.noise import (
    OWN_SIGMAS,
    Floats,
    alpha_bars_at,
    is_log_linear,
    sigmas_at,
    times_of,
    train_steps,
    training_sigmas,
)
from autodiffusion_opt.sampling.schedule.specs import SPECS, is_flow, spec_of
from autodiffusion_opt.sampling.schedule.state import ScheduleState, schedule_on
from autodiffusion_opt.space.model_info import Layout

# Times that differ by less are of the same noise.
SAME_NOISE = 1e-6


def accepted() -> tuple[str, ...]:
    """The names of the scheduler classes that take times, in alphabetical order."""
    return tuple(sorted(SPECS))


def check_scheduler(scheduler: Any) -> None:
    """Raises UserError for a scheduler that does not take times, with the list of those that do."""
    spec_of(scheduler)


def layout_of(scheduler: Any) -> Layout:
    """How often each step calls the denoiser; :mod:`autodiffusion_opt.space.cost` counts with it."""
    return spec_of(scheduler).layout


def takes_continuous(scheduler: Any) -> bool:
    """Whether times between integers may be given. LCM and TCD are distilled at integer times."""
    return spec_of(scheduler).continuous


def stops_early(scheduler: Any) -> bool:
    """Whether an end time may be given."""
    return spec_of(scheduler).stops_early


def time_range(scheduler: Any) -> tuple[float, float]:
    """The lowest and the highest time that may be given: 0 .. T-1 (:func:`ends_at_zero`: not 0); a flow's: to T."""
    if is_flow(scheduler, spec_of(scheduler)):
        return 0.0, float(scheduler.config.num_train_timesteps)
    return 0.0, float(train_steps(scheduler) - 1)


def ends_at_zero(scheduler: Any) -> bool:
    """Whether time 0 is where sampling ends, and no time to call the denoiser at: flow matching, Wuerstchen."""
    spec = spec_of(scheduler)
    return is_flow(scheduler, spec) or spec.tells_end


def check_times(scheduler: Any, times: Sequence[float], end_time: float | None = None) -> None:
    """Raises UserError for times, or an end, that the scheduler cannot take; the message says all that is wrong."""
    for time in (*times, *([] if end_time is None else [end_time])):
        if isinstance(time, bool) or not isinstance(time, numbers.Real) or not math.isfinite(time):
            raise UserError(f"a time must be a finite number; got {time!r}")
    listed = [float(time) for time in times]
    problems = [] if listed else ["at least one time must be given"]
    problems += _range_problems(scheduler, listed) + _order_problems(listed)
    broken = [time for time in listed if not time.is_integer()]
    if broken and not takes_continuous(scheduler):
        problems.append(f"{type(scheduler).__name__} takes integer times; got {broken[0]:g}: round it")
    if end_time is not None:
        problems += _end_problems(scheduler, listed, float(end_time))
    if problems:
        raise UserError("; ".join(problems))


def sigmas_of(scheduler: Any) -> Floats | None:
    """σ_t = √((1-ᾱ_t)/ᾱ_t) at the training times, ascending; shape (T,), float64. None for flow matching."""
    return None if is_flow(scheduler, spec_of(scheduler)) else training_sigmas(scheduler)


def default_times(scheduler: Any, steps: int, *, mu: float | None = None) -> tuple[float, ...]:
    """diffusers' own times for that many steps, as its ``set_timesteps`` makes them; nothing is changed.

    Args:
        scheduler: an accepted scheduler.
        steps: how many; some spacings make one more or fewer of it.
        mu: for dynamic shifting, the shift that goes with the image's size; ``max_shift`` if not given.

    Raises:
        UserError: for a scheduler that is not accepted, or a number of steps that it does not have.
    """
    spec_of(scheduler)
    if steps < 1:
        raise UserError(f"steps must be 1 or more; got {steps}")
    copied = untouched(scheduler)
    options: dict[str, Any] = {}
    if getattr(copied.config, "use_dynamic_shifting", False):
        options["mu"] = getattr(copied.config, "max_shift", 1.15) if mu is None else mu
    if steps != 2 and "intermediate_timesteps" in inspect.signature(copied.set_timesteps).parameters:
        options["intermediate_timesteps"] = None  # SCM's second time, for two steps alone
    with warnings.catch_warnings():  # diffusers' own, about NumPy
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            copied.set_timesteps(steps, **options)
        except ValueError as error:
            raise UserError(
                f"{type(copied).__name__} has no default times for {steps} steps: {reason_of(error)}"
            ) from error
    return own_times(copied)


def own_times(scheduler: Any) -> tuple[float, ...]:
    """The times that diffusers' own ``set_timesteps`` has put on a scheduler, one a step, from noise to image.

    Where it has noise levels of its own (Karras', say), the times at which the model was trained with them.
    """
    spec = spec_of(scheduler)
    if is_flow(scheduler, spec) and not spec.flow:  # diffusers cuts these timesteps to integers, not their sigmas
        called = (scheduler.sigmas[:-1].double() * scheduler.config.num_train_timesteps).tolist()
    elif is_log_linear(scheduler) or any(scheduler.config.get(key) for key in OWN_SIGMAS):
        # diffusers rounds the times of own noise levels, some to one
        sigmas = scheduler.sigmas[: len(scheduler.timesteps)].double().numpy()
        called = times_of(scheduler, sigmas, spec.between).tolist()
    else:
        told = scheduler.timesteps[:-1] if spec.tells_end else scheduler.timesteps
        called = spec.times_told(scheduler, told.double().numpy()).tolist()
    if spec.layout == "heun":  # the second call of a step is between these
        called = called[::2]
    times = called if spec.layout != "plms" else list(dict.fromkeys(called))  # which calls a time twice
    low, high = time_range(scheduler)
    return tuple(min(max(time, low), high) for time in times)


def first_step(scheduler: Any, schedule: ScheduleState, strength: float) -> int:
    """The index of the step that image to image begins with, for a ``strength`` from 0 (the image) to 1 (noise).

    It is the first at which there is no more noise than where the model's own schedule begins for this strength: the
    share ``strength`` of the T training times, 0 .. ``strength``·T - 1; for flow matching, ``strength``·T moved by the
    model's shift. On diffusers' own times it is diffusers' own choice. At least the last step is run.
    """
    share, steps = min(max(float(strength), 0.0), 1.0), train_steps(scheduler)
    if is_flow(scheduler, spec_of(scheduler)):
        shift = shift_of(scheduler, schedule.mu)
        highest = steps * shift * share / (1 + (shift - 1) * share)
    else:
        highest = steps * share - 1
    noisier = [time for time in schedule.times if time > highest + SAME_NOISE]
    return min(len(noisier), len(schedule.times) - 1)


def shift_of(scheduler: Any, mu: float | None = None) -> float:
    """The shift s of a flow matching model: its own schedule's noise levels σ become s·σ / (1 + (s - 1)·σ).

    Args:
        scheduler: of a flow matching model.
        mu: for dynamic shifting, what goes with the image's size; ``max_shift`` if not given.

    Returns:
        1 for a model that is no flow matching one.
    """
    config = scheduler.config
    if not is_flow(scheduler, spec_of(scheduler)):
        return 1.0
    if not config.get("use_dynamic_shifting", False):
        return float(config.get("shift") or config.get("flow_shift") or 1.0)
    chosen = float(config.get("max_shift", 1.15) if mu is None else mu)
    return math.exp(chosen) if config.get("time_shift_type", "exponential") == "exponential" else chosen


def untouched(scheduler: Any) -> Any:
    """A copy of the scheduler as diffusers made it: without a schedule, sharing nothing with it."""
    installed = schedule_on(scheduler)
    copied = object.__new__(type(scheduler) if installed is None else installed.kind)
    vars(copied).update(copy.deepcopy(vars(scheduler) if installed is None else installed.before))
    return copied


def _range_problems(scheduler: Any, times: list[float]) -> list[str]:
    low, high = time_range(scheduler)
    open_below = ends_at_zero(scheduler)
    outside = [time for time in times if not low <= time <= high or (open_below and time == low)]
    if not outside:
        return []
    bounds = f"{'above' if open_below else 'from'} {low:g} to {high:g}"
    return [f"times must lie {bounds} for this model; got {', '.join(f'{time:g}' for time in outside)}"]


def _end_problems(scheduler: Any, times: list[float], end: float) -> list[str]:
    if not spec_of(scheduler).stops_early:
        return [f"{type(scheduler).__name__} samples a model that is distilled to end in the image: leave end_time out"]
    low, last = time_range(scheduler)[0], times[-1] if times else np.inf
    if not low <= end < last:
        return [f"end_time must lie from {low:g} to below the last step's time, {last:g}; got {end:g}"]
    return []


def _order_problems(times: list[float]) -> list[str]:
    """float32 is what the scheduler and the model see of a time."""
    for time, following in itertools.pairwise(np.array(times, dtype=np.float32).tolist()):
        if time == following:
            return [f"times must be distinct in float32; got {time:g} twice: remove one of them"]
        if time < following:
            return [f"times must go from noise to image, downwards; got {time:g} before {following:g}: sort them"]
    return []


def alpha_bar_at(scheduler: Any, timestep: Any) -> torch.Tensor:
    """ᾱ at a time that a pipeline hands over, also between integers, as the scheduler's own step has it; shape ().

    Args:
        scheduler: of a variance preserving model; the times that are installed on it need not be integers.
        timestep: one of its times.

    Raises:
        UserError: for a scheduler that is not accepted or of a flow matching model, and a time that is not installed.
    """
    spec, schedule = spec_of(scheduler), schedule_on(scheduler)
    if is_flow(scheduler, spec):
        raise UserError(f"{type(scheduler).__name__} is for flow matching here, which has no ᾱ")
    if schedule is not None and len(schedule.alpha_bars):
        return schedule.alpha_bars_from(timestep)[0]
    if spec.last_sigma is None:
        return alpha_bars_at(scheduler, [float(timestep)])[0]
    (sigma,) = sigmas_at(scheduler, [float(timestep)], spec.between)
    return torch.tensor(1 / (1 + sigma**2), dtype=torch.float64)
