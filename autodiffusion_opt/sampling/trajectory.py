"""The errors of single steps along the trajectory of a pipeline sampled with many steps.

Measured on the pipeline's own call, under a deterministic first-order solver of its kind of noise, so that it does not
depend on the study's solver: DDIM, or Euler's for flow matching. A first-order step keeps the predicted image and noise
(x₀, ε) of the point that it starts from, so x_j = α_j·x₀ + σ_j·ε; and these follow from two neighbouring points of the
trajectory, whatever the network predicts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from autodiffusion_opt.cache import kept
from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.sampling.apply import install, watch_samples, with_scheduler
from autodiffusion_opt.sampling.fingerprint import fingerprint_components
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.schedule import is_log_linear, schedule_on, sigmas_of, stops_early, untouched
from autodiffusion_opt.space.baselines import shifted
from autodiffusion_opt.space.local_errors import Floats, LocalErrors
from autodiffusion_opt.space.model_info import ModelInfo

# Points of the trajectory, and images: with fewer points the chosen times are coarser; with 64 images they are those of
# 256, and with 16 nearly so (benchmarks/dynamic_programming.py).
POINTS = 46
IMAGES = 64
# Of a scheduler's configuration: what the model predicts, and how its prediction is kept in bounds.
SAME_MODEL = (
    "num_train_timesteps",
    "prediction_type",
    "dynamic_thresholding_ratio",
    "clip_sample_range",
    "sample_max_value",
)
CLIPPING = ("clip_sample", "thresholding")


@dataclass(frozen=True)
class Measured:
    """Local errors, and what they cost where they are not on disk.

    Attributes:
        errors: of the model.
        images: that were sampled.
        nfe: calls of the denoiser for each.
    """

    errors: LocalErrors
    images: int
    nfe: int


@torch.inference_mode()
def local_errors(
    sampler: ImageSampler,
    info: ModelInfo,
    *,
    points: int = POINTS,
    images: int = IMAGES,
    seed: int = 0,
    progress: Progress = silent,
) -> Measured:
    """The errors of single steps between ``points`` even times, the mean square over ``images``; kept on disk.

    An error in a sample counts by the share α² of it that is image: an error of the noise that is left is corrected
    later.

    Args:
        sampler: whose pipeline is left as it was found, also after an exception.
        info: the model's numbers.
        points: of the trajectory.
        images: that are sampled.
        seed: of their noise.
        progress: is told of the images.

    Raises:
        UserError: for a model that is distilled to few steps of a solver of its own (LCM, TCD), or that overflows.
    """
    times = trajectory_times(info, points)
    given = [
        fingerprint_components(sampler.pipeline),
        sampler.conditions.identity,
        json.dumps(dict(sampler.call), sort_keys=True, default=repr),
        str([times, images, seed, sampler.micro_batch, str(torch.device(sampler.pipeline.device).type)]),
        torch.__version__,
        diffusers.__version__,
    ]
    key = hashlib.sha256("\n".join(given).encode()).hexdigest()[:32]
    arrays = kept(f"local-errors-{key}", lambda: _measured(sampler, times, images, seed, progress), "local errors")
    return Measured(LocalErrors(np.array(times), arrays["start"], arrays["errors"]), images, len(times))


def trajectory_times(info: ModelInfo, points: int) -> tuple[float, ...]:
    """Even integer times from the highest to the lowest; those of a flow matching model moved by its shift."""
    even = np.linspace(info.highest, info.lowest, points)
    moved = np.clip(np.round(shifted(info, tuple(float(time) for time in even))), np.ceil(info.lowest), info.highest)
    return tuple(sorted({float(time) for time in moved}, reverse=True))


def _measured(
    sampler: ImageSampler, times: Sequence[float], images: int, seed: int, progress: Progress
) -> dict[str, NDArray[Any]]:
    """``start`` and ``errors`` of :class:`LocalErrors`, means over images."""
    count = len(times)
    start, errors = np.zeros(count), np.zeros((count, count + 1))
    size = min(sampler.micro_batch, images)
    pipeline = sampler.pipeline
    with (
        with_scheduler(pipeline, _first_order(pipeline.scheduler)),
        install(pipeline, Candidate.from_time_steps(times)),
    ):
        signal, noise = _levels(pipeline.scheduler, times)
        trajectory = _Trajectory()
        watch_samples(pipeline, trajectory.keep)
        with replace(sampler, micro_batch=size, frames=1).calls() as call:
            for first in range(0, images, size):
                indices = range(first, min(first + size, images))
                progress("sampling the teacher's trajectory", first, images)
                call(indices, seed, count)
                points = trajectory.taken(len(indices))
                start += _start_errors(points, signal)
                errors += _step_errors(points, signal, noise)
    if not (np.isfinite(start).all() and np.isfinite(errors).all()):
        raise UserError(
            f"the trajectory of {count} steps must be finite: the model overflows; with dtype float16, try bfloat16 "
            "or float32"
        )
    # One step leads forwards only.
    errors[np.tril_indices(count, 0, count + 1)] = np.inf
    return {"start": start / images, "errors": errors / images}


class _Trajectory:
    """The samples of one call, from the noise to the image."""

    def __init__(self) -> None:
        self._points: list[torch.Tensor] = []

    def keep(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """A step's sample before and after it."""
        self._points += [after] if self._points else [before, after]

    def taken(self, count: int) -> torch.Tensor:
        """float64 (M + 1, count, D), and begins the next call. With guidance some pipelines repeat all samples."""
        points = torch.stack([point[:count].flatten(1).double() for point in self._points])
        self._points = []
        return points


def _start_errors(points: torch.Tensor, signal: Floats) -> Floats:
    """Of the noise, taken for the sample at each time: Σ over images of α²·‖x_noise - x‖², shape (M,)."""
    apart = (points[:1] - points[:-1]).square().sum(dim=(1, 2)).cpu().numpy()
    return np.asarray(apart * signal[:-1] ** 2)


def _step_errors(points: torch.Tensor, signal: Floats, noise: Floats) -> Floats:
    """Of one step between each two points: Σ over images of α_j²·‖α_j·x₀ + σ_j·ε - x_j‖², shape (M, M + 1)."""
    rows = []
    alpha, sigma = (torch.from_numpy(level).to(points.device)[:, None, None] for level in (signal, noise))
    for i in range(len(points) - 1):
        # x_i = α_i·x₀ + σ_i·ε and the same at i + 1, solved for both.
        determinant = signal[i] * noise[i + 1] - signal[i + 1] * noise[i]
        image = (noise[i + 1] * points[i] - noise[i] * points[i + 1]) / determinant
        epsilon = (signal[i] * points[i + 1] - signal[i + 1] * points[i]) / determinant
        apart = (alpha * image + sigma * epsilon - points).square().sum(dim=(1, 2)).cpu().numpy()
        rows.append(apart * signal**2)
    return np.stack(rows)


def _levels(scheduler: Any, times: Sequence[float]) -> tuple[Floats, Floats]:
    """α and σ at each time and at the image, x = α·x₀ + σ·ε; shapes (M + 1,)."""
    schedule = schedule_on(scheduler)
    assert schedule is not None  # installed by the caller
    if len(schedule.alpha_bars):
        alpha_bars = schedule.alpha_bars.double().numpy()
        return np.sqrt(alpha_bars), np.sqrt(1 - alpha_bars)
    sigmas = np.append(np.array(times) / scheduler.config.num_train_timesteps, 0.0)
    return 1 - sigmas, sigmas


def _first_order(scheduler: Any) -> Any:
    """A deterministic solver of order 1 for the same model. Raises UserError for a model that has none."""
    if not stops_early(scheduler):
        raise UserError(
            f"dynamic programming needs a model whose trajectory many steps follow; one for {type(scheduler).__name__} "
            "is distilled to few: leave dp out of start_from"
        )
    config = scheduler.config
    is_flow = sigmas_of(scheduler) is None
    if not is_flow and (is_log_linear(scheduler) or not hasattr(scheduler, "alphas_cumprod")):
        raise UserError(
            "dynamic programming needs a model of flow matching or of ᾱ at its training times; one for "
            f"{type(scheduler).__name__} as it is configured has neither: leave dp out of start_from"
        )
    if isinstance(scheduler, diffusers.CogVideoXDPMScheduler | diffusers.CogVideoXDDIMScheduler):
        return diffusers.CogVideoXDDIMScheduler.from_config(config)  # its ᾱ is not that of its betas
    if not hasattr(scheduler, "alphas_cumprod") or config.get("use_flow_sigmas"):
        if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
            return untouched(scheduler)
        return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.num_train_timesteps)
    given = {key: config[key] for key in SAME_MODEL if key in config}
    clips = {key: config.get(key, False) for key in CLIPPING}  # DDIM's own default is to clip
    return diffusers.DDIMScheduler(**given, **clips, trained_betas=scheduler.betas.tolist())
