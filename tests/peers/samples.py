"""The small pipelines of :mod:`peers.pipelines`, loaded as a user loads them, and a few images of each."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from peers import pipelines

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.sampling.conditions import Conditions, Labels, Prompts, Unconditional
from autodiffusion_opt.sampling.generate import ImageSampler, noise_generator
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


def call_by_hand(pipeline: Any, name: str, indices: list[int], **more: Any) -> torch.Tensor:
    """As a user calls diffusers: nothing of ours but the noise. What is not "pt" comes as (N, H, W, C)."""
    given: dict[str, Any] = {"generator": [noise_generator(SEED, index) for index in indices]}
    if name in pipelines.TEXT:
        given["prompt"] = [pipelines.PROMPTS[index % len(pipelines.PROMPTS)] for index in indices]
    if name in ("dit", "consistency", "adm_guided"):
        given["class_labels"] = [Labels((0, 2, 1)).label(index) for index in indices]
    if name not in (*pipelines.TEXT, "dit"):
        given["batch_size"] = len(indices)
    with _labels_in(pipeline, indices) if name == "adm" else nullcontext():
        images = pipeline(**given, **pipelines.CALLS.get(name, {}), output_type="pt", **more).images
    return torch.from_numpy(images).permute(0, 3, 1, 2) if isinstance(images, np.ndarray) else images


def _labels_in(pipeline: Any, indices: list[int]) -> AbstractContextManager[None]:
    """A class-conditional denoiser in a pipeline that takes no labels."""
    labels = Labels((0, 2, 1))
    labels.arguments(pipeline, indices)
    return labels.around(pipeline)
