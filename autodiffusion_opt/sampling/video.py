"""What pipelines return: images, or clips, of which some frames are the images that are measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from autodiffusion_opt.errors import UserError


def pixels_of(output: Any, frames: int, name: str) -> torch.Tensor:
    """The images of a pipeline's output, about 0..1, shape (N, channels, height, width).

    Args:
        output: of a call with ``output_type="pt"``.
        frames: how many of each clip are taken, evenly spread; 1: the middle one.
        name: the pipeline's.

    Returns:
        Of N clips their frames, one clip after the other: (N * frames, channels, height, width).

    Raises:
        UserError: for more frames than a clip has, or for frames of a pipeline that makes images.
    """
    if not hasattr(output, "frames"):
        if frames > 1:
            raise UserError(f"{name} makes images, not clips: leave frames out of the objective; got {frames}")
        return _channels_first(output.images)
    clips = torch.as_tensor(np.stack(output.frames) if isinstance(output.frames, list) else output.frames)
    if clips.shape[-1] == 3 and clips.shape[2] != 3:
        clips = clips.movedim(-1, 2)
    count = clips.shape[1]
    if frames > count:
        raise UserError(f"frames must be at most {count}, those of a clip of {name} as it is called; got {frames}")
    return clips[:, frame_places(count, frames)].flatten(0, 1)


def frame_places(count: int, frames: int) -> list[int]:
    """Which of ``count`` frames are taken: the middles of as many equal parts."""
    return [int((place + 0.5) * count / frames) for place in range(frames)]


def _channels_first(images: Any) -> torch.Tensor:
    if isinstance(images, np.ndarray):  # LDMPipeline knows no "pt": (N, H, W, C)
        return torch.from_numpy(images).permute(0, 3, 1, 2)
    pixels: torch.Tensor = images
    return pixels
