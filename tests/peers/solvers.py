"""Reference formulas of the solvers, in float64, each from its paper; nothing here calls diffusers.

All take ``noise(x, k)``, the model's noise prediction at step ``k`` for a sample at that step's level;
``alpha`` and ``sigma``, arrays of N + 1 levels with x = α x_0 + σ ε (the last one is where the solver ends);
and the first sample. They return the sample at the last level. ``draws`` yields a stochastic solver's noises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

Array = np.ndarray
Noise = Callable[[Array, int], Array]


def levels(alpha_bar: Array, times: tuple[float, ...], linear: bool, last: float) -> tuple[Array, Array]:
    """α and σ at continuous times: σ/α linear in time or its logarithm; then σ/α = ``last``."""
    ratio, grid = np.sqrt(1 / alpha_bar - 1), np.arange(len(alpha_bar))
    read = np.interp(times, grid, ratio) if linear else np.exp(np.interp(times, grid, np.log(ratio)))
    ratios = np.append(read, last)
    alpha = 1 / np.hypot(1, ratios)
    return alpha, ratios * alpha


def image(noise: Noise, alpha: Array, sigma: Array, x: Array, k: int) -> Array:
    return (x - sigma[k] * noise(x, k)) / alpha[k]


def ddim(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array], eta: float = 0.0) -> Array:
    """https://arxiv.org/abs/2010.02502, equations (12) and (16)."""
    for k in range(len(alpha) - 1):
        eps = noise(x, k)
        x0 = (x - sigma[k] * eps) / alpha[k]
        ratio = alpha[k] ** 2 / alpha[k + 1] ** 2
        spread = eta * sigma[k + 1] / sigma[k] * math.sqrt(1 - ratio)
        x = alpha[k + 1] * x0 + math.sqrt(sigma[k + 1] ** 2 - spread**2) * eps
        if eta:
            x = x + spread * next(draws)
    return x


def ddpm(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array], large: bool = False) -> Array:
    """https://arxiv.org/abs/2006.11239, section 2, as Bayes' rule for Gaussians: precisions add up.

    x_s | x_0 is N(α_s x_0, σ_s²), and x_t | x_s is N(r x_s, 1 - r²) with r = α_t/α_s.
    """
    for k in range(len(alpha) - 1):
        x0 = image(noise, alpha, sigma, x, k)
        if k == len(alpha) - 2:
            return x0
        r = alpha[k] / alpha[k + 1]
        precision = 1 / sigma[k + 1] ** 2 + r**2 / (1 - r**2)
        mean = (alpha[k + 1] * x0 / sigma[k + 1] ** 2 + r * x / (1 - r**2)) / precision
        x = mean + math.sqrt(1 - r**2 if large else 1 / precision) * next(draws)
    return x


def plms(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """https://arxiv.org/abs/2202.09778, section 3: pseudo linear multistep, started by a trapezoid."""

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
    """PLMS with the mean over the step of the polynomial in time through the slopes; N + 1 ``times``."""
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
    points, masses = np.polynomial.legendre.leggauss(40)
    at = read((start + end) / 2 + (end - start) / 2 * points)
    means = []
    for j, node in enumerate(nodes):
        zeros = [read(zero) for i, zero in enumerate(nodes) if i != j]
        basis = np.prod([(at - zero) / (read(node) - zero) for zero in zeros] or [at * 0 + 1], axis=0)
        means.append(float(masses @ basis / 2))
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


def deis(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array], order: int = 2) -> Array:
    """https://arxiv.org/abs/2204.13902, ρAB-DEIS, polynomials in log ρ; order lowered at the end."""
    return adams(noise, alpha, sigma, x, order, np.log, ends_low=len(alpha) - 1 < 15)


def lms(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array], order: int = 4) -> Array:
    """Linear multistep in σ (k-diffusion): variable-step Adams-Bashforth of up to four slopes."""
    return adams(noise, alpha, sigma, x, order, lambda s: s, ends_low=False)


def euler(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """https://arxiv.org/abs/2206.00364, algorithm 1 without its lines 6 to 8."""
    return adams(noise, alpha, sigma, x, 1, lambda s: s, ends_low=False)


def heun(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """https://arxiv.org/abs/2206.00364, algorithm 1."""
    ratio, y = sigma / alpha, x / alpha[0]
    for k in range(len(alpha) - 1):
        slope = noise(y * alpha[k], k)
        ahead = y + (ratio[k + 1] - ratio[k]) * slope
        if k < len(alpha) - 2:
            slope = (slope + noise(ahead * alpha[k + 1], k + 1)) / 2
        y = y + (ratio[k + 1] - ratio[k]) * slope
    return y * alpha[-1]


def ancestral(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """k-diffusion's ancestral Euler: down to σ_down, then noise of σ_up, with σ_down² + σ_up² = σ'²."""
    ratio, y = sigma / alpha, x / alpha[0]
    for k in range(len(alpha) - 1):
        up = ratio[k + 1] / ratio[k] * math.sqrt(ratio[k] ** 2 - ratio[k + 1] ** 2)
        down = ratio[k + 1] ** 2 / ratio[k]
        y = y + (down - ratio[k]) * noise(y * alpha[k], k) + up * next(draws)
    return y * alpha[-1]


def _log_snr(alpha: Array, sigma: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.log(alpha) - np.log(sigma)


def dpm_multistep(
    noise: Noise,
    alpha: Array,
    sigma: Array,
    x: Array,
    draws: Iterator[Array],
    order: int = 2,
    halved: bool = True,
    ends_low: bool = True,
) -> Array:
    """DPM-Solver++ multistep, https://arxiv.org/abs/2211.01095, algorithm 2 (2M); 3M by Taylor.

    ``halved``: the authors' own code enters half of the second derivative (D2 is h²x''/2, used as h²x'').
    """
    lam, past, steps = _log_snr(alpha, sigma), [], len(alpha) - 1
    for k in range(steps):
        past = [image(noise, alpha, sigma, x, k), *past][:order]
        use = min(len(past), steps - k) if ends_low and steps < 15 else len(past)
        use = 1 if sigma[k + 1] == 0 else use
        h = lam[k + 1] - lam[k]
        reach = -math.expm1(-h)
        total = reach * past[0]
        if use == 2:
            total = total + reach / 2 * h / (lam[k] - lam[k - 1]) * (past[0] - past[1])
        if use == 3:
            first, second = _derivatives(lam[k - 2 : k + 1][::-1], past)
            total = total + (h - reach) * first + (h * h / 2 - h + reach) * second / (2 if halved else 1)
        x = sigma[k + 1] / sigma[k] * x + alpha[k + 1] * total
    return x


def _derivatives(lam: Array, values: list[Array]) -> tuple[Array, Array]:
    """First and second derivative at ``lam[0]`` of the parabola through three points."""
    to_near, to_far = lam[1] - lam[0], lam[2] - lam[0]
    near, far = (values[1] - values[0]) / to_near, (values[2] - values[0]) / to_far
    second = 2 * (far - near) / (to_far - to_near)
    return near - second * to_near / 2, second


def dpm_noise_multistep(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """DPM-Solver-2 in its multistep form, https://arxiv.org/abs/2206.00927 with 2211.01095, appendix B."""
    lam, past, steps = _log_snr(alpha, sigma), [], len(alpha) - 1
    for k in range(steps):
        past = [noise(x, k), *past][:2]
        h = lam[k + 1] - lam[k]
        x = alpha[k + 1] / alpha[k] * x - sigma[k + 1] * math.expm1(h) * past[0]
        if len(past) == 2 and k < steps - 1:
            slope = (past[0] - past[1]) / (lam[k] - lam[k - 1])
            x = x - sigma[k + 1] * math.expm1(h) / 2 * h * slope
    return x


def sde_dpm_multistep(
    noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array], order: int = 2
) -> Array:
    """SDE-DPM-Solver++ (2M), https://arxiv.org/abs/2211.01095, section 5, noise added by the SDE."""
    lam, past, steps = _log_snr(alpha, sigma), [], len(alpha) - 1
    for k in range(steps):
        past = [image(noise, alpha, sigma, x, k), *past][:order]
        h = lam[k + 1] - lam[k]
        reach = -math.expm1(-2 * h)
        total = past[0]
        if len(past) == 2 and k < steps - 1:
            total = total + h / (lam[k] - lam[k - 1]) / 2 * (past[0] - past[1])
        kept = sigma[k + 1] / sigma[k] * math.exp(-h)
        x = kept * x + alpha[k + 1] * reach * total + sigma[k + 1] * math.sqrt(reach) * next(draws)
    return x


def dpm_singlestep(
    noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array], orders: tuple[int, ...]
) -> Array:
    """DPM-Solver++(2S), https://arxiv.org/abs/2211.01095, algorithm 1; (3S) as in 2206.00927, appendix B.

    Each step of ``orders[k] == j`` starts again at the sample of the block's first node, j - 1 nodes back.
    """
    lam, past, base = _log_snr(alpha, sigma), [], x
    for k, order in enumerate(orders):
        past = [image(noise, alpha, sigma, x, k), *past][:3]
        base = x if order == 1 else base
        start = k - order + 1
        h = lam[k + 1] - lam[start]
        reach = -math.expm1(-h)
        total = reach * past[order - 1]
        slope = (past[0] - past[order - 1]) / ((lam[k] - lam[start]) or 1.0)
        if order == 2:
            total = total + reach / 2 * h * slope
        if order == 3:
            total = total + (h - reach) * slope
        x = sigma[k + 1] / sigma[start] * base + alpha[k + 1] * total
    return x


def unipc(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array], order: int = 2) -> Array:
    """UniPC-p of https://arxiv.org/abs/2302.04867, algorithm 1, data prediction, B(h) = e^{-h} - 1.

    The corrector of a step runs when the model is next evaluated, so not after the last step.
    """
    lam, past, steps = _log_snr(alpha, sigma), [], len(alpha) - 1
    before, used = x, 0
    for k in range(steps):
        fresh = image(noise, alpha, sigma, x, k)
        if k:
            x = _unified(lam, alpha, sigma, before, past, k - 1, used, fresh)
        past = [fresh, *past][:order]
        used = min(order, len(past), steps - k)
        before = x
        x = _unified(lam, alpha, sigma, x, past, k, used, None)
    return x


def _unified(
    lam: Array,
    alpha: Array,
    sigma: Array,
    x: Array,
    past: list[Array],
    k: int,
    order: int,
    fresh: Array | None,
) -> Array:
    """UniP without ``fresh``, UniC with it: UniPC, section 3."""
    h = lam[k + 1] - lam[k]
    grow = math.expm1(-h)
    plain = sigma[k + 1] / sigma[k] * x - alpha[k + 1] * grow * past[0]
    nodes = [(lam[k - i] - lam[k]) / h for i in range(1, order)]
    gaps = [(past[i] - past[0]) / nodes[i - 1] for i in range(1, order)]
    if fresh is not None:
        nodes, gaps = [*nodes, 1.0], [*gaps, fresh - past[0]]
    if not nodes:
        return plain
    if len(nodes) == 1:
        weights = np.array([0.5])  # one node keeps its order with 1/2
    else:
        powers = np.array([[node**i for node in nodes] for i in range(len(nodes))])
        weights = np.linalg.solve(powers, np.array([_phi(i + 1, -h) for i in range(len(nodes))]) / grow)
    return plain - alpha[k + 1] * grow * sum(a * d for a, d in zip(weights, gaps, strict=True))


def _phi(i: int, h: float) -> float:
    """h φ_{i+1}(h) i!, by φ_{n+1} = (φ_n - 1/n!)/h, φ_0 = e^h: the right hand side of UniPC's system."""
    phi = math.exp(h)
    for n in range(i + 1):
        phi = (phi - 1 / math.factorial(n)) / h
    return h * phi * math.factorial(i)


def flow_euler(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """dx/dσ = ε - x_0 (https://arxiv.org/abs/2209.03003), α = 1 - σ. ``noise`` is the velocity."""
    for k in range(len(sigma) - 1):
        x = x + (sigma[k + 1] - sigma[k]) * noise(x, k)
    return x


def flow_heun(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """The same by Heun's method, with an Euler step at the end. ``noise`` is the velocity."""
    for k in range(len(sigma) - 1):
        slope = noise(x, k)
        step = sigma[k + 1] - sigma[k]
        if k < len(sigma) - 2:
            slope = (slope + noise(x + step * slope, k + 1)) / 2
        x = x + step * slope
    return x


def lcm(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array], times: tuple[float, ...]) -> Array:
    """https://arxiv.org/abs/2310.04378, multistep sampling, c_skip and c_out with σ_data = 1/2."""
    for k, time in enumerate(times):
        scaled = 10.0 * time
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
        x = skip * x + out * image(noise, alpha, sigma, x, k)
        if k < len(times) - 1:
            x = alpha[k + 1] * x + sigma[k + 1] * next(draws)
    return x


def tcd(
    noise: Noise,
    alpha: Array,
    sigma: Array,
    x: Array,
    draws: Iterator[Array],
    times: tuple[int, ...],
    alpha_bar: Array,
    gamma: float = 0.3,
) -> Array:
    """https://arxiv.org/abs/2402.19159, stochastic sampling: to s = (1-γ)t' with ε, then up to t'."""
    for k, _ in enumerate(times):
        target = times[k + 1] if k + 1 < len(times) else 0
        at = alpha_bar[math.floor((1 - gamma) * target)]
        eps = noise(x, k)
        x = math.sqrt(at) * (x - sigma[k] * eps) / alpha[k] + math.sqrt(1 - at) * eps
        if k + 1 < len(times):
            ratio = alpha_bar[target] / at
            x = math.sqrt(ratio) * x + math.sqrt(1 - ratio) * next(draws)
    return x
