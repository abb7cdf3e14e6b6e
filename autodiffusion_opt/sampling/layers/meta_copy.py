"""A copy of a denoiser on the meta device: the same modules, with weights that have a shape and no memory."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_map

from autodiffusion_opt.sampling.layers.kinds import has_blocks_of

# What others (accelerate, diffusers' hooks) hang on a module: no part of the model, and not to be copied.
_ATTACHED = ("forward", "_old_forward", "_hf_hook", "_diffusers_hook", "_compiled_call_impl")


def make_meta_copy(denoiser: torch.nn.Module) -> torch.nn.Module:
    """A module with the same blocks on the meta device, in evaluation mode.

    Built from the config, in float32; where there is none, or the blocks have been changed since, copied without
    the weights, in their own type.
    """
    built = _from_config(denoiser)
    if built is not None and has_blocks_of(denoiser, built):
        return built.eval()
    return _copied(denoiser).eval()


def on_meta(inputs: Mapping[str, Any], meta_copy: torch.nn.Module) -> dict[str, Any]:
    """The inputs' shapes on the meta device, floating-point ones in the type of the copy's weights."""
    return _moved(inputs, meta_copy, "meta")


def on_cpu(inputs: Mapping[str, Any], bare_copy: torch.nn.Module) -> dict[str, Any]:
    """The inputs on the CPU, floating-point ones in the type of the copy's weights."""
    return _moved(inputs, bare_copy, "cpu")


def _moved(inputs: Mapping[str, Any], denoiser: torch.nn.Module, device: str) -> dict[str, Any]:
    floating = (weight.dtype for weight in denoiser.parameters() if weight.is_floating_point())
    dtype = next(floating, torch.float32)

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.to(device, dtype if leaf.is_floating_point() else leaf.dtype)

    return {name: tree_map(moved, value) for name, value in inputs.items()}


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


def _copied(denoiser: torch.nn.Module) -> torch.nn.Module:
    """A deep copy in which every tensor is on the meta device: no weight is copied."""
    memo: dict[int, Any] = {}  # deepcopy's own: id of an object -> what stands for it in the copy
    for module in denoiser.modules():
        memo.update({id(value): _Nothing() for name, value in vars(module).items() if name in _ATTACHED})
        tensors = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        memo.update({id(tensor): _ghost(tensor) for tensor in tensors if isinstance(tensor, torch.Tensor)})
    meta_copy = copy.deepcopy(denoiser, memo)
    for module in meta_copy.modules():
        for name in _ATTACHED:
            vars(module).pop(name, None)
    return meta_copy


class _Nothing:
    """Stands where something attached was, until it is dropped."""


def _ghost(tensor: torch.Tensor) -> torch.Tensor:
    """What ``copy.deepcopy`` puts in the tensor's place: its shape and type, on the meta device."""
    empty = torch.empty_like(tensor, device="meta")
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(empty, requires_grad=False) if is_parameter else empty
