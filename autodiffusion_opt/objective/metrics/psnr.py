"""``kind = "psnr"``: the peak signal-to-noise ratio of an image to the teacher's of the same noise, in decibels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from autodiffusion_opt.objective.goals import Direction
from autodiffusion_opt.objective.metrics.to_teacher import ToTeacher

if TYPE_CHECKING:
    import torch

PEAK = 255.0
# Of an image that is the teacher's, which has an infinite one. No mean over images is above it.
MOST = 100.0


class Psnr(ToTeacher):
    """10 log₁₀(255² / mean squared difference) of each image, at most 100; the mean over images."""

    direction: ClassVar[Direction] = "maximize"

    def compared(self, images: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """(N,), in decibels."""
        squares = (images.double() - teacher.double()).square().flatten(1).mean(dim=1)
        ratio: torch.Tensor = 10 * (PEAK**2 / squares).log10()
        return ratio.clamp(max=MOST)
