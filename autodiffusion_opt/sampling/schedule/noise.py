"""How much noise a model sees at a time, also between its training times.

Variance preserving models (everything but flow matching): x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε, with ᾱ given at the
integer times 0 .. T-1 and σ_t = √((1-ᾱ_t)/ᾱ_t). Between two integers either log σ is linear in time (half the
log-SNR, as in DPM-Solver, https://arxiv.org/abs/2206.00927, appendix), or σ itself where diffusers' own
default times already lie between integers and are read so (Euler, LMS, Heun).
Flow matching: x_t = (1-σ) x_0 + σ ε with σ = t/T, and t in (0, T].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Between = Literal["log", "linear"]
# The least ᾱ to interpolate from, where betas rescaled to zero terminal SNR end at ᾱ = 0 (log σ = ∞).
# diffusers puts the same number at the end of its sigma-based schedulers.
LEAST_ALPHA_BAR = 2.0**-24


def training_sigmas(scheduler: Any) -> Floats:
    """σ at the training times 0 .. T-1, ascending; shape (T,). Computed in ᾱ's dtype, as diffusers does."""
    alpha_bar = scheduler.alphas_cumprod.cpu().clamp(min=LEAST_ALPHA_BAR)
    sigmas: Floats = (((1 - alpha_bar) / alpha_bar) ** 0.5).double().numpy()
    return sigmas


def sigmas_at(scheduler: Any, times: Sequence[float], between: Between) -> Floats:
    """σ at any times in [0, T-1]; shape (len(times),). At an integer time exactly the training σ."""
    sigmas, grid = training_sigmas(scheduler), np.arange(len(scheduler.alphas_cumprod))
    linear = np.interp(times, grid, sigmas)
    if between == "linear":
        return linear
    asked = np.asarray(times, dtype=np.float64)
    return np.where(asked == np.round(asked), linear, np.exp(np.interp(asked, grid, np.log(sigmas))))


def times_of(scheduler: Any, sigmas: Floats, between: Between) -> Floats:
    """The inverse of :func:`sigmas_at`, cut to the training range."""
    grid, training = np.arange(len(scheduler.alphas_cumprod)), training_sigmas(scheduler)
    if between == "linear":
        return np.interp(sigmas, training, grid)
    return np.interp(np.log(sigmas), np.log(training), grid)


def alpha_bars_at(scheduler: Any, times: Sequence[float]) -> torch.Tensor:
    """ᾱ at any times in [0, T-1], in ᾱ's dtype, on the CPU; shape (len(times),). Bit for bit at integers."""
    alpha_bar: torch.Tensor = scheduler.alphas_cumprod.cpu()
    whole = alpha_bar[torch.tensor([round(time) for time in times], dtype=torch.long)]
    between = 1 / (1 + torch.from_numpy(sigmas_at(scheduler, times, "log")) ** 2)
    integer = torch.tensor([float(time).is_integer() for time in times])
    return torch.where(integer, whole, between.to(alpha_bar.dtype))


def first_sigma(scheduler: Any) -> float:
    """σ at time 0: the least noise that the model was trained at."""
    return float(training_sigmas(scheduler)[0])
