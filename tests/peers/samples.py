"""The small pipelines of :mod:`peers.pipelines`, loaded as a user loads them, and a few images of each."""

from __future__ import annotations

from typing import Any

import torch
from peers import pipelines

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.sampling.conditions import Conditions, Labels, Prompts, Unconditional
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.load import load_pipeline

IMAGES, BATCH, SEED = 4, 3, 5
UNEVEN = Candidate.from_time_steps([901, 640, 222])


def conditions_of(name: str) -> Conditions:
    if name in pipelines.TEXT:
        return Prompts(pipelines.PROMPTS)
    return Labels((0, 2, 1)) if name in pipelines.CLASSES else Unconditional()


def load(name: str, **settings: Any) -> Any:
    return load_pipeline(str(pipelines.saved(name)), device="cpu", **settings)


def sampler_of(pipeline: Any, name: str, **more: Any) -> ImageSampler:
    """A sampler that runs the pipeline as its kind is run."""
    call = pipelines.CALLS.get(name, {}) | more.pop("call", {})
    settings = {"micro_batch": BATCH, "batch_size": BATCH, "conditions": conditions_of(name)} | more
    return ImageSampler(pipeline, call=call, **settings)


def images_of(pipeline: Any, name: str, candidate: Candidate = UNEVEN, seed: int = SEED, **more: Any) -> torch.Tensor:
    return torch.cat(list(sampler_of(pipeline, name, **more).images(candidate, range(IMAGES), seed)))
