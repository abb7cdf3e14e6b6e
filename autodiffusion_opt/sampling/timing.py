"""The wall time of sampling, measured: warmed up, and the median of several calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.sampling.generate import ImageSampler

# Calls that are timed, after one that is not: the first call allocates, and compiles what is compiled.
CALLS = 5
SEED = 0


def seconds_an_image(sampler: ImageSampler, candidate: Candidate, calls: int = CALLS) -> float:
    """Seconds that a pipeline needs for one image: the median over whole micro-batches, after one that warms up.

    Args:
        sampler: the pipeline and how it is called.
        candidate: what it samples with.
        calls: how many are timed.
    """
    device = torch.device(sampler.pipeline.device)

    images = sampler.micro_batch * sampler.frames

    def call() -> float:
        _wait(device)
        begun = time.perf_counter()
        for _ in sampler.images(candidate, range(images), SEED):
            pass
        _wait(device)
        return time.perf_counter() - begun

    call()
    return median(call() for _ in range(calls)) / images


def two_micro_batches(
    sampler: ImageSampler, candidate: Candidate, measure: Callable[[torch.Tensor], object]
) -> dict[str, float]:
    """Seconds for one image of ``sampling`` and of measuring its ``features``, from two micro-batches.

    The first warms up: it allocates, and compiles what is compiled.

    Args:
        sampler: the pipeline and how it is called.
        candidate: what it samples with.
        measure: what is done with the images of a micro-batch, uint8 (N, C, H, W).
    """
    device = torch.device(sampler.pipeline.device)
    images = sampler.micro_batch * sampler.frames
    seconds = {}
    for _ in range(2):
        _wait(device)
        begun = time.perf_counter()
        blocks = list(replace(sampler, batch_size=images).images(candidate, range(images), SEED))
        _wait(device)
        sampled = time.perf_counter()
        for block in blocks:
            measure(block)
        _wait(device)
        seconds = {"sampling": sampled - begun, "features": time.perf_counter() - sampled}
    return {part: taken / images for part, taken in seconds.items()}


def _wait(device: torch.device) -> None:
    """Until the device has done what it was told: a GPU works behind the calls."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine_name(device: torch.device) -> str:
    """What times are measured on: seconds of another device are not comparable."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"  # part of studies' definitions: it must not change
