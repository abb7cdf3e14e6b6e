"""How much noise a model sees at a time, also between its training times.

Variance preserving models (everything but flow matching): x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε, with ᾱ given at the
integer times 0 .. T-1 and σ_t = √((1-ᾱ_t)/ᾱ_t). Between two integers either log σ is linear in time (half the
log-SNR, as in DPM-Solver, https://arxiv.org/abs/2206.00927, appendix), or σ itself where diffusers' own
default times already lie between integers and are read so (Euler, LMS, Heun).
Flow matching: x_t = (1-σ) x_0 + σ ε with σ = t/T, and t in (0, T].
Models that are told a function of σ in place of a time (EDM, ln(σ)/4, https://arxiv.org/abs/2206.00364, table 1;
Stable Video Diffusion; Stable Audio, 2 atan(σ)/π): x = x_0 + σ ε, and log σ is linear in time, from the least σ of
diffusers' own schedule at 0 to the greatest at T-1.
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
# Settings of schedulers with noise levels that are not those of evenly spaced times.
OWN_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def is_log_linear(scheduler: Any) -> bool:
    """Whether an accepted scheduler tells the model a function of σ in place of a time, so that log σ is our clock.

    EDM's and the cosine DPM-Solver do, and Euler with continuous times where v is predicted.
    """
    config = scheduler.config
    continuous_v = config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
    return continuous_v or ("sigma_data" in config and "sigma_schedule" in config)


def train_steps(scheduler: Any) -> int:
    """T, the number of times that the model was trained at; 1000 where it was trained at any time of a range."""
    if hasattr(scheduler, "alphas_cumprod"):
        return len(scheduler.alphas_cumprod)
    return int(scheduler.config.get("num_train_timesteps", 1000))


def training_sigmas(scheduler: Any) -> Floats:
    """σ at the training times 0 .. T-1, ascending; shape (T,). Computed in ᾱ's dtype, as diffusers does."""
    if is_log_linear(scheduler):
        return np.geomspace(*_own_range(scheduler), train_steps(scheduler))
    return _sigmas_of_alpha_bars(scheduler)


def sigmas_at(scheduler: Any, times: Sequence[float], between: Between) -> Floats:
    """σ at any times in [0, T-1]; shape (len(times),). At an integer time exactly the training σ."""
    sigmas, grid = training_sigmas(scheduler), np.arange(train_steps(scheduler))
    linear = np.interp(times, grid, sigmas)
    if between == "linear" and not is_log_linear(scheduler):
        return linear
    asked = np.asarray(times, dtype=np.float64)
    return np.where(asked == np.round(asked), linear, np.exp(np.interp(asked, grid, np.log(sigmas))))


def times_of(scheduler: Any, sigmas: Floats, between: Between) -> Floats:
    """The inverse of :func:`sigmas_at`, cut to the training range."""
    grid, training = np.arange(train_steps(scheduler)), training_sigmas(scheduler)
    if between == "linear" and not is_log_linear(scheduler):
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


def _own_range(scheduler: Any) -> tuple[float, float]:
    """The least and the greatest σ of diffusers' own schedules for a model that is told a function of σ."""
    config = scheduler.config
    if not hasattr(scheduler, "alphas_cumprod"):
        return float(config.sigma_min), float(config.sigma_max)
    trained = _sigmas_of_alpha_bars(scheduler)
    shaped = any(config.get(key) for key in OWN_SIGMAS)  # only these read sigma_min and sigma_max
    ends = (config.sigma_min, config.sigma_max) if shaped else (None, None)
    low, high = (float(known if end is None else end) for end, known in zip(ends, trained[[0, -1]], strict=True))
    return low, high


def _sigmas_of_alpha_bars(scheduler: Any) -> Floats:
    if not hasattr(scheduler, "alphas_cumprod"):  # Wuerstchen's, a function of the share of time
        share = torch.linspace(0, 1, train_steps(scheduler), dtype=torch.float64)
        return ((1 / scheduler._alpha_cumprod(share, "cpu") - 1) ** 0.5).numpy()  # type: ignore[no-any-return]
    alpha_bar = scheduler.alphas_cumprod.cpu().clamp(min=LEAST_ALPHA_BAR)
    sigmas: Floats = (((1 - alpha_bar) / alpha_bar) ** 0.5).double().numpy()
    return sigmas
