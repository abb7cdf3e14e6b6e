"""The small pipelines of :mod:`peers.pipelines`, loaded as a user loads them, and a few images of each."""

from __future__ import annotations

from typing import Any

import torch
from peers import pipelines

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.sampling.conditions import Labels, Prompts
from autodiffusion_opt.sampling.load import load_pipeline
from autodiffusion_opt.sampling.apply import Conditions, generate

IMAGES, BATCH, SEED = 4, 3, 5
UNEVEN = Candidate.from_time_steps([901, 640, 222])


def conditions_of(name: str) -> Conditions | None:
    if name in pipelines.TEXT:
        return Prompts(pipelines.PROMPTS)
    return Labels((0, 2, 1)) if name in pipelines.CLASSES else None


def load(name: str, **settings: Any) -> Any:
    return load_pipeline(str(pipelines.saved(name)), device="cpu", **settings)


def images_of(pipeline: Any, name: str, candidate: Candidate = UNEVEN, **more: Any) -> torch.Tensor:
    settings = {"seed": SEED, "batch_size": BATCH, "micro_batch": BATCH, "conditions": conditions_of(name)} | more
    call = pipelines.CALLS.get(name, {}) | settings.pop("call", {})
    return torch.cat(list(generate(pipeline, candidate, range(IMAGES), call=call, **settings)))
