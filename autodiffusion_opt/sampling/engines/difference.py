"""By how much the images of two ways to sample differ, on the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.sampling.apply import install
from autodiffusion_opt.sampling.generate import ImageSampler

# Images that an export compares.
IMAGES = 4
SEED = 0
# Images that differ by no more, in pixels of 0 .. 1, are the same but for rounding.
SAME_PIXELS = 1e-5


@dataclass(frozen=True)
class Difference:
    """Of pixels in 0 .. 1.

    Attributes:
        greatest: of all pixels of all images.
        mean: over them.
        images: how many were compared.
    """

    greatest: float
    mean: float
    images: int

    @property
    def is_none(self) -> bool:
        """Whether the images are the same but for rounding."""
        return self.greatest <= SAME_PIXELS

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"greatest": self.greatest, "mean": self.mean, "images": self.images}

    def __str__(self) -> str:
        return f"at most {self.greatest:.3g}, {self.mean:.3g} in the mean, of pixels 0..1, over {self.images} images"


@torch.inference_mode()
def pixels(sampler: ImageSampler, candidate: Candidate, images: int = IMAGES, seed: int = SEED) -> torch.Tensor:
    """The images 0 .. ``images`` - 1 of a candidate, cut to 0 .. 1; shape (images, channels, height, width)."""
    with install(sampler.pipeline, candidate), sampler.calls() as call:
        size = sampler.micro_batch
        parts = [
            call(range(start, min(start + size, images)), seed, len(candidate.steps))
            for start in range(0, images, size)
        ]
    return torch.cat(parts).float().cpu().clamp(0, 1)


def difference(first: torch.Tensor, second: torch.Tensor) -> Difference:
    """Of two sets of the same images (N, ...)."""
    apart = (first - second).abs().double()
    return Difference(float(apart.max()), float(apart.mean()), len(first))


def difference_between(sampler: ImageSampler, candidate: Candidate, other: Candidate) -> Difference:
    """Of the images of two candidates of a pipeline."""
    return difference(pixels(sampler, candidate), pixels(sampler, other))
