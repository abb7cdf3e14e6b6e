"""What a partial step at each branch of a denoiser runs and costs, found by running a copy without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from autodiffusion_opt.sampling.branches import branches_of
from autodiffusion_opt.sampling.cache import install_cache
from autodiffusion_opt.sampling.layers.example_inputs import make_inputs
from autodiffusion_opt.sampling.layers.listing import list_layers, on_a_copy


@dataclass(frozen=True)
class BranchCost:
    """A partial step at one branch.

    Attributes:
        flops: of a call of the denoiser for one image.
        layers: indices of the layers that it runs, ascending.
    """

    flops: int
    layers: tuple[int, ...]


def branch_costs(denoiser: torch.nn.Module, inputs: Mapping[str, Any] | None = None) -> list[BranchCost]:
    """The cost of a partial step at every branch.

    Args:
        denoiser: is not run; a copy without weights is.
        inputs: as for :func:`list_layers`.

    Raises:
        UserError: for a denoiser that has no branches, or changes features between its blocks, or whose inputs cannot
            be made from its config.
    """
    branches, layers = branches_of(denoiser), list_layers(denoiser)
    flops = on_a_copy(denoiser, make_inputs(denoiser) if inputs is None else inputs, _flops)
    return [
        BranchCost(partial, tuple(layer.index for layer in layers if branches.runs(branch, layer.path)))
        for branch, partial in enumerate(flops)
    ]


def _flops(denoiser: torch.nn.Module, inputs: Mapping[str, Any]) -> list[int]:
    """Of a partial step at each branch, in their order: each call is a step, the first a full one."""
    steps, flops = [None, *range(len(branches_of(denoiser).cuts))], list[int]()
    installed = install_cache(denoiser, steps, lambda: len(flops), lambda: 0, may_copy=False)
    while len(flops) < len(steps):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            denoiser(**inputs)
        flops.append(counter.get_total_flops())
    installed.remove()
    return flops[1:]
