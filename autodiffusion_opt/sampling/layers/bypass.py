"""Leaving layers out of a denoiser at chosen steps, and taking that back without a trace."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from diffusers.hooks import ModelHook

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.hooks import Attachments, attach_all, is_attached
from autodiffusion_opt.sampling.layers.kinds import kind_of
from autodiffusion_opt.sampling.layers.listing import Layer, known_layers, unwrap
from autodiffusion_opt.text import listed, quoted

# The name of the hook on a layer that is removed at some step.
NAME = "autodiffusion_opt.bypass"


class Bypass:
    """The bypass as installed. Also a context manager that removes it at the end.

    While it is installed the removed layers are bypassed at their steps, for every call of the denoiser:
    batches doubled for classifier-free guidance, and samplers that call twice a step, need nothing more.
    """

    def __init__(self, attachments: Attachments | None) -> None:
        self._attachments = attachments  # None: nothing is removed at any step

    def remove(self) -> None:
        """Leave the denoiser as it was found. A second call does nothing."""
        if self._attachments is not None:
            self._attachments.detach()

    def __enter__(self) -> Bypass:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def install_bypass(
    denoiser: torch.nn.Module,
    removed: Sequence[Collection[int]],
    step: Callable[[], int | None],
    *,
    name: str = NAME,
) -> Bypass:
    """Leave out, at step i, the layers whose indices are in ``removed[i]``. They are not computed.

    Args:
        denoiser: as for ``list_layers``. Where its inputs cannot be made from its config, list its layers
            with ``inputs=`` first.
        removed: one collection of layer indices (``Layer.index``) a step, in the order of the steps.
        step: the pipeline's step counter, read at every call of a layer that is removed at some step; None: the call
            is none of the pipeline's, and runs every layer.
        name: of the hooks; pipelines that share a denoiser have different ones.

    Returns:
        The handle that takes it out again. With nothing to remove, nothing is installed.

    Raises:
        UserError: for a layer that the denoiser does not have or that cannot be bypassed; for a denoiser that
            is compiled, has group offloading, a cache, or a bypass of that name already; and, from the denoiser's
            forward, for a step outside ``removed``.

    Hooks that others have put on a layer before (accelerate's sequential offload) are not called where the
    layer is bypassed: nothing needs to be loaded for it. Hooks put on it later stay when this one goes.
    Offload of the whole denoiser (``enable_model_cpu_offload``) is not affected.
    """
    indices = sorted(set().union(*removed))
    if not indices:
        return Bypass(None)
    refuse_compiled(denoiser)
    refuse_group_offload(denoiser)
    refuse_cache(denoiser)
    layers = _removable_layers(denoiser, indices)
    removed_at = _steps_of_layers(removed)
    if any(is_attached(denoiser.get_submodule(layer.path), name) for layer in layers):
        raise UserError(f"{type(denoiser).__name__} has a bypass already: remove() that one first")
    hooks = {
        layer.path: _BypassHook(denoiser.get_submodule(layer.path), removed_at[layer.index], len(removed), step)
        for layer in layers
    }
    return Bypass(attach_all(denoiser, hooks, name))


class _BypassHook(ModelHook):  # type: ignore[misc]  # diffusers is untyped
    """Runs the bypass function of the block instead of the block, at given steps."""

    def __init__(
        self, block: torch.nn.Module, steps: frozenset[int], count: int, step: Callable[[], int | None]
    ) -> None:
        super().__init__()
        kind = kind_of(block)
        if kind is None:
            raise UserError(f"{type(block).__name__} is not a layer any more; was the denoiser changed?")
        self._bypass = kind.bypass
        self._steps, self._count, self._step = steps, count, step

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The block's own forward, or what remains of it."""
        now = self._step()
        if now is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        if not 0 <= now < self._count:
            raise UserError(
                f"the candidate has {self._count} steps, 0 to {self._count - 1}; the sampler is at step {now}"
            )
        if now in self._steps:
            return self._bypass(module, *args, **kwargs)
        return self.fn_ref.original_forward(*args, **kwargs)


def _steps_of_layers(removed: Sequence[Collection[int]]) -> dict[int, frozenset[int]]:
    """layer -> the steps at which it is removed"""
    steps: dict[int, set[int]] = {}
    for index, gone in enumerate(removed):
        for layer in gone:
            steps.setdefault(layer, set()).add(index)
    return {layer: frozenset(at) for layer, at in steps.items()}


def _removable_layers(denoiser: torch.nn.Module, indices: Iterable[int]) -> list[Layer]:
    """The layers of these indices. Raises UserError for one that is not there, or that cannot be bypassed."""
    layers, name = known_layers(denoiser), type(denoiser).__name__
    wrong = [index for index in indices if not 0 <= index < len(layers)]
    if wrong:
        raise UserError(f"{name} has {len(layers)} layers, 0 to {len(layers) - 1}; got {listed(map(quoted, wrong))}")
    chosen = [layers[index] for index in indices]
    fixed = [f"{layer.index} ({layer.path})" for layer in chosen if not layer.removable]
    if fixed:
        raise UserError(f"{name}: these layers cannot be removed: {', '.join(fixed)}; take them out of the candidate")
    return chosen


def refuse_compiled(denoiser: torch.nn.Module) -> None:
    """Raises UserError for a denoiser that is compiled as a whole."""
    # Measured (torch 2.15): hooks put on a compiled denoiser give the right images, but each value of the
    # step counter is a compilation of its own, and after 8 (recompile_limit) all of it runs uncompiled.
    compiled = any(module._compiled_call_impl is not None for module in denoiser.modules())
    if compiled or unwrap(denoiser) is not denoiser:
        raise UserError(
            f"{type(unwrap(denoiser)).__name__} is compiled: it would be compiled anew at every step, and "
            "run uncompiled after 8. In place of torch.compile use ado.compile_layers(pipeline), or compile = true "
            "in [pipeline], which compile the layers one by one; or a candidate that runs every layer at every step"
        )


def refuse_cache(denoiser: torch.nn.Module) -> None:
    """Raises UserError for a denoiser with one of diffusers' caches (``enable_cache``), or with cache-dit's.

    They too run something else than the blocks, and count blocks and steps on their own: in either order, one of the
    two hooks does not see what the other left out.
    """
    engines = {
        "is_cache_enabled": ("diffusers (enable_cache)", "disable_cache()"),
        "_is_cached": ("cache-dit (cache_dit.enable_cache)", "cache_dit.disable_cache(pipeline)"),
    }
    for attribute, (engine, remedy) in engines.items():
        if getattr(unwrap(denoiser), attribute, False):
            raise UserError(
                f"{type(unwrap(denoiser)).__name__} has a cache of {engine}, and the candidate leaves "
                f"layers out: call {remedy} before, or apply a candidate that runs every layer at every step"
            )


def refuse_group_offload(denoiser: torch.nn.Module) -> None:
    """Raises UserError for a denoiser with diffusers' group offloading."""
    registries = (getattr(module, "_diffusers_hook", None) for module in denoiser.modules())
    if any(registry is not None and registry.get_hook("group_offloading") for registry in registries):
        raise UserError(
            f"{type(denoiser).__name__} has diffusers' group offloading, in which one layer loads the next, "
            "and fails when one is left out: use enable_model_cpu_offload(), or a candidate that runs every layer at "
            "every step"
        )
