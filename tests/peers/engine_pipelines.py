"""Pipelines for engines' caches: transformers with random weights, of as many blocks as caches are of use with."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from peers import pipelines
from peers.current_pipelines import CURRENT
from peers.samples import load

from autodiffusion_opt.sampling.conditions import Labels, Prompts
from autodiffusion_opt.sampling.example_call import learn_layers
from autodiffusion_opt.sampling.generate import ImageSampler


def flux(blocks: int = 3) -> ImageSampler:
    """A Flux of so many blocks of two streams and as many of one; its pipeline tells caches which call they are in."""
    pipeline = load("flux")
    torch.manual_seed(0)
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)  # takes the list of sigmas of a call
    config = dict(pipeline.transformer.config) | {"num_layers": blocks, "num_single_layers": blocks}
    pipeline.transformer = diffusers.FluxTransformer2DModel.from_config(config).eval()
    return ImageSampler(pipeline, Prompts(pipelines.PROMPTS), pipelines.CALLS["flux"], micro_batch=2, batch_size=2)


def dit(blocks: int = 4) -> ImageSampler:
    """A DiT with guidance in one call."""
    pipeline = load("dit")
    torch.manual_seed(0)
    config = dict(pipeline.transformer.config) | {"num_layers": blocks}
    pipeline.transformer = diffusers.DiTTransformer2DModel.from_config(config).eval()
    call = {"guidance_scale": 2.0}
    return ImageSampler(pipeline, Labels((0, 2, 1)), call, micro_batch=2, batch_size=2)


def sd3(blocks: int = 4) -> ImageSampler:
    """An SD3, whose last block hands on no text."""
    pipeline = load("sd3")
    torch.manual_seed(0)
    config = dict(pipeline.transformer.config) | {"num_layers": blocks}
    pipeline.transformer = diffusers.SD3Transformer2DModel.from_config(config).eval()
    return ImageSampler(pipeline, Prompts(pipelines.PROMPTS), {}, micro_batch=2, batch_size=2)


def current(name: str, **layers: int) -> ImageSampler:
    """A pipeline of a current model, its transformer with so many blocks where that is given."""
    pipeline, call = CURRENT[name]()
    if layers:
        torch.manual_seed(0)
        transformer = type(pipeline.transformer)
        pipeline.transformer = transformer.from_config(dict(pipeline.transformer.config) | layers).eval()
    learn_layers(pipeline)
    return ImageSampler(pipeline, Prompts(pipelines.PROMPTS), call, micro_batch=2, batch_size=2)


def cogview4() -> ImageSampler:
    """A CogView4, whose pipeline calls the transformer with the prompt and again without."""
    return current("cogview4")


def flux2() -> ImageSampler:
    """A Flux 2, whose blocks of one stream take something else than those of two."""
    return current("flux2", num_layers=2, num_single_layers=3)


def traces(denoiser: Any) -> dict[str, list[str]]:
    """What hooks leave on the modules of a denoiser; empty where nothing is left."""
    left = {
        name: [key for key in ("forward", "_diffusers_hook") if key in vars(module)] + list(module._forward_pre_hooks)
        for name, module in denoiser.named_modules()
    }
    return {name: marks for name, marks in left.items() if marks}
