"""A pipeline's numbers, as a space needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autodiffusion_opt.sampling.layers import list_layers
from autodiffusion_opt.sampling.load import denoiser_of
from autodiffusion_opt.sampling.schedule import calls_per_step, nfe, sigmas_of, takes_continuous, time_range
from autodiffusion_opt.space.model_info import ModelInfo

FLOW_LOWEST = 1.0  # time 0 is the image itself
SEVERAL = 10  # steps; from two on, the extra calls do not depend on it


def read_model_info(pipeline: Any, *, layers: bool = False, ranking: Sequence[Sequence[int]] = ()) -> ModelInfo:
    """The time range and, where asked for, the layers of a pipeline (see :class:`ModelInfo`)."""
    scheduler = pipeline.scheduler
    low, high = time_range(scheduler)
    sigmas = sigmas_of(scheduler)
    listed = list_layers(denoiser_of(pipeline)) if layers else []
    return ModelInfo(
        train_steps=int(scheduler.config.num_train_timesteps),
        lowest=max(low, FLOW_LOWEST) if sigmas is None else low,
        highest=high,
        continuous=takes_continuous(scheduler),
        steps_offset=int(scheduler.config.get("steps_offset", 0)),
        sigmas=() if sigmas is None else tuple(float(sigma) for sigma in sigmas),
        calls_per_step=calls_per_step(scheduler),
        extra_calls=nfe(scheduler, SEVERAL) - calls_per_step(scheduler) * SEVERAL,
        layers=len(listed),
        removable=tuple(layer.index for layer in listed if layer.removable),
        ranking=tuple(tuple(third) for third in ranking),
        ays=align_your_steps(pipeline) if sigmas is not None else (),
    )


def align_your_steps(pipeline: Any) -> tuple[float, ...]:
    """The ten times that diffusers lists for this kind of pipeline (Sabour et al., 2024); empty for others."""
    from diffusers.schedulers import AysSchedules

    name = type(pipeline).__name__
    if name.startswith("StableDiffusionXL"):
        return tuple(float(time) for time in AysSchedules["StableDiffusionXLTimesteps"])
    if name.startswith("StableDiffusion") and not name.startswith("StableDiffusion3"):
        return tuple(float(time) for time in AysSchedules["StableDiffusionTimesteps"])
    return ()
