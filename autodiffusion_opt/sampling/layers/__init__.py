"""The layers of a denoiser: their number, their cost, and how to leave them out at chosen steps.

A layer is a residual block or an attention block of a UNet, or a block of a transformer. Layers are numbered
in the order in which the denoiser runs them, which is not the order of its modules: a UNet's up blocks are
made before its mid block, and each of them makes its attentions before its residual blocks.

A layer that is bypassed is not computed. What is left of it is what its skip path does: see
:mod:`~autodiffusion_opt.sampling.layers.kinds` for each kind's bypass function, and ``register_layer_kind`` to add one.
"""

from autodiffusion_opt.sampling.layers.bypass import Bypass, install_bypass, refuse_cache
from autodiffusion_opt.sampling.layers.kinds import register_layer_kind
from autodiffusion_opt.sampling.layers.listing import Layer, count_layers, list_layers, total_flops

__all__ = [
    "Bypass",
    "Layer",
    "count_layers",
    "install_bypass",
    "list_layers",
    "refuse_cache",
    "register_layer_kind",
    "total_flops",
]
