"""``kind = "ssim"``: the structural similarity of an image to the teacher's of the same noise (Wang et al., 2004)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.goals import Direction
from autodiffusion_opt.objective.metrics.to_teacher import ToTeacher

if TYPE_CHECKING:
    import torch

# Section III.B of the paper: the window, its width, and the two constants for values from 0 to 255.
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class Ssim(ToTeacher):
    """The mean over channels and all places where the window is inside the image; at most 1; the mean over images."""

    direction: ClassVar[Direction] = "maximize"

    def compared(self, images: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """(N,). Raises UserError for images that are smaller than the window."""
        height, width = images.shape[-2:]
        if min(height, width) < WINDOW:
            raise UserError(
                f"ssim compares windows of {WINDOW} x {WINDOW} pixels, so images must be at least as large; got "
                f"{height} x {width}"
            )
        return similarity(images.double(), teacher.double())


def similarity(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) twice, from 0 to 255 -> (N,): Wang et al., equation 13, averaged as in their equation 17."""
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    both = _blurred(x * y) - mean_x * mean_y
    means = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structures = (2 * both + C2) / (var_x + var_y + C2)
    return (means * structures).flatten(1).mean(dim=1)


def _blurred(images: torch.Tensor) -> torch.Tensor:
    """The Gaussian window's mean, at all places where it is inside: (N, C, H - 10, W - 10)."""
    import torch

    place = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = torch.exp(-(place**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    planes = images.flatten(0, 1)[:, None]
    blurred = torch.nn.functional.conv2d(planes, weights[None, None, :, None])
    blurred = torch.nn.functional.conv2d(blurred, weights[None, None, None, :])
    return blurred.reshape(*images.shape[:2], *blurred.shape[-2:])
