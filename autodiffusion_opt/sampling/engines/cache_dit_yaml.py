"""A candidate with partial steps as cache-dit's YAML: a static mask of steps, compared by its images.

A partial step runs the first blocks and adds what the others added at the last full step. So does a step that
cache-dit's mask leaves out, with as many front blocks, one at least, and no back ones, where it takes all blocks as one
list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.engine import CacheDiT, CacheDiTMask
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.apply import install
from autodiffusion_opt.sampling.branches import branches_of
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.engines.cache_dit import block_lists, cache_dit_values
from autodiffusion_opt.sampling.engines.calls import CallsOfSteps
from autodiffusion_opt.sampling.engines.difference import Difference, difference, pixels
from autodiffusion_opt.sampling.engines.diffusers_caches import whole_steps
from autodiffusion_opt.sampling.engines.install import check_engine
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.hooks import before_forward
from autodiffusion_opt.sampling.layers.listing import unwrap
from autodiffusion_opt.sampling.schedule import schedule_on

# cache-dit keeps a cache for the call with the prompt, and one for that without.
MOST_CALLS = 2


@dataclass(frozen=True)
class NearestMask:
    """What was chosen.

    Attributes:
        engine: cache-dit's settings.
        calls: of the denoiser at each step.
        difference: of its images and the candidate's.
        remarks: on what it cannot express.
    """

    engine: CacheDiT | CacheDiTMask
    calls: int
    difference: Difference
    remarks: tuple[str, ...]


def nearest_mask(sampler: ImageSampler, candidate: Candidate) -> NearestMask:
    """cache-dit's settings for a candidate: exactly its partial steps where it can, else the nearest over a few images.

    Raises:
        UserError: where cache-dit is not installed or does not know the pipeline, or the candidate has the cache of
            another engine.
    """
    lists = block_lists(sampler.pipeline)
    if candidate.engine is not None and not isinstance(candidate.engine, CacheDiT | CacheDiTMask):
        raise UserError(
            f"cache-dit cannot run {candidate.engine}, which is a cache of diffusers: --for diffusers-cache"
        )
    wanted = pixels(sampler, candidate)
    engines = _engines(sampler, candidate, lists)
    for engine in engines:
        check_engine(sampler.pipeline, engine)
    calls = _calls(sampler, candidate)
    measured = {engine: difference(pixels(sampler, whole_steps(candidate, engine)), wanted) for engine in engines}
    best = min(measured, key=lambda engine: measured[engine].mean)
    remarks = [*_left_out(sampler, candidate, lists)]
    if len(engines) > 1:
        remarks += [f"{engine}: images differ by {apart}" for engine, apart in measured.items()]
    return NearestMask(best, calls, measured[best], tuple(remarks))


def cache_dit_yaml(settings: Mapping[str, Any], pipeline: str) -> str:
    """The text of a YAML file that ``cache_dit.load_configs`` reads.

    Args:
        settings: keys of ``DBCacheConfig``: numbers, truth values, words and a list of integers.
        pipeline: the name of its class.
    """
    shown = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in settings.items()}
    lines = [
        f"# A candidate's partial steps on {pipeline}, for cache-dit 1.5:",
        '# cache_dit.enable_cache(pipeline, **cache_dit.load_configs("cache_dit.yaml"))',
        "cache_config:",
        *(f"  {key}: {value}" for key, value in shown.items()),
    ]
    return "\n".join(lines) + "\n"


def config_values(mask: NearestMask, steps: int) -> dict[str, Any]:
    """The keys of ``DBCacheConfig`` for a candidate of so many steps."""
    return cache_dit_values(mask.engine, steps, mask.calls)


def _engines(
    sampler: ImageSampler, candidate: Candidate, lists: list[list[torch.nn.Module]]
) -> list[CacheDiT | CacheDiTMask]:
    """What may make the candidate's steps partial: its branches, each for all steps."""
    if isinstance(candidate.engine, CacheDiT | CacheDiTMask):
        return [candidate.engine]
    skipped = tuple(index for index, branch in enumerate(candidate.branches) if branch is not None)
    chosen = sorted({branch for branch in candidate.branches if branch is not None})
    if not chosen:
        return [CacheDiTMask(1, 0, ())]
    fronts = {max(1, _blocks_run(sampler, lists, branch)) for branch in chosen}
    return [CacheDiTMask(min(front, *map(len, lists)), 0, skipped) for front in sorted(fronts)]


def _blocks_run(sampler: ImageSampler, lists: list[list[torch.nn.Module]], branch: int) -> int:
    """How many blocks of cache-dit's last list a branch runs."""
    denoiser = unwrap(denoiser_of(sampler.pipeline))
    branches = branches_of(denoiser)
    run = {denoiser.get_submodule(path) for path in branches.parts[: branches.cuts[branch][0] + 1]}
    return sum(block in run for block in lists[-1])


def _left_out(sampler: ImageSampler, candidate: Candidate, lists: list[list[torch.nn.Module]]) -> Iterator[str]:
    removed = [f"{step.time:g}" for step in candidate.steps if step.removed]
    branches = sorted({branch for branch in candidate.branches if branch is not None})
    if removed:
        yield f"layer sets are left out (of the steps at {', '.join(removed)}): cache-dit runs every layer"
    if len(branches) > 1:
        yield (
            f"branches {', '.join(map(str, branches))} are not run each at its steps: cache-dit has one number of "
            "front blocks (Fn_compute_blocks) for all"
        )
    if any(_blocks_run(sampler, lists, branch) == 0 for branch in branches):
        yield "branch 0 runs no block of cache-dit's list: cache-dit runs one (Fn_compute_blocks) at least"
    if branches and len(lists) > 1:
        sizes = " and ".join(str(len(blocks)) for blocks in lists)
        yield f"partial steps are not run as such: cache-dit runs the front blocks of each list, of {sizes} blocks"
    if isinstance(candidate.engine, CacheDiT):
        yield "cache-dit decides by the mean over the images of a call: other batches may skip other steps"


@torch.inference_mode()
def _calls(sampler: ImageSampler, candidate: Candidate) -> int:
    """Of the denoiser at each step. Raises UserError for more than cache-dit knows."""
    whole = whole_steps(candidate)
    pipeline = sampler.pipeline
    with install(pipeline, whole), sampler.calls() as call:
        schedule = schedule_on(pipeline.scheduler)
        assert schedule is not None
        counted = CallsOfSteps(schedule)

        def count(*_: Any) -> None:
            counted.begin()

        with before_forward(denoiser_of(pipeline), count):
            call(range(1), 0, len(whole.steps))
    if counted.most > MOST_CALLS:
        raise UserError(
            f"{type(pipeline).__name__} calls its denoiser {counted.most} times a step as it is called here, and "
            "cache-dit knows one call, or one with the prompt and one without (enable_separate_cfg)"
        )
    return counted.most
