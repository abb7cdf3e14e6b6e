"""What a partial step at each branch of a denoiser runs and costs, found by running a copy on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from autodiffusion_opt.sampling.branches import branches_of
from autodiffusion_opt.sampling.cache import install_cache
from autodiffusion_opt.sampling.layers.example_inputs import make_inputs
from autodiffusion_opt.sampling.layers.listing import list_layers
from autodiffusion_opt.sampling.layers.meta_copy import make_meta_copy, on_meta


@dataclass(frozen=True)
class BranchCost:
    """A partial step at one branch.

    Attributes:
        flops: of a call of the denoiser for one image.
        layers: indices of the layers that it runs, ascending.
    """

    flops: int
    layers: tuple[int, ...]


@torch.inference_mode(False)  # FlopCounterMode fails on tensors of that mode, in which callers may be
def branch_costs(denoiser: torch.nn.Module, inputs: Mapping[str, Any] | None = None) -> list[BranchCost]:
    """The cost of a partial step at every branch.

    Args:
        denoiser: is not run; a copy on the meta device is.
        inputs: as for :func:`list_layers`.

    Raises:
        UserError: for a denoiser that has no branches, or whose inputs cannot be made from its config.
    """
    branches = branches_of(denoiser)
    layers, count = list_layers(denoiser), len(branches.cuts)
    meta_copy = make_meta_copy(denoiser)
    given, flops = on_meta(make_inputs(denoiser) if inputs is None else inputs, meta_copy), list[int]()
    # Step 0 is a full one; each call is a step.
    installed = install_cache(meta_copy, [None, *range(count)], lambda: len(flops), lambda: 0)
    while len(flops) <= count:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            meta_copy(**given)
        flops.append(counter.get_total_flops())
    installed.remove()
    runs = (tuple(layer.index for layer in layers if branches.runs(branch, layer.path)) for branch in range(count))
    return [BranchCost(partial, indices) for partial, indices in zip(flops[1:], runs, strict=True)]
