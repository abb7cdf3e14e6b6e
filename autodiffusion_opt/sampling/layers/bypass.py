"""Leaving layers out of a denoiser at chosen steps, and taking that back without a trace."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from types import MethodType
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.layers.kinds import BypassFunction, kind_of
from autodiffusion_opt.sampling.layers.listing import Layer, known_layers, unwrap

_NAME = "autodiffusion_opt.bypass"


class Bypass:
    """The bypass as installed. Also a context manager that removes it at the end.

    While it is installed the removed layers are bypassed at their steps, for every call of the denoiser:
    batches doubled for classifier-free guidance, and samplers that call twice a step, need nothing more.
    """

    def __init__(self, denoiser: torch.nn.Module) -> None:
        self._denoiser = denoiser
        self._held: list[_Held] = []

    def remove(self) -> None:
        """Leave the denoiser as it was found. A second call does nothing."""
        while self._held:
            self._held.pop().release()
            if not self._held:
                _forget_children(self._denoiser)

    def __enter__(self) -> Bypass:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _hold(self, block: torch.nn.Module, hook: _BypassHook) -> None:
        self._held.append(_Held(block, hook))


def install_bypass(denoiser: torch.nn.Module, removed: Sequence[Collection[int]], step: Callable[[], int]) -> Bypass:
    """Leave out, at step i, the layers whose indices are in ``removed[i]``. They are not computed.

    Args:
        denoiser: as for ``list_layers``. Where its inputs cannot be made from its config, list its layers
            with ``inputs=`` first.
        removed: one collection of layer indices (``Layer.index``) a step, in the order of the steps.
        step: the pipeline's step counter, read at every call of a layer that is removed at some step.

    Returns:
        The handle that takes it out again. With nothing to remove, nothing is installed.

    Raises:
        UserError: for a layer that the denoiser does not have or that cannot be bypassed; for a denoiser that
            is compiled, has group offloading or a bypass already; and, from the denoiser's forward, for a
            step outside ``removed``.

    Hooks that others have put on a layer before (accelerate's sequential offload) are not called where the
    layer is bypassed: nothing needs to be loaded for it. Hooks put on it later stay when this one goes.
    Offload of the whole denoiser (``enable_model_cpu_offload``) is not affected.
    """
    bypass = Bypass(denoiser)
    where = _steps_of(removed)
    if not where:
        return bypass
    _refuse_compiled(denoiser)
    _refuse_group_offload(denoiser)
    layers = _chosen(denoiser, where)
    blocks = {layer.index: denoiser.get_submodule(layer.path) for layer in layers}
    _refuse_second(denoiser, blocks.values())
    try:
        for index, block in blocks.items():
            bypass._hold(block, _BypassHook(block, where[index], len(removed), step))
    except BaseException:  # half a bypass must not stay
        bypass.remove()
        raise
    _forget_children(denoiser)
    return bypass


class _BypassHook(ModelHook):  # type: ignore[misc]  # diffusers is untyped
    """Runs the rule of the block instead of the block at given steps."""

    def __init__(self, block: torch.nn.Module, steps: frozenset[int], count: int, step: Callable[[], int]) -> None:
        super().__init__()
        self.active = True
        self._steps, self._count, self._step = steps, count, step
        self._rule = _bypass_of(block)

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The block's own forward, or what remains of it."""
        if self.active and self._removed_now():
            return self._rule(module, *args, **kwargs)
        return self.fn_ref.original_forward(*args, **kwargs)

    def _removed_now(self) -> bool:
        now = self._step()
        if not 0 <= now < self._count:
            raise UserError(f"the plan has {self._count} steps, 0 to {self._count - 1}; the sampler is at step {now}")
        return now in self._steps


class _Held:
    """One hook on one block, with what is needed to leave no trace of it.

    diffusers' ``remove_hook`` leaves behind the registry and, in the module's ``__dict__``, a problem
    ``forward``.
    """

    def __init__(self, block: torch.nn.Module, hook: _BypassHook) -> None:
        self._block, self._hook = block, hook
        self._had = {name for name in ("forward", "_diffusers_hook") if name in vars(block)}
        self._name = f"{_NAME}.{id(hook)}"
        self._registry = HookRegistry.check_if_exists_or_initialize(block)
        self._registry.register_hook(hook, self._name)
        self._forward = vars(block)["forward"]

    def release(self) -> None:
        """Take the hook out. One that somebody has wrapped since stays, and does nothing more."""
        self._hook.active = False
        if self._is_wrapped():
            return
        self._registry.remove_hook(self._name, recurse=False)
        found = vars(self._block)
        if "forward" not in self._had and _is_plain(found["forward"], self._block):
            del found["forward"]
        if "_diffusers_hook" not in self._had and not self._registry.hooks:
            del found["_diffusers_hook"]

    def _is_wrapped(self) -> bool:
        outermost = self._registry._hook_order[-1] == self._name
        return outermost and vars(self._block).get("forward") is not self._forward


def _is_plain(forward: object, block: torch.nn.Module) -> bool:
    """Whether it is what the class gives anyway."""
    return isinstance(forward, MethodType) and forward == MethodType(type(block).forward, block)


def _steps_of(removed: Sequence[Collection[int]]) -> dict[int, frozenset[int]]:
    """layer -> the steps at which it is removed"""
    layers = sorted({layer for layers in removed for layer in layers})
    return {layer: frozenset(i for i, gone in enumerate(removed) if layer in gone) for layer in layers}


def _chosen(denoiser: torch.nn.Module, indices: Iterable[int]) -> list[Layer]:
    layers, name = known_layers(denoiser), type(denoiser).__name__
    wrong = [index for index in indices if not 0 <= index < len(layers)]
    if wrong:
        raise UserError(f"{name} has {len(layers)} layers, 0 to {len(layers) - 1}; got {_listed(wrong)}")
    chosen = [layers[index] for index in indices]
    fixed = [f"{layer.index} ({layer.path})" for layer in chosen if not layer.removable]
    if fixed:
        raise UserError(f"{name}: these layers cannot be removed: {', '.join(fixed)}; take them out of the plan")
    return chosen


def _listed(indices: Iterable[int]) -> str:
    return ", ".join(str(index) for index in indices)


def _bypass_of(block: torch.nn.Module) -> BypassFunction:
    kind = kind_of(block)
    if kind is None:
        raise UserError(f"{type(block).__name__} is not a layer any more; was the denoiser changed?")
    return kind.bypass


def _refuse_compiled(denoiser: torch.nn.Module) -> None:
    # Measured (torch 2.15): hooks put on a compiled denoiser give the right images, but each value of the
    # step counter is a compilation of its own, and after 8 (recompile_limit) all of it runs uncompiled.
    compiled = any(module._compiled_call_impl is not None for module in denoiser.modules())
    if compiled or unwrap(denoiser) is not denoiser:
        raise UserError(
            f"{type(unwrap(denoiser)).__name__} is compiled: it would be compiled anew at every step, and "
            "run uncompiled after 8. Give the denoiser before torch.compile, or a plan that removes no layers"
        )


def _refuse_group_offload(denoiser: torch.nn.Module) -> None:
    registries = (getattr(module, "_diffusers_hook", None) for module in denoiser.modules())
    if any(registry is not None and registry.get_hook("group_offloading") for registry in registries):
        raise UserError(
            f"{type(denoiser).__name__} has diffusers' group offloading, in which one layer loads the next, "
            "and fails when one is left out: use enable_model_cpu_offload(), or a plan that removes no layers"
        )


def _refuse_second(denoiser: torch.nn.Module, blocks: Iterable[torch.nn.Module]) -> None:
    registries = (getattr(block, "_diffusers_hook", None) for block in blocks)
    hooks = [hook for registry in registries if registry is not None for hook in registry.hooks.values()]
    if any(isinstance(hook, _BypassHook) and hook.active for hook in hooks):
        raise UserError(f"{type(denoiser).__name__} has a bypass already: remove() that one first")


def _forget_children(denoiser: torch.nn.Module) -> None:
    """The denoiser's own registry, where it has one, keeps a list of those below: make it look again."""
    registry = getattr(denoiser, "_diffusers_hook", None)
    if registry is not None and hasattr(registry, "invalidate_child_registries_cache"):
        registry.invalidate_child_registries_cache()
