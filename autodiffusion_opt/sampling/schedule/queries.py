"""What can be asked of a scheduler before times are put on it."""

from __future__ import annotations

import copy
import itertools
import math
import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.schedule.noise import Floats, times_of, training_sigmas
from autodiffusion_opt.sampling.schedule.specs import SPECS, is_flow, spec_of
from autodiffusion_opt.sampling.schedule.state import schedule_on
from autodiffusion_opt.space.model_info import Layout


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


def time_range(scheduler: Any) -> tuple[float, float]:
    """The lowest and the highest time that may be given: 0 .. T-1; flow matching: 0 .. T, but not 0."""
    if is_flow(scheduler, spec_of(scheduler)):
        return 0.0, float(scheduler.config.num_train_timesteps)
    return 0.0, float(len(scheduler.alphas_cumprod) - 1)


def check_times(scheduler: Any, times: Sequence[float]) -> None:
    """Raises UserError for times that the scheduler cannot take; the message says all that is wrong."""
    for time in times:
        if isinstance(time, bool) or not isinstance(time, numbers.Real) or not math.isfinite(time):
            raise UserError(f"a time must be a finite number; got {time!r}")
    listed = [float(time) for time in times]
    problems = [] if listed else ["at least one time must be given"]
    problems += _range_problems(scheduler, listed) + _order_problems(listed)
    broken = [time for time in listed if not time.is_integer()]
    if broken and not takes_continuous(scheduler):
        problems.append(f"{type(scheduler).__name__} takes integer times; got {broken[0]:g}: round it")
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
    spec = spec_of(scheduler)
    if steps < 1:
        raise UserError(f"steps must be 1 or more; got {steps}")
    copied = _untouched(scheduler)
    options = {}
    if getattr(copied.config, "use_dynamic_shifting", False):
        options["mu"] = getattr(copied.config, "max_shift", 1.15) if mu is None else mu
    with warnings.catch_warnings():  # diffusers' own, about NumPy
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            copied.set_timesteps(steps, **options)
        except ValueError as error:
            raise UserError(f"{type(copied).__name__} has no default times for {steps} steps: {error}") from error
    if is_flow(copied, spec) and not spec.flow:  # diffusers cuts these timesteps to integers, not their sigmas
        called = (copied.sigmas[:-1].double() * copied.config.num_train_timesteps).tolist()
    else:
        called = copied.timesteps.double().tolist()
    times = called if spec.layout == "once" else list(dict.fromkeys(called))  # the others call a time twice
    # Karras' and similar sigmas round to one time twice; then the times that the sigmas stand for.
    if _order_problems(times) and spec.last_sigma is not None and spec.layout == "once" and not is_flow(copied, spec):
        times = times_of(copied, copied.sigmas[: len(times)].double().numpy(), spec.between).tolist()
    low, high = time_range(copied)
    return tuple(min(max(time, low), high) for time in times)


def _untouched(scheduler: Any) -> Any:
    """A copy of the scheduler as diffusers made it: without a schedule, sharing nothing with it."""
    installed = schedule_on(scheduler)
    copied = object.__new__(type(scheduler))
    vars(copied).update(copy.deepcopy(vars(scheduler) if installed is None else installed.before))
    return copied


def _range_problems(scheduler: Any, times: list[float]) -> list[str]:
    low, high = time_range(scheduler)
    open_below = is_flow(scheduler, spec_of(scheduler))
    outside = [time for time in times if not low <= time <= high or (open_below and time == low)]
    if not outside:
        return []
    bounds = f"{'above' if open_below else 'from'} {low:g} to {high:g}"
    return [f"times must lie {bounds} for this model; got {', '.join(f'{time:g}' for time in outside)}"]


def _order_problems(times: list[float]) -> list[str]:
    """float32 is what the scheduler and the model see of a time."""
    for time, following in itertools.pairwise(np.array(times, dtype=np.float32).tolist()):
        if time == following:
            return [f"times must be distinct in float32; got {time:g} twice: remove one of them"]
        if time < following:
            return [f"times must go from noise to image, downwards; got {time:g} before {following:g}: sort them"]
    return []
