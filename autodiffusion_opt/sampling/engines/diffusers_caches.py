"""A candidate with partial steps in one of diffusers' own caches: the nearest configuration, by measuring.

What a partial step that runs no block does, MagCache does as well, at steps that can be chosen freely. FirstBlockCache
runs the first block and adds what the others added; but which steps are partial its threshold decides by the data.
TaylorSeer runs no block, at even intervals, and extrapolates.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.engine import Engine, FirstBlockCache, MagCache, TaylorSeerCache
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.apply import install
from autodiffusion_opt.sampling.branches import branches_of
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.engines.difference import IMAGES, Difference, difference, pixels
from autodiffusion_opt.sampling.engines.install import check_engine
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.layers.listing import unwrap

# Orders of a Taylor series that are tried.
ORDERS = (0, 1, 2)


@dataclass(frozen=True)
class NearestCache:
    """What was chosen.

    Attributes:
        engine: the cache with its settings; None: the candidate needs none.
        difference: of its images and the candidate's.
        remarks: on every cache that was tried or could not be.
    """

    engine: Engine | None
    difference: Difference
    remarks: tuple[str, ...]


def whole_steps(candidate: Candidate, engine: Engine | None = None) -> Candidate:
    """The candidate with every layer run at every step, and an engine's cache."""
    return replace(candidate, steps=tuple(map(Step, candidate.times)), engine=engine)


def nearest_cache(sampler: ImageSampler, candidate: Candidate) -> NearestCache:
    """The configuration of diffusers' caches whose images are the nearest to a candidate's, over a few images.

    Raises:
        UserError: for a denoiser that none of diffusers' caches runs on.
    """
    wanted = pixels(sampler, candidate)
    engines, remarks = _engines(sampler, candidate)
    if not engines:
        raise UserError(f"diffusers has no cache for this candidate on this pipeline: {'; '.join(remarks)}")
    measured = {engine: difference(pixels(sampler, whole_steps(candidate, engine)), wanted) for engine in engines}
    best = min(measured, key=lambda engine: measured[engine].mean)
    for engine, apart in measured.items():
        told = "none: every step is computed" if engine is None else str(engine)
        remarks.append(f"{told}: images differ by {apart}")
    return NearestCache(best, measured[best], (*_left_out(sampler, candidate), *remarks))


def _engines(sampler: ImageSampler, candidate: Candidate) -> tuple[list[Engine | None], list[str]]:
    """The engines that make the candidate's steps partial; and sentences on those that cannot."""
    if candidate.engine is not None:
        return [candidate.engine], []
    mask = tuple(branch is None for branch in candidate.branches)
    if all(mask):
        return [None], []
    engines: list[Engine | None] = []
    remarks: list[str] = []
    for caches, problems in (_mag(sampler, mask), _first_block(sampler, candidate), _taylor(sampler, mask)):
        engines += caches
        remarks += problems
    return engines, remarks


Tried = tuple[list[Engine | None], list[str]]


def _mag(sampler: ImageSampler, mask: Sequence[bool]) -> Tried:
    engine = MagCache(tuple(index for index, computed in enumerate(mask) if not computed))
    problem = _problem(sampler, engine)
    return ([], [problem]) if problem else ([engine], [])


def _first_block(sampler: ImageSampler, candidate: Candidate) -> Tried:
    problem = _problem(sampler, FirstBlockCache(1.0)) or _without_context(sampler, "first-block-cache")
    if problem:
        return [], [problem]
    kept, changed = changes(sampler, candidate)
    if not max(kept, default=0.0) < min(changed, default=math.inf):
        return [], [
            "first-block-cache: no threshold makes these steps partial: what the first block adds changes by up to "
            f"{max(kept):.3g} at the partial steps, and by {min(changed):.3g} at a full one"
        ]
    low, high = max(kept), min(changed, default=2 * max(kept))
    engine = FirstBlockCache(math.sqrt(low * high) if low > 0 else high / 2)
    return [engine], [
        f"first-block-cache decides by the data: over the images compared, what the first block adds changes by up to "
        f"{low:.3g} at the partial steps, and by {high:.3g} or more at the full ones; of other images it may not"
    ]


def _taylor(sampler: ImageSampler, mask: Sequence[bool]) -> Tried:
    steps = len(mask)
    settings = [
        (interval, warm_up)
        for interval in range(2, steps + 1)
        for warm_up in range(1, steps)
        if TaylorSeerCache(interval, warm_up, 0).computed(steps) == tuple(mask)
    ]
    if not settings:
        return [], ["taylorseer-cache: it computes every so many steps, which the candidate does not"]
    interval, warm_up = settings[0]
    engine = TaylorSeerCache(interval, warm_up, 0)
    problem = _problem(sampler, engine) or _without_context(sampler, engine.kind)
    return ([], [problem]) if problem else ([replace(engine, order=order) for order in ORDERS], [])


def _problem(sampler: ImageSampler, engine: Engine) -> str:
    """Why the pipeline cannot run the engine; nothing where it can."""
    try:
        check_engine(sampler.pipeline, engine)
    except UserError as error:
        return f"{engine.kind}: {error}"
    return ""


def _without_context(sampler: ImageSampler, kind: str) -> str:
    """Why the cache does not run by itself on the pipeline; nothing where it does."""
    if "cache_context" in inspect.getsource(type(sampler.pipeline)):
        return ""
    return (
        f"{kind}: {type(sampler.pipeline).__name__} does not tell diffusers' caches which of a step's calls is which "
        "(cache_context), which this one needs"
    )


def _left_out(sampler: ImageSampler, candidate: Candidate) -> Iterator[str]:
    removed = [f"{step.time:g}" for step in candidate.steps if step.removed]
    chosen = sorted({branch for branch in candidate.branches if branch is not None})
    cuts = branches_of(denoiser_of(sampler.pipeline)).cuts if chosen else ()
    deep = [branch for branch in chosen if cuts[branch][0] > 0]
    if removed:
        yield f"layer sets are left out (of the steps at {', '.join(removed)}): diffusers' caches run every layer"
    if deep:
        yield (
            f"branches {', '.join(map(str, deep))} are not run as such: FirstBlockCache runs the first block of a "
            "partial step, MagCache and TaylorSeer none"
        )


@torch.inference_mode()
def changes(sampler: ImageSampler, candidate: Candidate) -> tuple[list[float], list[float]]:
    """By which share what the first block adds has changed since the last full step: at partial steps, at full ones.

    FirstBlockCache's own measure, with the candidate's partial steps: one number for every call of the denoiser.
    """
    pipeline = sampler.pipeline
    mask = [branch is None for branch in candidate.branches]
    kept: list[float] = []
    changed: list[float] = []
    whole = whole_steps(candidate, FirstBlockCache(1.0))
    with install(pipeline, whole), _decided(pipeline, mask, kept, changed), sampler.calls() as call:
        for start in range(0, IMAGES, sampler.micro_batch):
            call(range(start, min(start + sampler.micro_batch, IMAGES)), 0, len(mask))
    return kept, changed


@contextlib.contextmanager
def _decided(pipeline: Any, mask: Sequence[bool], kept: list[float], changed: list[float]) -> Iterator[None]:
    """FirstBlockCache, which is on, computes the steps of ``mask`` and no other; the changes that it sees are kept."""
    from autodiffusion_opt.sampling.schedule import schedule_on

    schedule = schedule_on(pipeline.scheduler)
    assert schedule is not None
    hooks = [
        hook
        for module in unwrap(denoiser_of(pipeline)).modules()
        for hook in getattr(vars(module).get("_diffusers_hook"), "hooks", {}).values()
        if hasattr(hook, "_should_compute_remaining_blocks")
    ]

    for hook in hooks:

        def decide(residual: torch.Tensor, hook: Any = hook) -> bool:
            before = hook.state_manager.get_state().head_block_residual
            computed = mask[schedule.step]
            if before is not None:
                change = ((residual - before).abs().mean() / before.abs().mean()).item()
                (changed if computed else kept).append(change)
            return computed

        hook._should_compute_remaining_blocks = decide
    yield  # the hooks go with the cache
