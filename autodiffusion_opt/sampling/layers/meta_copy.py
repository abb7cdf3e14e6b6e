"""A meta_copy of a denoiser on the meta device: the same modules with weights that have a shape and no memory."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_map

from autodiffusion_opt.sampling.layers.kinds import find_blocks

# What others (accelerate, diffusers' hooks) hang on a module: no part of the model, and not to be copied.
_ATTACHED = ("forward", "_old_forward", "_hf_hook", "_diffusers_hook", "_compiled_call_impl")


def make_meta_copy(denoiser: torch.nn.Module) -> torch.nn.Module:
    """A module with the same blocks on the meta device, in evaluation mode and in float32 where it can
    choose.

    Built from the config; where there is none, or the blocks have been changed since, copied without the
    weights.
    """
    built = _from_config(denoiser)
    meta_copy = built if built is not None and _same_blocks(built, denoiser) else _copied(denoiser)
    return meta_copy.eval()


def on_meta(inputs: Mapping[str, Any], meta_copy: torch.nn.Module) -> dict[str, Any]:
    """The inputs' shapes on the meta device, floating-point ones in the meta_copy's own type."""
    floating = (weight.dtype for weight in meta_copy.parameters() if weight.is_floating_point())
    dtype = next(floating, torch.float32)
    return {name: tree_map(lambda leaf: _meta(leaf, dtype), value) for name, value in inputs.items()}


def _meta(leaf: Any, dtype: torch.dtype) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return leaf.to("meta", dtype if leaf.is_floating_point() else leaf.dtype)


def _from_config(denoiser: Any) -> torch.nn.Module | None:
    if not hasattr(denoiser, "config") or not hasattr(type(denoiser), "from_config"):
        return None
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever the class has to say, it said of the denoiser
            meta_copy: torch.nn.Module = type(denoiser).from_config(plain_config(denoiser))
    except (ValueError, TypeError):  # a config that its own class does not accept: somebody changed it
        return None
    return meta_copy.to("meta")  # tables made by numpy are on the CPU, whatever the device


def plain_config(denoiser: Any) -> dict[str, Any]:
    """The config as it was before an IP-Adapter was loaded: ``load_ip_adapter`` writes into it."""
    config = dict(denoiser.config)
    if config.get("encoder_hid_dim_type") == "ip_image_proj":
        config["encoder_hid_dim_type"] = "text_proj" if config.get("encoder_hid_dim") else None
    return config


def _same_blocks(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    def named(module: torch.nn.Module) -> list[tuple[str, type]]:
        return [(path, type(block)) for path, block in find_blocks(module).items()]

    return named(one) == named(other)


def _copied(denoiser: torch.nn.Module) -> torch.nn.Module:
    """A deep copy in which every tensor is on the meta device: no weight is copied."""
    memo: dict[int, Any] = {}
    for module in denoiser.modules():
        memo.update({id(value): _Nothing() for name, value in vars(module).items() if name in _ATTACHED})
        memo.update(_ghosts(module))
    meta_copy = copy.deepcopy(denoiser, memo)
    for module in meta_copy.modules():
        for name in _ATTACHED:
            vars(module).pop(name, None)
    return meta_copy


class _Nothing:
    """Stands where something attached was, until it is dropped."""


def _ghosts(module: torch.nn.Module) -> dict[int, torch.Tensor]:
    """id -> meta tensor, of the tensors that the module holds: parameters, buffers, plain attributes."""
    held = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
    return {id(tensor): _ghost(tensor) for tensor in held if isinstance(tensor, torch.Tensor)}


def _ghost(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(empty, requires_grad=False) if is_parameter else empty
