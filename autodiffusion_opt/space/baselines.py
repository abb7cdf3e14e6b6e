"""The usual ways to choose time steps, against which every study is compared.

All give ``steps`` times, noise to image. ``leading``, ``linspace`` and ``trailing`` are diffusers' three kinds of
``timestep_spacing`` (Lin et al., 2024, Table 2), ``quadratic`` is DDIM's (Song et al., 2021, appendix D.2),
``karras`` is EDM's (Karras et al., 2022, equation 5), ``exponential`` is uniform in log σ, ``beta`` follows
quantiles of Beta(0.6, 0.6) (Lee et al., 2024), ``log-snr`` is uniform in log(α²/σ²) (Lu et al., 2022, section 3.3).
``ays`` exists for the models that it was made for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from autodiffusion_opt.space.model_info import ModelInfo

Times = tuple[float, ...]
# The uniform baseline: where evolution starts.
UNIFORM = "leading"
# What the pipeline does by itself at the same number of calls: what results are divided by.
OWN = "own"


def leading(info: ModelInfo, steps: int) -> Times:
    """i·⌊T/K⌋ + offset, i from K-1 to 0: diffusers' default; never starts at the last time."""
    stride = info.train_steps // steps
    return tuple(float(i * stride + info.steps_offset) for i in reversed(range(steps)))


def linspace(info: ModelInfo, steps: int) -> Times:
    """From T-1 to 0 in even steps."""
    return tuple(float(t) for t in np.linspace(0, info.train_steps - 1, steps).round()[::-1])


def trailing(info: ModelInfo, steps: int) -> Times:
    """T - i·T/K - 1: starts at the last time; never ends at 0."""
    stride = info.train_steps / steps
    return tuple(float(t) for t in (np.round(info.train_steps - stride * np.arange(steps)) - 1))


def quadratic(info: ModelInfo, steps: int) -> Times:
    """Squares of even steps up to √(0.8 T): denser near the image."""
    return tuple(float(t) for t in np.floor(np.linspace(0, np.sqrt(0.8 * info.train_steps), steps) ** 2)[::-1])


def karras(info: ModelInfo, steps: int, rho: float = 7.0) -> Times:
    """Even steps in σ^(1/ρ), ρ = 7, from the greatest training noise level to the least."""
    low, high = info.sigma_range
    return info.times_of_sigmas(np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho)


def exponential(info: ModelInfo, steps: int) -> Times:
    """Even steps in log σ."""
    low, high = info.sigma_range
    return info.times_of_sigmas(np.geomspace(high, low, steps))


def beta(info: ModelInfo, steps: int, alpha: float = 0.6) -> Times:
    """σ_min + q·(σ_max - σ_min), q the quantiles of Beta(0.6, 0.6): denser at both ends."""
    from scipy.stats import beta as distribution  # scipy takes a second to import

    low, high = info.sigma_range
    quantiles = distribution.ppf(1 - np.linspace(0, 1, steps), alpha, alpha)
    return info.times_of_sigmas(low + quantiles * (high - low))


def log_snr(info: ModelInfo, steps: int) -> Times:
    """Even steps in λ = -log σ, the last of which ends in the least noise level: DPM-Solver's own choice."""
    low, high = info.sigma_range
    return info.times_of_sigmas(np.exp(np.linspace(np.log(high), np.log(low), steps + 1)[:-1]))  # K steps, K+1 ends


def ays(info: ModelInfo, steps: int) -> Times:
    """Align Your Steps (Sabour et al., 2024): its ten noise levels, log σ linear between them for other lengths."""
    # info.ays falls, np.interp wants ascending positions: reversed on the way in and out.
    sigmas = np.interp(info.ays[::-1], np.arange(len(info.sigmas)), np.asarray(info.sigmas))[::-1]
    positions = np.linspace(0, 1, len(sigmas))
    return info.times_of_sigmas(np.exp(np.interp(np.linspace(0, 1, steps), positions, np.log(sigmas))))


Schedule = Callable[[ModelInfo, int], Times]
ALWAYS: dict[str, Schedule] = {UNIFORM: leading, "linspace": linspace, "trailing": trailing, "quadratic": quadratic}
WITH_SIGMAS: dict[str, Schedule] = {"karras": karras, "exponential": exponential, "beta": beta, "log-snr": log_snr}


def named_times(info: ModelInfo, steps: int) -> dict[str, Times]:
    """Every baseline that applies to the model, the uniform one first; times need not be on a space's grid."""
    if steps == 1:  # the others give the same two times
        schedules: dict[str, Schedule] = {UNIFORM: leading, "trailing": trailing}
    else:
        ays_too = {"ays": ays} if info.ays and info.sigmas else {}
        schedules = {**ALWAYS, **(WITH_SIGMAS if info.sigmas else {}), **ays_too}
    return {name: shifted(info, times(info, steps)) for name, times in schedules.items()}


def shifted(info: ModelInfo, times: Times) -> Times:
    """The times of a flow matching model moved by its shift, as its own schedule is (Esser et al., 2024, equation 23).

    σ = t/T becomes s·σ / (1 + (s - 1)·σ).
    """
    top, shift = info.train_steps, info.shift
    return tuple(shift * time / (1 + (shift - 1) * time / top) for time in times) if shift != 1 else times


Compared = TypeVar("Compared")


def compared_with(baselines: Mapping[str, Compared]) -> Compared | None:
    """Of baselines by name, the one that results are divided by: ``own``; where there is none, the uniform one."""
    return baselines.get(OWN, baselines.get(UNIFORM))
