"""A pipeline's numbers, as a space needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.branch_costs import BranchCost, branch_costs
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.example_call import example_inputs, learn_layers
from autodiffusion_opt.sampling.layers import Layer, list_layers, total_flops
from autodiffusion_opt.sampling.layers.example_inputs import can_make_inputs
from autodiffusion_opt.sampling.schedule import (
    ends_at_zero,
    layout_of,
    sigmas_of,
    stops_early,
    takes_continuous,
    time_range,
    train_steps,
)
from autodiffusion_opt.space.model_info import ModelInfo

FLOW_LOWEST = 1.0  # time 0 is the image itself


def read_model_info(
    pipeline: Any,
    *,
    need_layers: bool = False,
    need_branches: bool = False,
    ranking: Sequence[Sequence[int]] = (),
    shift: float = 1.0,
    call: Mapping[str, Any] | None = None,
) -> ModelInfo:
    """The time range, the solver's calls and the layers of a pipeline (see :class:`ModelInfo`).

    Layers are not counted where the denoiser has none of a known kind, or its inputs cannot be made.

    Args:
        pipeline: with an accepted scheduler.
        need_layers: whether it is an error where layers cannot be counted.
        need_branches: whether the cost of partial steps is wanted, and an error where there are none.
        ranking: of the layers.
        shift: of a flow matching model (:func:`~autodiffusion_opt.sampling.own.own_shift`).
        call: arguments of the pipeline's call, on which the size of the denoiser's inputs depends.

    Raises:
        UserError: for a scheduler that is not accepted; with ``need_layers``, for layers that cannot be counted; with
            ``need_branches``, for a denoiser without branches.
    """
    scheduler = pipeline.scheduler
    low, high = time_range(scheduler)
    sigmas = sigmas_of(scheduler)
    layers, flops = _counted(pipeline, need_layers, call)
    branches = _branches(pipeline, call) if need_branches else []
    return ModelInfo(
        train_steps=train_steps(scheduler),
        lowest=max(low, FLOW_LOWEST) if ends_at_zero(scheduler) else low,
        highest=high,
        continuous=takes_continuous(scheduler),
        stops_early=stops_early(scheduler),
        steps_offset=int(scheduler.config.get("steps_offset", 0)),
        sigmas=() if sigmas is None else tuple(float(sigma) for sigma in sigmas),
        shift=shift,
        layout=layout_of(scheduler),
        layers=len(layers),
        removable=tuple(layer.index for layer in layers if layer.removable),
        flops=flops,
        layer_flops=tuple(layer.saved_flops for layer in layers),
        branch_flops=tuple(branch.flops for branch in branches),
        branch_layers=tuple(branch.layers for branch in branches),
        ranking=tuple(tuple(third) for third in ranking),
        ays=align_your_steps(pipeline) if sigmas is not None else (),
    )


def _counted(pipeline: Any, need_layers: bool, call: Mapping[str, Any] | None) -> tuple[list[Layer], int]:
    """The layers of a denoiser and the FLOPs of a forward pass; none where they cannot be counted."""
    denoiser = denoiser_of(pipeline)
    try:
        learn_layers(pipeline, call)
        return list_layers(denoiser), total_flops(denoiser)
    except UserError:
        if need_layers:
            raise
        return [], 0


def _branches(pipeline: Any, call: Mapping[str, Any] | None) -> list[BranchCost]:
    """The cost of partial steps. Raises UserError for a denoiser that has none."""
    denoiser = denoiser_of(pipeline)
    return branch_costs(denoiser, None if can_make_inputs(denoiser) else example_inputs(pipeline, call))


def align_your_steps(pipeline: Any) -> tuple[float, ...]:
    """The ten times that diffusers lists for this kind of pipeline (Sabour et al., 2024); empty for others."""
    from diffusers.schedulers import AysSchedules

    name = type(pipeline).__name__
    if name.startswith("StableDiffusionXL"):
        return tuple(float(time) for time in AysSchedules["StableDiffusionXLTimesteps"])
    if name.startswith("StableDiffusion") and not name.startswith("StableDiffusion3"):
        return tuple(float(time) for time in AysSchedules["StableDiffusionTimesteps"])
    return ()
