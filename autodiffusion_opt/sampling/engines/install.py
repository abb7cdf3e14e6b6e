"""An engine's cache on a denoiser, by the engine's own code, for the length of a pipeline's calls."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    MagCacheConfig,
    TaylorSeerCacheConfig,
    apply_first_block_cache,
    apply_mag_cache,
    apply_taylorseer_cache,
)
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.hooks.hooks import CacheContext, StateManager

from autodiffusion_opt.engine import CacheDiT, CacheDiTMask, Engine, FirstBlockCache, MagCache, TaylorSeerCache
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.branches import branches_of
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.engines.cache_dit import cache_dit_on, check_cache_dit
from autodiffusion_opt.sampling.engines.calls import CallsOfSteps
from autodiffusion_opt.sampling.hooks import before_forward
from autodiffusion_opt.sampling.layers.bypass import refuse_cache, refuse_compiled, refuse_group_offload
from autodiffusion_opt.sampling.layers.listing import unwrap
from autodiffusion_opt.sampling.schedule import layout_of
from autodiffusion_opt.sampling.schedule.state import ScheduleState

# MagCache: beyond any threshold, so that the step is computed; and no error at all, so that it is not.
COMPUTED, SKIPPED, THRESHOLD = 1000.0, 1.0, 0.5
_SET_BY_HOOKS = ("forward", "_diffusers_hook")


def diffusers_config(engine: Engine, denoiser: torch.nn.Module, steps: int) -> Any:
    """The configuration of diffusers' cache that does what the engine says for so many steps."""
    if isinstance(engine, FirstBlockCache):
        return FirstBlockCacheConfig(threshold=engine.threshold)
    if isinstance(engine, MagCache):
        return MagCacheConfig(
            threshold=THRESHOLD,
            max_skip_steps=steps,
            retention_ratio=0.0,
            num_inference_steps=steps,
            mag_ratios=[COMPUTED if computed else SKIPPED for computed in engine.computed(steps) or ()],
        )
    assert isinstance(engine, TaylorSeerCache)
    *others, last = (re.escape(path) for path in branches_of(denoiser).parts)
    return TaylorSeerCacheConfig(
        cache_interval=engine.interval,
        disable_cache_before_step=engine.warm_up,
        max_order=engine.order,
        taylor_factors_dtype=next(unwrap(denoiser).parameters()).dtype,
        skip_predict_identifiers=others,
        cache_identifiers=[last],
    )


def check_engine(pipeline: Any, engine: Engine) -> None:
    """Raises UserError for a denoiser or a solver that the engine's cache cannot run with."""
    denoiser = denoiser_of(pipeline)
    name = type(unwrap(denoiser)).__name__
    if layout_of(pipeline.scheduler) != "once":
        raise UserError(
            f"{engine.kind} counts calls as steps, and this solver calls the denoiser twice a step: use another"
        )
    for refuse in (refuse_cache, refuse_compiled, refuse_group_offload):
        refuse(denoiser)
    if isinstance(engine, CacheDiT | CacheDiTMask):
        check_cache_dit(pipeline, engine)
        return
    blocks = [unwrap(denoiser).get_submodule(path) for path in branches_of(denoiser).parts]
    if isinstance(engine, FirstBlockCache | MagCache):
        for block in blocks:
            try:
                TransformerBlockRegistry.get(type(block))
            except ValueError:
                raise UserError(f"diffusers' caches do not know the blocks of {name}, {type(block).__name__}") from None
    if isinstance(engine, FirstBlockCache | TaylorSeerCache) and getattr(blocks[-1], "context_pre_only", False):
        raise UserError(
            f"the last block of {name} hands on no text stream, which diffusers' {engine.kind} does not know: "
            "use mag-cache"
        )


@contextlib.contextmanager
def engine_on(pipeline: Any, engine: Engine, steps: int, schedule: ScheduleState) -> Iterator[None]:
    """The engine's cache on a pipeline's denoiser while it lasts; the denoiser is then exactly as it was.

    Each generation of images begins with an empty cache. A pipeline that does not say which of a step's calls is which
    (diffusers' ``cache_context``) gets a cache for each call within the step.
    """
    denoiser = unwrap(denoiser_of(pipeline))
    refuse_cache(denoiser)
    if isinstance(engine, CacheDiT | CacheDiTMask):
        with cache_dit_on(pipeline, engine, steps, schedule):
            yield
        return
    had = {
        module: {key: vars(module)[key] for key in _SET_BY_HOOKS if key in vars(module)}
        for module in denoiser.modules()
    }
    hooks = {module: set(kept["_diffusers_hook"].hooks) for module, kept in had.items() if "_diffusers_hook" in kept}
    try:
        _apply(denoiser, engine, diffusers_config(engine, denoiser, steps))
        contexts = _Contexts(denoiser, schedule)
        with before_forward(denoiser, contexts.begin):
            yield
    finally:
        for module, kept in had.items():
            if module in hooks:
                registry = kept["_diffusers_hook"]
                for name in [name for name in registry.hooks if name not in hooks[module]]:
                    registry.remove_hook(name, recurse=False)
                continue
            for key in _SET_BY_HOOKS:
                vars(module).pop(key, None)
            vars(module).update(kept)
        if "_diffusers_hook" in had[denoiser]:
            had[denoiser]["_diffusers_hook"].invalidate_child_registries_cache()


def _apply(denoiser: torch.nn.Module, engine: Engine, config: Any) -> None:
    apply: dict[type[Engine], Callable[[torch.nn.Module, Any], None]] = {
        FirstBlockCache: apply_first_block_cache,
        MagCache: apply_mag_cache,
        TaylorSeerCache: apply_taylorseer_cache,
    }
    apply[type(engine)](denoiser, config)
    HookRegistry.check_if_exists_or_initialize(denoiser).invalidate_child_registries_cache()


class _Contexts:
    """Tells the cache which call it is in, where the pipeline does not, and empties it when a generation begins."""

    def __init__(self, denoiser: torch.nn.Module, schedule: ScheduleState) -> None:
        registries = (vars(module).get("_diffusers_hook") for module in denoiser.modules())
        self._managers = [
            value
            for registry in registries
            if registry is not None
            for hook in registry.hooks.values()
            for value in vars(hook).values()
            if isinstance(value, StateManager)
        ]
        self._calls = CallsOfSteps(schedule)
        self._given: CacheContext | None = None

    def begin(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the denoiser begins."""
        begins, call = self._calls.begin()
        if begins:
            for manager in self._managers:
                context = manager._context
                manager.reset()
                manager.set_context(context)
        if self._managers and self._managers[0]._context in (None, self._given):
            self._given = CacheContext(f"call {call}")
            for manager in self._managers:
                manager.set_context(self._given)
