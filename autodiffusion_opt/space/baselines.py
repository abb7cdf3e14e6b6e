"""The usual ways to choose time steps, against which every study is compared.

All give ``steps`` times, noise to image. ``leading``, ``linspace`` and ``trailing`` are diffusers' three kinds of
``timestep_spacing`` (Lin et al., 2024, Table 2), ``quadratic`` is DDIM's (Song et al., 2021, appendix D.2),
``karras`` is EDM's (Karras et al., 2022, equation 5), ``exponential`` is uniform in log σ, ``beta`` follows
quantiles of Beta(0.6, 0.6) (Lee et al., 2024), ``log-snr`` is uniform in log(α²/σ²) (Lu et al., 2022, section 3.3).
``ays`` is there for the models that it was made for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from autodiffusion_opt.space.model_info import ModelInfo

Times = tuple[float, ...]


def leading(info: ModelInfo, steps: int) -> Times:
    """i·⌊T/K⌋ + offset: what diffusers does unless told; never starts at the last time."""
    stride = info.train_steps // steps
    return tuple(float(i * stride + info.steps_offset) for i in reversed(range(steps)))


def linspace(info: ModelInfo, steps: int) -> Times:
    """Both ends and even steps between."""
    return tuple(float(t) for t in np.linspace(0, info.train_steps - 1, steps).round()[::-1])


def trailing(info: ModelInfo, steps: int) -> Times:
    """Starts at the last time; never ends at 0."""
    stride = info.train_steps / steps
    return tuple(float(t) for t in (np.round(info.train_steps - stride * np.arange(steps)) - 1))


def quadratic(info: ModelInfo, steps: int) -> Times:
    """Squares of even steps up to √(0.8 T): denser near the image."""
    return tuple(float(t) for t in np.floor(np.linspace(0, np.sqrt(0.8 * info.train_steps), steps) ** 2)[::-1])


def karras(info: ModelInfo, steps: int, rho: float = 7.0) -> Times:
    """Even steps in σ^(1/ρ), ρ = 7."""
    low, high = info.sigma_range
    ramp = np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho
    return info.times_of_sigmas(ramp)


def exponential(info: ModelInfo, steps: int) -> Times:
    """Even steps in log σ."""
    low, high = info.sigma_range
    return info.times_of_sigmas(np.geomspace(high, low, steps))


def beta(info: ModelInfo, steps: int, alpha: float = 0.6) -> Times:
    """σ at the quantiles of Beta(0.6, 0.6): denser at both ends."""
    from scipy.stats import beta as distribution

    low, high = info.sigma_range
    quantiles = distribution.ppf(1 - np.linspace(0, 1, steps), alpha, alpha)
    return info.times_of_sigmas(low + quantiles * (high - low))


def log_snr(info: ModelInfo, steps: int) -> Times:
    """Even steps in λ = log(α/σ), the last one included: DPM-Solver's own choice."""
    low, high = info.sigma_range
    return info.times_of_sigmas(np.exp(np.linspace(np.log(high), np.log(low), steps + 1)[:-1]))


def ays(info: ModelInfo, steps: int) -> Times:
    """Align Your Steps (Sabour et al., 2024): its ten noise levels, log σ linear between them for other lengths."""
    sigmas = np.interp(info.ays[::-1], np.arange(len(info.sigmas)), np.asarray(info.sigmas))[::-1]
    places = np.linspace(0, 1, len(sigmas))
    return info.times_of_sigmas(np.exp(np.interp(np.linspace(0, 1, steps), places, np.log(sigmas))))


ALWAYS: dict[str, Callable[[ModelInfo, int], Times]] = {
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
    "quadratic": quadratic,
}
WITH_SIGMAS: dict[str, Callable[[ModelInfo, int], Times]] = {
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
    "log-snr": log_snr,
}


def named_times(info: ModelInfo, steps: int, names: Sequence[str] | None = None) -> dict[str, Times]:
    """Every baseline that applies to the model, by name; times may still have to be settled on a space's grid."""
    if steps == 1:  # every one of them is a single point; the noisiest is the only sensible one
        return {"leading": leading(info, 1), "trailing": trailing(info, 1)}
    makers = {**ALWAYS, **(WITH_SIGMAS if info.sigmas else {}), **({"ays": ays} if info.ays else {})}
    return {name: maker(info, steps) for name, maker in makers.items() if names is None or name in names}
