"""The kinds of layer, and for each what remains of it when its residual branch is gone.

The list is open: :func:`register_layer_kind` adds a block of anybody's. A bypass function is called as the block's
own ``forward`` would be, with the block before the arguments, and returns what that ``forward`` returns, in its
format.

diffusers' blocks are known by class name alone, so that none of its modules is imported here, and a block
that another version has in another file is still found.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

BypassFunction = Callable[..., Any]


@dataclass(frozen=True)
class LayerKind:
    """What is known of one class of block: the kind's name, its bypass, and which of its blocks have one."""

    name: str
    bypass: BypassFunction
    removable: Callable[[torch.nn.Module], bool]


_KINDS: dict[str, LayerKind] = {}
# Blocks of classes that are not registered, found by their form (`residual_form`).
_BY_FORM: weakref.WeakKeyDictionary[torch.nn.Module, LayerKind] = weakref.WeakKeyDictionary()


def register_layer_kind(
    module_class: type[torch.nn.Module],
    kind: str,
    bypass: BypassFunction | None = None,
    removable: Callable[[torch.nn.Module], bool] = lambda module: True,
) -> Any:
    """Make every block of a class, and of its subclasses, a layer.

    Args:
        module_class: the block's class. A later registration of the same class replaces the earlier.
        kind: the name of the kind, as in ``Layer.kind``: ``"residual"``, ``"attention"``, ``"transformer"``.
        bypass: ``bypass(module, *args, **kwargs)``, called with the arguments of the block's ``forward``;
            returns what ``forward`` would return with the residual branch at zero: same structure, shapes and
            types.
        removable: whether one given block may be bypassed at all. Whether the bypass keeps the shapes is
            tried besides, once, on the meta device.

    Returns:
        ``bypass``; or, where it was not given, a decorator for it.
    """
    if bypass is None:
        return lambda function: register_layer_kind(module_class, kind, function, removable)
    _KINDS[_key(module_class)] = LayerKind(kind, bypass, removable)
    return bypass


def kind_of(module: torch.nn.Module) -> LayerKind | None:
    """The kind of a module, by its class or the nearest base class that is known; None: it is no layer."""
    keys = (_key(cls) for cls in type(module).__mro__)
    return next((_KINDS[key] for key in keys if key in _KINDS), _BY_FORM.get(module))


def remember_kind(module: torch.nn.Module, kind: LayerKind) -> None:
    """Make this one block a layer, as long as it lives."""
    _BY_FORM[module] = kind


def has_removable_kind(module: torch.nn.Module) -> bool:
    """Whether a module's class is registered, and this module may be bypassed."""
    kind = kind_of(module)
    return kind is not None and module not in _BY_FORM and kind.removable(module)


def find_blocks(denoiser: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Path -> block, in module order: the outermost modules below the denoiser that are of a known kind."""
    return dict(_outermost(denoiser, "", set()))


def block_classes(denoiser: torch.nn.Module) -> tuple[tuple[str, type], ...]:
    """(path, class) of every block: tells whether two denoisers have the same, or one has been rebuilt."""
    return tuple((path, type(block)) for path, block in find_blocks(denoiser).items())


def has_blocks_of(denoiser: torch.nn.Module, meta_copy: torch.nn.Module) -> bool:
    """Whether a copy has the same blocks at the same paths, those that were found by their form included."""
    classes = {path: type(module) for path, module in meta_copy.named_modules()}
    blocks = block_classes(denoiser)
    by_form = any(block in _BY_FORM for block in denoiser.modules())
    same = all(classes.get(path) is block for path, block in blocks)
    return same if by_form else block_classes(meta_copy) == blocks


def _outermost(
    module: torch.nn.Module, prefix: str, seen: set[torch.nn.Module]
) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, child in module.named_children():
        if child in seen:
            continue  # one module at two places is one layer
        seen.add(child)
        path = prefix + name
        if kind_of(child) is None:
            yield from _outermost(child, path + ".", seen)
        else:
            yield path, child


def _key(cls: type) -> str:
    inside = cls.__module__.partition(".")[0] == "diffusers"
    return f"diffusers.{cls.__name__}" if inside else f"{cls.__module__}.{cls.__qualname__}"


def _diffusers(
    kind: str, *names: str, removable: Callable[[Any], bool] = lambda module: True
) -> Callable[[BypassFunction], BypassFunction]:
    """Decorator: the bypass function of these classes of diffusers."""

    def register(bypass: BypassFunction) -> BypassFunction:
        _KINDS.update({f"diffusers.{name}": LayerKind(kind, bypass, removable) for name in names})
        return bypass

    return register


# --- UNets ----------------------------------------------------------------------------------------


@_diffusers("residual", "ResnetBlock2D", "ResnetBlockCondNorm2D")
def _residual(module: Any, input_tensor: Any, *_: Any, **__: Any) -> Any:
    """``shortcut(resample(x)) / output_scale_factor``: models/resnet.py, ``hidden_states`` at zero."""
    resample = module.upsample or module.downsample
    skip = input_tensor if resample is None else resample(input_tensor)
    if module.conv_shortcut is not None:
        skip = module.conv_shortcut(skip)
    return skip if module.output_scale_factor == 1.0 else skip / module.output_scale_factor


def _adds_its_input(module: Any) -> bool:
    return bool(getattr(module, "residual_connection", False)) or _sees_text(module)


def _sees_text(module: Any) -> bool:
    """Whether it is of a SimpleCrossAttn block (DeepFloyd IF, Kandinsky): a UNet's, and projects text."""
    parts = (getattr(module, "added_kv_proj_dim", None), getattr(module, "group_norm", None))
    return all(part is not None for part in parts)


@_diffusers("attention", "Attention", removable=lambda module: _adds_its_input(module))
def _attention(module: Any, hidden_states: Any, *_: Any, **__: Any) -> Any:
    """``x / rescale_output_factor``; with text, ``x``: such a block has no flag and always adds its input.

    Source: the last lines of AttnProcessor2_0 and AttnAddedKVProcessor2_0 in models/attention_processor.py.
    """
    factor = module.rescale_output_factor
    return hidden_states if factor == 1.0 or not module.residual_connection else hidden_states / factor


@_diffusers("transformer", "Transformer2DModel", "DualTransformer2DModel")
def _transformer_2d(module: Any, hidden_states: Any, *_: Any, return_dict: bool = True, **__: Any) -> Any:
    """The input, in the format asked for; UNets call with ``return_dict=False``, as a keyword."""
    if not return_dict:
        return (hidden_states,)
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=hidden_states)


@_diffusers("residual", "ConvNextBlock")
def _modulated(module: Any, x: Any, cond_embeds: Any) -> Any:
    """UVit's (aMUSEd): what comes after the sum scales and shifts it (models/unets/uvit_2d.py)."""
    scale, shift = module.cond_embeds_mapper(torch.nn.functional.silu(cond_embeds))[:, :, None, None].chunk(2, dim=1)
    return x * (1 + scale) + shift


@_diffusers("residual", "SDCascadeResBlock")
@_diffusers("attention", "SDCascadeAttnBlock")
def _cascade(module: Any, x: Any, *_: Any, **__: Any) -> Any:
    """The blocks between them that scale and shift by the time are no residual sums, and no layers."""
    return x


# --- transformers: the skip path of a block is the identity ---------------------------------------


@_diffusers("attention", "KAttentionBlock")
@_diffusers(
    "transformer",
    "BasicTransformerBlock",  # DiT, PixArt
    "SkipFFTransformerBlock",  # UVit
    "SD3SingleTransformerBlock",
    "SanaTransformerBlock",
    "AuraFlowSingleTransformerBlock",
    "ChromaSingleTransformerBlock",
)
def _one_stream(module: Any, hidden_states: Any, *_: Any, **__: Any) -> Any:
    return hidden_states


@_diffusers(
    "transformer",
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
    "ChromaTransformerBlock",
    "AuraFlowJointTransformerBlock",
)
def _text_then_image(module: Any, hidden_states: Any, encoder_hidden_states: Any, *_: Any, **__: Any) -> Any:
    """The text stream comes out first, though it goes in second."""
    return encoder_hidden_states, hidden_states


@_diffusers("transformer", "HunyuanDiTBlock")
def _long_skip(module: Any, hidden_states: Any, *_: Any, skip: Any = None, **__: Any) -> Any:
    """The later half merges an earlier block's output into its input, outside of any residual branch."""
    if module.skip_linear is None:
        return hidden_states
    return module.skip_linear(module.skip_norm(torch.cat([hidden_states, skip], dim=-1)))


@_diffusers("transformer", "JointTransformerBlock")
def _joint(module: Any, hidden_states: Any, encoder_hidden_states: Any, *_: Any, **__: Any) -> Any:
    """As above; in Stable Diffusion 3's last block (``context_pre_only``) the text stream ends."""
    return None if module.context_pre_only else encoder_hidden_states, hidden_states
