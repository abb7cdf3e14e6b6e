"""Solvers as their papers have them, in float64; nothing here calls diffusers or was written from it.

Here are those that work on ᾱ, σ or t; ``dpm_solvers`` holds those in the half-log-SNR λ, and ``as_computed`` what a
scheduler computes where that is not the paper's formula.

All take ``noise(x, k)``, the model's noise prediction at step ``k`` for a sample at that step's level;
``alpha`` and ``sigma``, arrays of N + 1 levels with x = α x_0 + σ ε (the last one is where the solver ends);
and the first sample. They return the sample at the last level. ``draws`` yields a stochastic solver's noises.
A formula that needs the times themselves takes ``times``: N of them and the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

Array = np.ndarray
Noise = Callable[[Array, float], Array]
GAUSS = np.polynomial.legendre.leggauss(40)  # points in [-1, 1] and their weights


def levels(alpha_bar: Array, times: Array, between: str, last: float | None = None) -> tuple[Array, Array]:
    """α and σ at times between integers, then (if given) where σ/α = ``last``.

    ``between``: what is linear in time. ``log_ratio``: log σ/α; ``ratio``: σ/α; ``log_alpha``: log α, as in
    DPM-Solver for models of discrete times (https://arxiv.org/abs/2206.00927, appendix D, and its authors' code).
    """
    grid = np.arange(len(alpha_bar))
    if between == "log_alpha":
        alpha = np.exp(np.interp(times, grid, np.log(alpha_bar) / 2))
        ratios = np.sqrt(1 / alpha**2 - 1)
    else:
        ratio = np.sqrt(1 / alpha_bar - 1)
        log = between == "log_ratio"
        ratios = np.exp(np.interp(times, grid, np.log(ratio))) if log else np.interp(times, grid, ratio)
    ratios = ratios if last is None else np.append(ratios, last)
    alpha = 1 / np.hypot(1, ratios)
    return alpha, ratios * alpha


def level(alpha: Array, sigma: Array, k: float) -> tuple[float, float]:
    """α and σ at step k; at a half, of the middle between two steps: σ/α is the geometric mean of theirs."""
    if k == int(k):
        return float(alpha[int(k)]), float(sigma[int(k)])
    before, after = int(k), int(k) + 1
    ratio = math.sqrt(sigma[before] / alpha[before] * sigma[after] / alpha[after])
    return 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)


def image(noise: Noise, alpha: Array, sigma: Array, x: Array, k: int) -> Array:
    return (x - sigma[k] * noise(x, k)) / alpha[k]


def ddim(
    noise: Noise,
    alpha: Array,
    sigma: Array,
    x: Array,
    draws: Iterator[Array],
    eta: float = 0.0,
    clip: float | None = None,
    gradient: Noise | None = None,
) -> Array:
    """DDIM, equations (12) and (16) of arXiv 2010.02502.

    As ADM samples (https://arxiv.org/abs/2105.05233, algorithm 2, and its authors' code): ``clip``: the predicted image
    is cut to ±clip and the noise derived from it; then, with a classifier's ``gradient``, the noise is guided, and the
    image is that of the guided noise, not clipped again.
    """
    for k in range(len(alpha) - 1):
        eps = noise(x, k)
        x0 = (x - sigma[k] * eps) / alpha[k]
        if clip is not None:
            x0 = x0.clip(-clip, clip)
            eps = (x - alpha[k] * x0) / sigma[k]
        if gradient is not None:
            eps = eps - sigma[k] * gradient(x, k)
            x0 = (x - sigma[k] * eps) / alpha[k]
        ratio = alpha[k] ** 2 / alpha[k + 1] ** 2
        spread = eta * sigma[k + 1] / sigma[k] * math.sqrt(1 - ratio)  # equation (16)
        x = alpha[k + 1] * x0 + math.sqrt(sigma[k + 1] ** 2 - spread**2) * eps  # equation (12)
        if eta:
            x = x + spread * next(draws)
    return x


def ddpm(
    noise: Noise,
    alpha: Array,
    sigma: Array,
    x: Array,
    draws: Iterator[Array],
    large: bool = False,
    draws_last: bool = False,
) -> Array:
    """DDPM, equation (7) of arXiv 2006.11239: here by Bayes' rule; the last step without noise (algorithm 2).

    x_s | x_0 is N(α_s x_0, σ_s²), and x_t | x_s is N(r x_s, 1 - r²) with r = α_t/α_s. Precisions add up; all is
    multiplied by σ_s² (1 - r²), so that σ_s may be 0.
    """
    for k in range(len(alpha) - 1):
        x0 = image(noise, alpha, sigma, x, k)
        r = alpha[k] / alpha[k + 1]
        seen, before = 1 - r**2, sigma[k + 1] ** 2
        mean = (alpha[k + 1] * x0 * seen + r * x * before) / (seen + r**2 * before)
        spread = math.sqrt(seen if large else seen * before / (seen + r**2 * before))
        x = mean if k == len(alpha) - 2 and not draws_last else mean + spread * next(draws)
    return x


def ddpm_to_end(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array], times: Array) -> Array:
    """DDPM, equation (7) of arXiv 2006.11239: with noise in the last step too where that ends above time 0."""
    return ddpm(noise, alpha, sigma, x, draws, draws_last=bool(times[-1] > 0))


def plms(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """PLMS of latent-diffusion (arXiv 2112.10752): the multistep part of PNDM, section 3 of arXiv 2202.09778.

    Two slopes are averaged for the first step, then two and three make the multistep formula; PNDM itself takes three
    Runge-Kutta steps there. The weights are those for even steps, also where steps are uneven.
    """

    def transfer(x: Array, eps: Array, k: int) -> Array:
        now, then = alpha[k] ** 2, alpha[k + 1] ** 2
        below = math.sqrt(now) * (math.sqrt((1 - then) * now) + math.sqrt((1 - now) * then))
        return math.sqrt(then / now) * x - (then - now) / below * eps

    tables = ([1], [3 / 2, -1 / 2], [23 / 12, -4 / 3, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -3 / 8])
    past = [noise(x, 0)]
    trial = transfer(x, past[0], 0)
    x = transfer(x, (past[0] + noise(trial, 1)) / 2, 0)
    for k in range(1, len(alpha) - 1):
        past = [noise(x, k), *past][:4]
        x = transfer(x, sum(c * e for c, e in zip(tables[len(past) - 1], past, strict=True)), k)
    return x


def plms_uneven(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array], times: Array) -> Array:
    """PLMS with weights for uneven steps: the mean over the step of the polynomial through the slopes.

    The polynomial is in time (Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, section III.5).
    """
    ratio = sigma / alpha
    y = x / alpha[0]
    past = [noise(x, 0)]
    trial = y + (ratio[1] - ratio[0]) * past[0]
    y = y + (ratio[1] - ratio[0]) * (past[0] + noise(trial * alpha[1], 1)) / 2
    for k in range(1, len(alpha) - 1):
        past = [noise(y * alpha[k], k), *past][:4]
        nodes = times[k - len(past) + 1 : k + 1][::-1]
        weights = lagrange_means(nodes, times[k], times[k + 1], lambda t: t)
        y = y + (ratio[k + 1] - ratio[k]) * sum(c * e for c, e in zip(weights, past, strict=True))
    return y * alpha[-1]


def lagrange_means(nodes: Array, start: float, end: float, read: Callable[[Array], Array]) -> list[float]:
    """Means over [start, end] of the Lagrange polynomials in ``read(·)`` through the nodes, by Gauss."""
    at = read((start + end) / 2 + (end - start) / 2 * GAUSS[0])
    means = []
    for j, node in enumerate(nodes):
        zeros = [read(zero) for i, zero in enumerate(nodes) if i != j]
        basis = np.prod([(at - zero) / (read(node) - zero) for zero in zeros] or [at * 0 + 1], axis=0)
        means.append(float(GAUSS[1] @ basis / 2))
    return means


def adams(
    noise: Noise,
    alpha: Array,
    sigma: Array,
    x: Array,
    order: int,
    read: Callable[[Array], Array],
    ends_low: bool,
) -> Array:
    """d(x/α) = ε d(σ/α), with ε replaced by the polynomial in ``read(σ/α)`` through its last values."""
    ratio, y, past = sigma / alpha, x / alpha[0], []
    steps = len(alpha) - 1
    for k in range(steps):
        past = [noise(y * alpha[k], k), *past][:order]
        use = min(len(past), steps - k) if ends_low else len(past)
        nodes = ratio[k - use + 1 : k + 1][::-1]
        weights = lagrange_means(nodes, ratio[k], ratio[k + 1], read)
        y = y + (ratio[k + 1] - ratio[k]) * sum(c * e for c, e in zip(weights, past, strict=False))
    return y * alpha[-1]


def deis_rho(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array], order: int = 2) -> Array:
    """ρAB-DEIS, section 4 of arXiv 2204.13902: polynomials in ρ = σ/α."""
    return adams(noise, alpha, sigma, x, order, lambda rho: rho, ends_low=False)


def deis_t(
    noise: Noise,
    alpha: Array,
    sigma: Array,
    x: Array,
    draws: Iterator[Array],
    times: Array,
    alpha_bar: Array,
    order: int = 2,
) -> Array:
    """tAB-DEIS, section 3 of arXiv 2204.13902: polynomials in t."""
    log_ratio, grid = np.log(1 / alpha_bar - 1) / 2, np.arange(len(alpha_bar))
    return adams(noise, alpha, sigma, x, order, lambda rho: np.interp(np.log(rho), log_ratio, grid), ends_low=False)


def lms(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array], order: int = 4) -> Array:
    """LMS of k-diffusion: Adams-Bashforth in σ for uneven steps, up to four slopes."""
    return adams(noise, alpha, sigma, x, order, lambda s: s, ends_low=False)


def euler(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """Euler, algorithm 1 of arXiv 2206.00364: without its lines 6 to 8."""
    return adams(noise, alpha, sigma, x, 1, lambda s: s, ends_low=False)


def heun(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """Heun, algorithm 1 of arXiv 2206.00364: an Euler step at the end, wherever that is."""
    ratio, y = sigma / alpha, x / alpha[0]
    for k in range(len(alpha) - 1):
        slope = noise(y * alpha[k], k)
        ahead = y + (ratio[k + 1] - ratio[k]) * slope
        if k < len(alpha) - 2:
            slope = (slope + noise(ahead * alpha[k + 1], k + 1)) / 2
        y = y + (ratio[k + 1] - ratio[k]) * slope
    return y * alpha[-1]


def kdpm2(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """DPM-Solver-2 of k-diffusion: the midpoint rule for d(x/α) = ε d(σ/α), its middle where log σ/α is halfway.

    The last step is Euler's.
    """
    ratio, y = sigma / alpha, x / alpha[0]
    for k in range(len(alpha) - 1):
        slope = noise(y * alpha[k], k)
        if k < len(alpha) - 2:
            middle, seen = math.sqrt(ratio[k] * ratio[k + 1]), level(alpha, sigma, k + 0.5)[0]
            slope = noise((y + (middle - ratio[k]) * slope) * seen, k + 0.5)
        y = y + (ratio[k + 1] - ratio[k]) * slope
    return y * alpha[-1]


def kdpm2_ancestral(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """Ancestral DPM-Solver-2 of k-diffusion: the midpoint rule down to σ_down, then noise of σ_up.

    The middle of σ and σ_down = σ'²/σ is σ' itself. The last step is Euler's.
    """
    ratio, y = sigma / alpha, x / alpha[0]
    for k in range(len(alpha) - 1):
        slope, end = noise(y * alpha[k], k), ratio[k + 1]
        if k == len(alpha) - 2:
            y = y + (end - ratio[k]) * slope
            break
        down = end**2 / ratio[k]
        slope = noise((y + (end - ratio[k]) * slope) * alpha[k + 1], k + 1)
        y = y + (down - ratio[k]) * slope + math.sqrt(end**2 - down**2) * next(draws)
    return y * alpha[-1]


def ancestral(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """Ancestral Euler of k-diffusion: down to σ_down, then noise of σ_up, with σ_down² + σ_up² = σ'²."""
    ratio, y = sigma / alpha, x / alpha[0]
    for k in range(len(alpha) - 1):
        up = ratio[k + 1] / ratio[k] * math.sqrt(ratio[k] ** 2 - ratio[k + 1] ** 2)
        down = ratio[k + 1] ** 2 / ratio[k]
        y = y + (down - ratio[k]) * noise(y * alpha[k], k) + up * next(draws)
    return y * alpha[-1]


def flow_euler(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """Euler on a flow, arXiv 2209.03003: dx/dσ = ε - x_0, α = 1 - σ; ``noise`` is the velocity."""
    for k in range(len(sigma) - 1):
        x = x + (sigma[k + 1] - sigma[k]) * noise(x, k)
    return x


def flow_lcm(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """LCM on a flow, algorithm 3 of arXiv 2310.04378: each step to the image x - σv, and up to the next σ again."""
    for k in range(len(sigma) - 1):
        drawn = next(draws)
        x = (1 - sigma[k + 1]) * (x - sigma[k] * noise(x, k)) + sigma[k + 1] * drawn
    return x


def consistency(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """Multistep sampling of a consistency model, algorithm 1 of arXiv 2303.01469: to the image, and up again."""
    for k in range(len(sigma) - 1):
        x = alpha[k + 1] * image(noise, alpha, sigma, x, k) + sigma[k + 1] * next(draws)
    return x


def flow_heun(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """Heun on a flow, arXiv 2209.03003: an Euler step at the end; ``noise`` is the velocity."""
    for k in range(len(sigma) - 1):
        slope = noise(x, k)
        step = sigma[k + 1] - sigma[k]
        if k < len(sigma) - 2:
            slope = (slope + noise(x + step * slope, k + 1)) / 2
        x = x + step * slope
    return x


def lcm(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array], times: Array) -> Array:
    """LCM, algorithm 3 of arXiv 2310.04378: multistep sampling.

    c_skip and c_out are those of its authors' code: σ_data = 1/2 and times scaled by 10.
    """
    for k, time in enumerate(times[:-1]):
        scaled = 10.0 * time
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
        x = skip * x + out * image(noise, alpha, sigma, x, k)
        if k < len(times) - 2:
            x = alpha[k + 1] * x + sigma[k + 1] * next(draws)
    return x


def tcd(
    noise: Noise,
    alpha: Array,
    sigma: Array,
    x: Array,
    draws: Iterator[Array],
    times: Array,
    alpha_bar: Array,
    gamma: float = 0.3,
) -> Array:
    """TCD, strategic stochastic sampling of arXiv 2402.19159: to s = (1-γ)t' with ε, then up to t' with noise.

    s is rounded down to an integer, and the last t' is 0.
    """
    targets = [int(time) for time in times[1:-1]] + [0]
    for k, target in enumerate(targets):
        at = alpha_bar[math.floor(round((1 - gamma) * target, 9))]  # 0.7 · 690 is 483, in binary a little less
        eps = noise(x, k)
        x = math.sqrt(at) * (x - sigma[k] * eps) / alpha[k] + math.sqrt(1 - at) * eps
        if k + 1 < len(targets):
            ratio = alpha_bar[target] / at
            x = math.sqrt(ratio) * x + math.sqrt(1 - ratio) * next(draws)
    return x
