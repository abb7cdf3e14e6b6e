"""Images of a candidate beside those that it is compared with, from the same noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.progress import Progress, counted, silent
from autodiffusion_opt.space.baselines import OWN, linspace
from autodiffusion_opt.study.results import Result

if TYPE_CHECKING:
    import torch

    from autodiffusion_opt.sampling.generate import ImageSampler

# Steps of the pipeline's own that stand for as many as one likes.
TEACHER_STEPS = 50


def compared_candidates(sampler: ImageSampler, best: Candidate, *, teacher: bool = True) -> dict[str, Candidate]:
    """``own``, ``best``, ``uniform`` (even steps over the whole time range) and ``teacher``, those that differ.

    Args:
        sampler: the pipeline and its conditions.
        best: the candidate that is looked at.
        teacher: whether the pipeline's own 50 steps are among them.
    """
    from autodiffusion_opt.sampling.introspect import read_model_info
    from autodiffusion_opt.sampling.own import own_candidate

    count, with_guidance = len(best.steps), best.guidance_scale is not None
    named = {OWN: own_candidate(sampler, count, with_guidance=with_guidance), "best": best}
    info = read_model_info(sampler.pipeline)
    within = (min(max(time, info.lowest), info.highest) for time in linspace(info, count))
    try:
        named["uniform"] = Candidate.from_time_steps(within, guidance_scale=named[OWN].guidance_scale)
        if teacher:
            named["teacher"] = own_candidate(sampler, TEACHER_STEPS, with_guidance=with_guidance)
    except UserError:  # the scheduler has no times for so many steps, or they coincide
        pass
    first = {candidate: name for name, candidate in reversed(named.items())}
    return {name: candidate for name, candidate in named.items() if first[candidate] == name}


def sample_blocks(
    sampler: ImageSampler,
    candidates: Mapping[str, Candidate],
    count: int,
    seed: int,
    measured: Mapping[Candidate, Mapping[str, float]] | None = None,
    progress: Progress = silent,
) -> dict[str, torch.Tensor]:
    """Caption -> images, uint8 (count, C, H, W).

    Args:
        sampler: makes the images.
        candidates: by name.
        count: images of each.
        seed: of their noise.
        measured: the values that a study measured of a candidate, which its caption tells.
        progress: is told of the images.
    """
    import torch

    blocks: dict[str, torch.Tensor] = {}
    for name, candidate in candidates.items():
        images = (block.cpu() for block in sampler.images(candidate, range(count), seed))
        told = counted(images, progress, "sampling images", len(candidates) * count, count * len(blocks))
        values = "".join(f", {key} {value:.4g}" for key, value in ((measured or {}).get(candidate) or {}).items())
        steps = f"{len(candidate.steps)} steps" if name == "teacher" else str(candidate)
        blocks[f"{name} {steps}{values}"] = torch.cat(list(told))
    return blocks


def measured_values(results: list[Result]) -> dict[Candidate, Mapping[str, float]]:
    """The values of each candidate of a study."""
    return {result.candidate: result.values for result in results}
