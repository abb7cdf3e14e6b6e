"""Published ways to choose time steps without a search over images, written from their papers for ``peers.py``.

All three keep the first time where the noise is all there is. σ is the noise of x = x₀ + σ·ε, λ = -ln σ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, minimize

from autodiffusion_opt import Candidate
from autodiffusion_opt.sampling.apply import install, watch_samples, with_scheduler
from autodiffusion_opt.study.problem import Problem
from autodiffusion_opt.zoo.digits import load_images
from autodiffusion_opt.zoo.digits_dit import load_labels

Floats = NDArray[np.float64]

# Align Your Steps: levels of noise at which the bound is integrated, and real images.
LEVELS, REAL_IMAGES = 60, 256
# GITS, the defaults of the authors' script: points of the teacher's trajectory, trajectories, γ; Karras' ρ.
POINTS, TRAJECTORIES, GAMMA, RHO = 61, 256, 1.15, 7
# Both begin at the greatest noise of Karras et al. (2022, table 1), not at that of the last training step, 157.
MOST_SIGMA = 80.0
# DM-NonUniform: the network's error is taken to be σ^p / α; the authors' script has p = 2.
ERROR_POWER = 2


@dataclass(frozen=True)
class Schedule:
    """Times, and what they cost to find.

    Attributes:
        candidate: of these times.
        images: generated, or as many calls of the denoiser as these take.
    """

    candidate: Candidate
    images: int


def optimized_time_steps(problem: Problem, steps: int) -> Schedule:
    """DM-NonUniform (Xue et al., "Accelerating Diffusion Sampling with Optimized Time Steps", CVPR 2024).

    Minimises the paper's bound for the solver at hand, as the authors' script states it, by a trust region under
    ascending λ: from the noise schedule alone. The solver is DDIM, of order 1, whose weights in the bound are
    e^{λ_{n+1}} - e^{λ_n}: there is nothing to interpolate. Both starts of that script are tried (even in λ, in time).
    """
    info = problem.info
    first, last = info.log_snr((info.highest, info.lowest))

    def bound(inner: Floats) -> float:
        levels = np.array([first, *inner, last])  # λ_0 .. λ_N
        alpha, sigma = 1 / np.sqrt(1 + np.exp(-2 * levels)), 1 / np.sqrt(1 + np.exp(2 * levels))
        return float(np.sum(np.diff(np.exp(levels)) * (sigma**ERROR_POWER / alpha)[:-1]))

    even_time = info.log_snr(tuple(np.linspace(info.highest, info.lowest, steps + 1)))
    starts = (np.linspace(first, last, steps + 1), even_time)
    # Each row: a difference of two neighbouring λ, the ends being constants.
    rows = np.eye(steps, steps - 1) - np.eye(steps, steps - 1, -1)
    ascending = LinearConstraint(rows, [first, *[0.0] * (steps - 2), -last], np.inf)
    solved = [minimize(bound, start[1:-1], method="trust-constr", constraints=[ascending]) for start in starts]
    best = min(solved, key=lambda result: float(result.fun))
    return Schedule(_candidate(problem, info.times_of_log_snr(np.array([first, *best.x]))), 0)


@torch.inference_mode()
def trajectory_steps(problem: Problem, steps: int) -> Schedule:
    """GITS (Chen et al., "On the Trajectory Regularity of ODE-based Diffusion Sampling", ICML 2024).

    Its geometry-inspired time schedule, by the deviation as in the authors' script.
    The cost of a step from one point of the teacher's trajectory to another is how much farther Euler's step lies from
    the line between the trajectory's ends than the trajectory does. Dynamic programming: the least cost in k steps from
    i is min_j c_ij + γ·(the least in k - 1 steps from j). The paper's teacher is of higher order; here it is DDIM of as
    many steps, without clipping, which would leave the trajectory of the differential equation.
    """
    info = problem.info
    low = info.sigma_range[0]
    sigmas = np.linspace(MOST_SIGMA ** (1 / RHO), low ** (1 / RHO), POINTS) ** RHO
    times = sorted({round(time) for time in info.times_of_sigmas(sigmas)}, reverse=True)
    points = _trajectory(problem, times)
    levels = torch.tensor([*np.asarray(info.sigmas)[times], 0.0], dtype=torch.float64)
    start, axis = points[0], points[-1] - points[0]
    axis = axis / axis.norm(dim=-1, keepdim=True)

    def from_axis(samples: torch.Tensor) -> torch.Tensor:
        """How far samples (M, N, D) lie from the line between the ends: the mean over images, (M,)."""
        apart = samples - start
        return (apart - (apart * axis).sum(-1, keepdim=True) * axis).norm(dim=-1).mean(-1)

    count = len(times)
    teacher, costs = from_axis(points), np.full((count, count + 1), np.inf)
    for i in range(count):
        slope = (points[i + 1] - points[i]) / (levels[i + 1] - levels[i])
        reached = points[i] + (levels[i + 1 :, None, None] - levels[i]) * slope
        costs[i, i + 1 :] = (from_axis(reached) - teacher[i + 1 :]).numpy()
    return Schedule(
        _candidate(problem, [times[i] for i in least_path(costs, steps)]), round(TRAJECTORIES * count / steps)
    )


def least_path(costs: Floats, steps: int) -> list[int]:
    """The points that ``steps`` steps start from, the first of them 0, the last step's end the last point.

    Args:
        costs: of a step from i to j, (M, M + 1); infinite for j <= i.
        steps: of the path.
    """
    count = len(costs)
    least, onward = costs[:, count], []
    for _ in range(steps - 1):
        sums = costs[:, :count] + GAMMA * least
        onward.append(sums.argmin(axis=1))
        least = sums.min(axis=1)
    path = [0]
    for following in reversed(onward):
        path.append(int(following[path[-1]]))
    return path


def _trajectory(problem: Problem, times: Sequence[int]) -> torch.Tensor:
    """The samples x / α at each time and the image at last, float64 (M + 1, N, D)."""
    sampler = problem.sampler
    assert sampler is not None
    kept: list[torch.Tensor] = []

    def keep(before: torch.Tensor, after: torch.Tensor) -> None:
        # With guidance DiTPipeline holds every sample twice.
        kept.extend(sample[: sampler.micro_batch].flatten(1).double() for sample in (before, after)[bool(kept) :])

    batches = []
    config = sampler.pipeline.scheduler.config
    with (
        with_scheduler(sampler.pipeline, DDIMScheduler.from_config(config, clip_sample=False)),
        install(sampler.pipeline, Candidate.from_time_steps(times)),
    ):
        watch_samples(sampler.pipeline, keep)
        with sampler.calls() as call:
            for first in range(0, TRAJECTORIES, sampler.micro_batch):
                call(range(first, first + sampler.micro_batch), 0, len(times))
                batches.append(torch.stack(kept))
                kept.clear()
    sigmas = torch.tensor([*np.asarray(problem.info.sigmas)[list(times)], 0.0], dtype=torch.float64)
    alpha = 1 / (1 + sigmas.square()).sqrt()
    return torch.cat(batches, dim=1)[:, :TRAJECTORIES] / alpha[:, None, None]


def align_your_steps(problem: Problem, steps: int, value_of: Callable[[Candidate], float], images: int) -> Schedule:
    """Align Your Steps (Sabour, Fidler and Kreis, ICML 2024, section 3).

    Minimises the bound of the Kullback-Leibler divergence for stochastic DDIM,
    Σ_i ∫ E ‖D(x_t, t) - D(x_{t_i}, t_i)‖² / t³ dt over t_{i-1} .. t_i, with D the denoiser and t the noise level: one
    time after the other, the others fixed, from Karras' schedule. As there, over-optimising is stopped by the images'
    quality: after each sweep the schedule is measured, and the best is returned.

    What differs: the expectation is taken once for all pairs of levels on a grid, of the same real images and noise, so
    that a sweep finds each time's best exactly; the paper samples levels by importance and tries a few candidates.
    """
    info = problem.info
    even = np.linspace(info.log_snr((info.lowest,))[0], -math.log(MOST_SIGMA), LEVELS)
    times = sorted({round(time) for time in info.times_of_log_snr(even)})  # from the image to the noise
    sigmas = np.asarray(info.sigmas)[times]
    apart = _denoised_apart(problem, times)

    def interval(low: int, high: int) -> float:
        """The integral between two levels, in ln t: dt / t³ = d ln t / t²; trapezoids."""
        levels, values = sigmas[low : high + 1], apart[low : high + 1, high]
        return float(np.trapezoid(values / levels**2, np.log(levels)))

    def nearest(time: float) -> int:
        return int(np.abs(np.array(times) - time).argmin())

    chosen = [0, *sorted({nearest(time) for time in problem.baselines["karras"].times[:-1]})]
    while len(chosen) < steps + 1:  # Karras' last time is level 0, where sampling ends here
        low, high = max(pairwise(chosen), key=lambda pair: pair[1] - pair[0])
        chosen = sorted([*chosen, (low + high) // 2])

    def candidate() -> Candidate:
        return _candidate(problem, [float(times[point]) for point in chosen[:0:-1]])

    best, value = candidate(), value_of(candidate())
    spent = images
    while True:
        before = list(chosen)
        for place in range(1, steps):
            low, high = chosen[place - 1], chosen[place + 1]
            sums = {point: interval(low, point) + interval(point, high) for point in range(low + 1, high)}
            chosen[place] = min(sums, key=sums.__getitem__)
        if chosen == before:
            break
        spent += images
        if (now := value_of(candidate())) < value:
            best, value = candidate(), now
    return Schedule(best, spent + round(REAL_IMAGES * len(times) / steps))


@torch.inference_mode()
def _denoised_apart(problem: Problem, times: Sequence[int]) -> Floats:
    """E ‖D(x_s, s) - D(x_t, t)‖² for each two times, x_t being x_s with more noise; (M, M)."""
    assert problem.sampler is not None
    generator = torch.Generator().manual_seed(0)
    clean, labels = _clean(problem.sampler.pipeline)
    chosen = torch.randperm(len(clean), generator=generator)[:REAL_IMAGES]
    clean, labels = clean[chosen], labels[chosen]
    noised, level, denoised = clean, 0.0, []
    for time in times:
        sigma = problem.info.sigmas[time]
        noised = noised + math.sqrt(sigma**2 - level**2) * torch.randn(clean.shape, generator=generator)
        level = sigma
        denoised.append(_denoised(problem, noised, time, labels).flatten(1).double())
    stacked = torch.stack(denoised)
    return np.stack([(stacked - one).square().sum(-1).mean(-1).numpy() for one in stacked], axis=1)


def _clean(pipeline: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The real images as the denoiser sees them, and their classes."""
    images = load_images().float() / 127.5 - 1
    vae = getattr(pipeline, "vae", None)
    if vae is not None:
        images = vae.encode(images.to(vae.dtype)).latent_dist.mode().float() * vae.config.scaling_factor
    return images, load_labels()


def _denoised(problem: Problem, noised: torch.Tensor, time: int, labels: torch.Tensor) -> torch.Tensor:
    """D(x, σ): the image that is predicted, with guidance as the study's call has it."""
    assert problem.sampler is not None
    pipeline, sigma = problem.sampler.pipeline, problem.info.sigmas[time]
    alpha = 1 / math.sqrt(1 + sigma**2)
    sample, moment = noised * alpha, torch.full((len(noised),), time)
    if hasattr(pipeline, "unet"):
        noise = pipeline.unet(sample, moment).sample
    else:
        given = pipeline.transformer(sample, timestep=moment, class_labels=labels).sample
        null = torch.full_like(labels, pipeline.transformer.config.num_embeds_ada_norm)
        without = pipeline.transformer(sample, timestep=moment, class_labels=null).sample
        noise = without + problem.sampler.call["guidance_scale"] * (given - without)
    image: torch.Tensor = noised - sigma * noise
    limit = pipeline.scheduler.config.clip_sample_range
    return image.clamp(-limit, limit) if pipeline.scheduler.config.clip_sample else image


def _candidate(problem: Problem, times: Sequence[float]) -> Candidate:
    """On the grid of times of the study's space."""
    return problem.space.nearest(Candidate.from_time_steps(times))
