"""What a pipeline does by itself: the times that its own call asks its scheduler for, recorded.

They are the baseline ``own``: what somebody gets who only lowers ``num_inference_steps``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.sampling.apply import GUIDANCE_SCALE, with_scheduler
from autodiffusion_opt.sampling.conditions import call_parameters
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.schedule import check_times, layout_of, own_times, shift_of, untouched
from autodiffusion_opt.space import cost

# A scheduler may make one or two steps more or fewer than it is asked for (some spacings, PLMS).
TRIED = (0, -1, 1, -2, 2)


@dataclass(frozen=True)
class OwnCall:
    """What one call of a pipeline told its scheduler.

    Attributes:
        times: at which it sampled, from noise to image.
        mu: of dynamic shifting; None where the pipeline gave none.
    """

    times: tuple[float, ...] = ()
    mu: float | None = None


class _Recorded(Exception):
    """Ends a call once it has told its scheduler what was to be recorded: nothing is sampled."""

    def __init__(self, call: OwnCall) -> None:
        super().__init__()
        self.call = call


def _record(scheduler: Any) -> None:
    """Have a scheduler, in the object alone, raise ``_Recorded`` from its ``set_timesteps``."""
    original = scheduler.set_timesteps

    @functools.wraps(original)  # pipelines look at its signature
    def recording(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        raise _Recorded(OwnCall(own_times(scheduler), kwargs.get("mu")))

    vars(scheduler)["set_timesteps"] = recording


@torch.inference_mode()
def record_own_call(sampler: ImageSampler, steps: int) -> OwnCall:
    """Call the pipeline, without any candidate, with ``num_inference_steps=steps``, as a study calls it.

    The call ends where its sampling would begin.

    Raises:
        UserError: for a number of steps that the scheduler has no times for.
    """
    name = type(sampler.pipeline.scheduler).__name__
    with with_scheduler(sampler.pipeline, untouched(sampler.pipeline.scheduler)), sampler.calls() as call:
        _record(sampler.pipeline.scheduler)
        try:
            call([0], 0, steps)
        except _Recorded as recorded:
            return recorded.call
        except ValueError as error:  # diffusers' own words
            raise UserError(f"{name} has no times of its own for {steps} steps: {reason_of(error)}") from None
    raise UserError(f"a call of {type(sampler.pipeline).__name__} does not use the pipeline's own scheduler")


def own_candidate(sampler: ImageSampler, steps: int, *, with_guidance: bool = False) -> Candidate:
    """What the pipeline does by itself with as many calls of the denoiser as ``steps`` steps of a candidate make.

    Args:
        sampler: the pipeline and how a study calls it.
        steps: of a candidate.
        with_guidance: whether the candidate has the call's guidance scale; without, what the call says holds anyway.

    Returns:
        A candidate with its own times; where no number of steps makes exactly as many calls, with the nearest below.

    Raises:
        UserError: where the pipeline's own times cannot be those of a candidate.
    """
    layout = layout_of(sampler.pipeline.scheduler)
    wanted, nearest = sum(cost.calls(layout, steps)), OwnCall()
    for asked in (steps + more for more in TRIED if steps + more >= 1):
        own = record_own_call(sampler, asked)
        if len(nearest.times) < len(own.times) and sum(cost.calls(layout, len(own.times))) <= wanted:
            nearest = own
        if len(own.times) == steps:
            break
    if not nearest.times:
        raise UserError(f"{type(sampler.pipeline).__name__} has no times of its own for {wanted} calls or fewer")
    check_times(sampler.pipeline.scheduler, nearest.times)
    scale = own_guidance_scale(sampler) if with_guidance else None
    return Candidate.from_time_steps(nearest.times, guidance_scale=scale)


def own_guidance_scale(sampler: ImageSampler) -> float | None:
    """What the pipeline's call has for a guidance scale, as a study calls it; None where it takes none."""
    parameter = call_parameters(sampler.pipeline).get(GUIDANCE_SCALE)
    scale = sampler.call.get(GUIDANCE_SCALE, None if parameter is None else parameter.default)
    return float(scale) if isinstance(scale, int | float) else None


def own_shift(sampler: ImageSampler) -> float:
    """The shift of a flow matching model: of its configuration, or as its own call computes it for the image's size."""
    scheduler = sampler.pipeline.scheduler
    dynamic = scheduler.config.get("use_dynamic_shifting", False)
    return shift_of(scheduler, record_own_call(sampler, 2).mu if dynamic else None)
