"""Which layers a denoiser has, in the order in which it runs them, and what each costs.

Order and cost are found by running a copy of the denoiser once on the meta device: the same modules, weights without
memory. The denoiser itself is never run and never touched, so it may be on a GPU, offloaded, quantized.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.layers.example_inputs import make_inputs
from autodiffusion_opt.sampling.layers.kinds import block_classes, find_blocks, kind_of, remember_kind
from autodiffusion_opt.sampling.layers.meta_copy import make_meta_copy, on_cpu, on_meta
from autodiffusion_opt.sampling.layers.residual_form import ZeroProducts, find_by_form, zero_weights

Ran = TypeVar("Ran")


@dataclass(frozen=True)
class Layer:
    """One layer of a denoiser.

    Attributes:
        index: position in the order of execution, from 0.
        path: where it is in the denoiser: ``denoiser.get_submodule(path)``.
        kind: ``"residual"``, ``"attention"``, ``"transformer"``, or a registered kind's name.
        flops: floating-point operations (2 a multiply-add) of its forward pass at the inputs of the listing,
            all its calls together where the denoiser calls it more than once.
        parameters: number of weights in it.
        removable: whether it can be bypassed: its kind has a bypass function for it, and what that
            returns has the same shapes.
        bypass_flops: what is still computed when it is bypassed (a shortcut convolution). See
            ``saved_flops``.
    """

    index: int
    path: str
    kind: str
    flops: int
    parameters: int
    removable: bool
    bypass_flops: int = 0

    @property
    def saved_flops(self) -> int:
        """By how much the FLOPs of the denoiser's forward pass fall when this layer is removed."""
        return self.flops - self.bypass_flops


@dataclass(frozen=True)
class _Listing:
    """What one run of the copy on the meta device showed."""

    layers: tuple[Layer, ...]
    total: int  # FLOPs of the whole forward
    blocks: tuple[tuple[str, type], ...]  # path and class of every block: has the denoiser been rebuilt since?
    config: str
    own_inputs: bool  # made from the config, not given


# Denoiser -> its last listing. A run costs 0.1 s to some seconds, and an install needs the order.
_LISTINGS: weakref.WeakKeyDictionary[torch.nn.Module, _Listing] = weakref.WeakKeyDictionary()


def list_layers(
    denoiser: torch.nn.Module, inputs: Mapping[str, Any] | None = None, *, as_own: bool = False
) -> list[Layer]:
    """The layers of a denoiser in the order in which it runs them.

    Args:
        denoiser: a UNet or transformer of diffusers, or any module with blocks of a registered kind; may be
            on the meta device. It is not run and not changed: a copy without weights is.
        inputs: keyword arguments of the denoiser's ``forward``; only shapes count, where numbers do not steer
            the code. None: made from the config, batch 1, at the real sample size; or those given ``as_own``.
        as_own: the inputs are the pipeline's, and serve as those that would be made.

    Raises:
        UserError: no block of a known kind, or inputs that cannot be made from the config.
    """
    return list(_list(denoiser, inputs, as_own).layers)


def is_listed(denoiser: torch.nn.Module) -> bool:
    """Whether the layers are known, and the denoiser has not been rebuilt since."""
    listing = _LISTINGS.get(unwrap(denoiser))
    return listing is not None and not _changed(listing, unwrap(denoiser))


def count_layers(denoiser: torch.nn.Module) -> int:
    """How many layers the denoiser runs. The first call lists them, later ones look it up."""
    return len(known_layers(denoiser))


def total_flops(denoiser: torch.nn.Module, inputs: Mapping[str, Any] | None = None) -> int:
    """Floating-point operations of one forward pass (2 a multiply-add); otherwise as `list_layers`."""
    return _list(denoiser, inputs).total


def known_layers(denoiser: torch.nn.Module) -> tuple[Layer, ...]:
    """The layers as last listed, with whatever inputs: for those who need order and paths, not costs."""
    listing = _LISTINGS.get(unwrap(denoiser))
    if listing is None or _changed(listing, unwrap(denoiser)):
        listing = _list(denoiser, None)
    return listing.layers


def unwrap(denoiser: torch.nn.Module) -> torch.nn.Module:
    """The module inside a ``torch.compile``d one, else the module itself."""
    inner = denoiser.__dict__.get("_modules", {}).get("_orig_mod")
    return denoiser if inner is None else inner


def _list(denoiser: torch.nn.Module, inputs: Mapping[str, Any] | None, as_own: bool = False) -> _Listing:
    denoiser = unwrap(denoiser)
    known = _LISTINGS.get(denoiser)
    if inputs is None and known is not None and known.own_inputs and not _changed(known, denoiser):
        return known
    own_inputs = as_own or inputs is None
    listing = on_a_copy(
        denoiser,
        make_inputs(denoiser) if inputs is None else inputs,
        lambda bare_copy, given: _run_copy(denoiser, bare_copy, given, own_inputs),
    )
    _LISTINGS[denoiser] = listing
    return listing


def _changed(listing: _Listing, denoiser: torch.nn.Module) -> bool:
    return (listing.blocks, listing.config) != (block_classes(denoiser), _config_text(denoiser))


def _config_text(denoiser: torch.nn.Module) -> str:
    return repr(dict(getattr(denoiser, "config", None) or {}))


@torch.inference_mode(False)  # FlopCounterMode fails on tensors of that mode, in which callers may be
def on_a_copy(
    denoiser: torch.nn.Module,
    inputs: Mapping[str, Any],
    run: Callable[[torch.nn.Module, dict[str, Any]], Ran],
) -> Ran:
    """What ``run`` returns for a copy of a denoiser without weights, and the inputs on its device.

    The copy is on the meta device; where the values of its inputs steer the code (lengths of texts), and ``run`` fails
    there, another is on the CPU, where products are not computed. Layers that are listed are those of the copy too.
    """
    meta_copy = _with_layers_of(denoiser, make_meta_copy(denoiser))
    try:
        return run(meta_copy, on_meta(inputs, meta_copy))
    except (RuntimeError, NotImplementedError):
        if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in tree_flatten(dict(inputs))[0]):
            raise
    bare_copy = zero_weights(_with_layers_of(denoiser, make_meta_copy(denoiser)))
    with ZeroProducts(always=True):
        return run(bare_copy, on_cpu(inputs, bare_copy))


def _with_layers_of(denoiser: torch.nn.Module, bare_copy: torch.nn.Module) -> torch.nn.Module:
    """The copy, whose layers are known where those of the denoiser are, by their form too."""
    if is_listed(denoiser):
        listing = _LISTINGS[unwrap(denoiser)]
        for path, _ in listing.blocks:
            kind, block = kind_of(unwrap(denoiser).get_submodule(path)), bare_copy.get_submodule(path)
            if kind is not None and kind_of(block) is None:
                remember_kind(block, kind)
        _LISTINGS[bare_copy] = replace(listing, blocks=block_classes(bare_copy), config=_config_text(bare_copy))
    return bare_copy


def _run_copy(denoiser: torch.nn.Module, bare_copy: torch.nn.Module, inputs: Any, own_inputs: bool) -> _Listing:
    with torch.no_grad():
        find_by_form(denoiser, bare_copy, lambda: bare_copy(**inputs))
    if not find_blocks(denoiser):
        raise UserError(
            f"a denoiser must have layers of a known kind, or of the form of a residual block; "
            f"{type(denoiser).__name__} has none: register its block's class with "
            "autodiffusion_opt.sampling.layers.register_layer_kind"
        )
    recorders = {path: _BlockRecorder(path, block) for path, block in find_blocks(bare_copy).items()}
    order: list[_BlockRecorder] = []
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for recorder in recorders.values():
            recorder.hook(counter, order)
        bare_copy(**inputs)
    extra = sum(recorder.bypass_flops for recorder in order)  # the bypasses were tried inside the same run
    layers = tuple(recorder.layer(index) for index, recorder in enumerate(order))
    total = counter.get_total_flops() - extra
    return _Listing(layers, total, block_classes(denoiser), _config_text(denoiser), own_inputs)


class _BlockRecorder:
    """Two hooks on one block of the copy: they count what it does, and try its bypass beside it."""

    def __init__(self, path: str, block: torch.nn.Module) -> None:
        self.path, self.block = path, block
        kind = kind_of(block)
        if kind is None:
            raise LookupError(f"{type(block).__name__} is no layer")  # find_blocks returns layers only
        self.kind = kind
        self.removable = self.kind.removable(block)
        self.flops = self.bypass_flops = 0

    def hook(self, counter: FlopCounterMode, order: list[_BlockRecorder]) -> None:
        """Count from now on; at its first call the block appends itself to the order."""

        def before(*_: Any) -> None:
            if self not in order:
                order.append(self)
            self.flops -= counter.get_total_flops()

        def after(block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.flops += counter.get_total_flops()
            self._try_bypass(counter, args, kwargs, output)

        self.block.register_forward_pre_hook(before)
        self.block.register_forward_hook(after, with_kwargs=True)

    def _try_bypass(self, counter: FlopCounterMode, args: Any, kwargs: Any, output: Any) -> None:
        if not self.removable:
            return
        start = counter.get_total_flops()
        bypassed = self.kind.bypass(self.block, *args, **kwargs)
        self.bypass_flops += counter.get_total_flops() - start
        self.removable = _form(bypassed) == _form(output)

    def layer(self, index: int) -> Layer:
        """What was seen, as a layer."""
        parameters = sum(weight.numel() for weight in self.block.parameters())
        return Layer(index, self.path, self.kind.name, self.flops, parameters, self.removable, self.bypass_flops)


def _form(output: Any) -> Any:
    """Structure, shapes and types of an output: what the rest of the denoiser relies on."""
    leaves, structure = tree_flatten(output)
    tensors = [(leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else type(leaf) for leaf in leaves]
    return structure, tensors
