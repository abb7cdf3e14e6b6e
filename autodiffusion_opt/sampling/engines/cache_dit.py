"""cache-dit's cache on a denoiser, by cache-dit's own code, for the length of a pipeline's calls.

Its adapters know the lists of blocks of each pipeline (``cache_dit.get_adapter``); its ``enable_cache`` patches the
class of the pipeline, so what patches the denoiser alone is used here, with a stand-in for the pipeline. Known are the
names of cache-dit 1.5 (read in 1.5.3).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import torch

from autodiffusion_opt.engine import CacheDiT, CacheDiTMask
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.engines.calls import CallsOfSteps
from autodiffusion_opt.sampling.hooks import before_forward
from autodiffusion_opt.sampling.layers.listing import unwrap
from autodiffusion_opt.sampling.schedule.state import ScheduleState

_LOG_LEVEL = "CACHE_DIT_LOG_LEVEL"


def cache_dit() -> Any:
    """The package. It logs to stdout, where results go: errors alone, unless its own variable says otherwise.

    Raises:
        UserError: where it is not installed.
    """
    if importlib.util.find_spec("cache_dit") is None:
        raise UserError("cache-dit is not installed: pip install 'autodiffusion-opt[cache-dit]'")
    given = os.environ.get(_LOG_LEVEL)
    os.environ.setdefault(_LOG_LEVEL, "error")  # read once, when it is imported
    try:
        import cache_dit as package
    finally:
        if given is None:
            del os.environ[_LOG_LEVEL]
    return package


def cache_dit_values(engine: CacheDiT | CacheDiTMask, steps: int, calls: int) -> dict[str, Any]:
    """The keys of ``DBCacheConfig`` that say what an engine does.

    Args:
        engine: the settings.
        steps: how many the candidate has.
        calls: of the denoiser at each step, 1 or 2 (with the prompt and without: ``enable_separate_cfg``).
    """
    values: dict[str, Any] = {"Fn_compute_blocks": engine.front, "Bn_compute_blocks": engine.back}
    if isinstance(engine, CacheDiT):
        values |= {
            "residual_diff_threshold": engine.threshold,
            "max_warmup_steps": engine.warm_up,
            "max_continuous_cached_steps": engine.in_a_row,
        }
    else:
        values |= {
            "max_warmup_steps": 1,  # cache-dit's default, 8, would be cut to the mask's first ones
            "steps_computation_mask": [int(computed) for computed in engine.computed(steps) or ()],
            "steps_computation_policy": "static",
        }
    return values | {"num_inference_steps": steps, "enable_separate_cfg": calls == 2}


def check_cache_dit(pipeline: Any, engine: CacheDiT | CacheDiTMask) -> None:
    """Raises UserError where cache-dit is not installed, or cannot run on a pipeline as the engine says."""
    fewest = min(map(len, block_lists(pipeline)))
    if engine.front + engine.back > fewest:
        raise UserError(
            f"{engine.kind} must run at most the {fewest} blocks that there are in a list of "
            f"{type(pipeline).__name__}'s blocks; got {engine.front} front and {engine.back} back ones"
        )


def block_lists(pipeline: Any) -> list[list[torch.nn.Module]]:
    """The denoiser's blocks as cache-dit takes them: it has a cache, and front and back blocks, for each list.

    Raises:
        UserError: where it is not installed, or knows no adapter for the pipeline.
    """
    package = cache_dit()
    name = type(pipeline).__name__
    if not package.BlockAdapterRegister.is_supported(pipeline):
        raise UserError(f"cache-dit has no adapter for {name} (cache_dit.supported_pipelines())")
    try:
        adapter = package.BlockAdapterRegister.get_adapter(pipeline, skip_post_init=True)
    except AssertionError as error:
        raise UserError(f"cache-dit has no adapter for this {name}: {error}") from None
    if adapter.transformer is not unwrap(denoiser_of(pipeline)):
        raise UserError(f"cache-dit takes another denoiser of {name}, or several: its cache cannot be put on")
    lists = adapter.blocks if isinstance(adapter.blocks, list) else [adapter.blocks]
    return [list(blocks) for blocks in lists]


@contextlib.contextmanager
def cache_dit_on(pipeline: Any, engine: CacheDiT | CacheDiTMask, steps: int, schedule: ScheduleState) -> Iterator[None]:
    """cache-dit's cache on a pipeline's denoiser while it lasts; the denoiser is then exactly as it was.

    Each generation of images begins with an empty cache, and each call within a step has a cache of its own, which is
    what ``enable_separate_cfg`` does where a pipeline calls the denoiser twice a step.
    """
    package = cache_dit()
    from cache_dit.caching.block_adapters import FakeDiffusionPipeline
    from cache_dit.caching.cache_adapters import CachedAdapter

    denoiser = unwrap(denoiser_of(pipeline))
    # One step more than there are: at the last it would begin anew by itself and leave statistics on the denoiser.
    config = package.DBCacheConfig(**cache_dit_values(engine, steps, 1) | {"num_inference_steps": steps + 1})
    before = _attributes(denoiser)
    with contextlib.ExitStack() as undo:
        try:
            adapter = package.get_adapter(pipeline)
            # A class of its own: cache-dit marks the class.
            adapter.pipe = type("StandIn", (FakeDiffusionPipeline,), {})(denoiser)
            CachedAdapter.apply(adapter, cache_config=config)
        finally:
            undo.callback(_take_off, before, _attributes(denoiser))
        with before_forward(denoiser, _Contexts(denoiser, config, schedule).begin):
            yield


class _Contexts:
    """Gives each call within a step the cache of that call, and empties all when a generation begins."""

    def __init__(self, denoiser: Any, config: Any, schedule: ScheduleState) -> None:
        self._manager, self._names = denoiser._context_manager, denoiser._context_names
        self._config = config
        self._calls = CallsOfSteps(schedule)
        self._kept: dict[int, dict[str, Any]] = {}  # call within the step -> list of blocks -> its context

    def begin(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the denoiser begins."""
        begins, call = self._calls.begin()
        if begins:
            self._kept.clear()
        contexts = self._manager._cached_context_manager
        if call not in self._kept:
            contexts.clear()
            for name in self._names:
                self._manager.reset_context(name, cache_config=self._config)
            self._kept[call] = dict(contexts)
        contexts.update(self._kept[call])


# Of each module its attributes and its children, which torch keeps in another place.
_Attributes = dict[torch.nn.Module, tuple[dict[str, Any], dict[str, Any]]]


def _attributes(denoiser: torch.nn.Module) -> _Attributes:
    return {module: (dict(vars(module)), dict(module._modules)) for module in denoiser.modules()}


def _take_off(before: _Attributes, after: _Attributes) -> None:
    """What was set on modules between the two is taken off, and a ``forward`` that was replaced is back."""
    for module, (attributes, children) in before.items():
        attributes_after, children_after = after[module]
        for key in attributes_after.keys() - attributes.keys():
            vars(module).pop(key, None)
        if "forward" in attributes:
            vars(module)["forward"] = attributes["forward"]
        # In their order, which each call changes: the lists of blocks are replaced while it lasts (mock.patch).
        kept = {name: child for name, child in module._modules.items() if name not in children_after.keys() - children}
        module._modules.clear()
        module._modules.update({name: kept[name] for name in (*children, *kept) if name in kept})
