"""DPM-Solver, DPM-Solver++ and UniPC as their papers have them, in float64: solvers in λ = log(α/σ).

They take what ``solvers`` says. ``form``: which prediction is extrapolated, ``"image"`` (DPM-Solver++, x̂_0) or
``"noise"`` (DPM-Solver, ε).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from peers.solvers import GAUSS, Array, Noise, image


def log_snr(alpha: Array, sigma: Array) -> Array:
    """λ; infinite where σ = 0."""
    with np.errstate(divide="ignore"):
        return np.log(alpha) - np.log(sigma)


def advance(form: str, alpha: Array, sigma: Array, start: int, end: int, x: Array, taylor: Sequence[Array]) -> Array:
    """x at level ``end`` from x at level ``start``: the exact integral of a prediction given as a Taylor series in λ.

    Sections 3.1 and 3.2 of https://arxiv.org/abs/2206.00927 for the noise, 4.1 of https://arxiv.org/abs/2211.01095 for
    the image; ``taylor`` holds the prediction at the start and its derivatives.
    """
    lam = log_snr(alpha, sigma)
    h, sign = lam[end] - lam[start], 1 if form == "noise" else -1
    weight, total = math.expm1(sign * h) / sign, 0.0
    for n, derivative in enumerate(taylor):
        total = total + weight * derivative
        weight = (weight - h ** (n + 1) / math.factorial(n + 1)) / sign  # ∫ e^(±(h-u)) u^n/n! du, by parts
    if form == "noise":
        return alpha[end] / alpha[start] * x - sigma[end] * total
    return sigma[end] / sigma[start] * x + alpha[end] * total


def predicted(form: str, noise: Noise, alpha: Array, sigma: Array, x: Array, k: int) -> Array:
    return noise(x, k) if form == "noise" else image(noise, alpha, sigma, x, k)


def dpm_multistep(
    noise: Noise,
    alpha: Array,
    sigma: Array,
    x: Array,
    draws: Iterator[Array],
    order: int = 2,
    form: str = "image",
    authors_third: bool = False,
    ends_low: bool = True,
) -> Array:
    """DPM-Solver multistep, arXiv 2211.01095: order 2 is algorithm 2, order 3 the Taylor series of section 4.1.

    Orders are lowered at the end of less than 15 steps, as the authors' code does. ``authors_third``: their code of
    order 3 takes the divided difference h² x''/2 for h² x'', half of the series' last term.
    """
    lam, past, steps = log_snr(alpha, sigma), [], len(alpha) - 1
    for k in range(steps):
        past = [predicted(form, noise, alpha, sigma, x, k), *past][:order]
        use = min(len(past), steps - k) if ends_low and steps < 15 else len(past)
        use = 1 if sigma[k + 1] == 0 else use
        h = lam[k + 1] - lam[k]
        taylor = [past[0]]
        if use == 2:  # algorithm 2: the prediction half a step ahead, for the whole step
            taylor = [past[0] + h / 2 * (past[0] - past[1]) / (lam[k] - lam[k - 1])]
        if use == 3:
            first, second = derivatives(lam[k - 2 : k + 1][::-1], past)
            taylor = [past[0], first, second / 2 if authors_third else second]
        x = advance(form, alpha, sigma, k, k + 1, x, taylor)
    return x


def dpm_multistep_authors_third(
    noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array], form: str = "image"
) -> Array:
    """DPM-Solver multistep 3, its authors' code: half of the Taylor series' last term."""
    return dpm_multistep(noise, alpha, sigma, x, draws, 3, form, authors_third=True)


def derivatives(lam: Array, values: list[Array]) -> tuple[Array, Array]:
    """First and second derivative at ``lam[0]`` of the parabola through three points."""
    to_near, to_far = lam[1] - lam[0], lam[2] - lam[0]
    near, far = (values[1] - values[0]) / to_near, (values[2] - values[0]) / to_far
    second = 2 * (far - near) / (to_far - to_near)
    return near - second * to_near / 2, second


def sde_dpm_multistep(
    noise: Noise,
    alpha: Array,
    sigma: Array,
    x: Array,
    draws: Iterator[Array],
    order: int = 2,
    idle_draws: bool = False,
) -> Array:
    """SDE-DPM-Solver++(2M), section 5 of arXiv 2211.01095.

    ``idle_draws``: a noise is drawn and not used before each step of order 2.
    """
    lam, past, steps = log_snr(alpha, sigma), [], len(alpha) - 1
    for k in range(steps):
        past = [image(noise, alpha, sigma, x, k), *past][:order]
        h = lam[k + 1] - lam[k]
        reach = -math.expm1(-2 * h)
        total = past[0]
        if len(past) == 2 and k < steps - 1:
            if idle_draws:
                next(draws)
            total = total + h / (lam[k] - lam[k - 1]) / 2 * (past[0] - past[1])
        kept = sigma[k + 1] / sigma[k] * math.exp(-h)
        x = kept * x + alpha[k + 1] * reach * total + sigma[k + 1] * math.sqrt(reach) * next(draws)
    return x


def sde_dpm_singlestep(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array]) -> Array:
    """DPM-Solver++ SDE of k-diffusion: SDE-DPM-Solver++ (section 5 of arXiv 2211.01095) by the midpoint rule.

    In y = x/α and s = σ/α a step of order 1 from s to s' is y' = (d/s) y + (1 - d/s) x_0 + √(s'² - d²) ε with
    d = s'²/s. Each step is made to the geometric mean of its ends, then again with the image that is predicted there;
    the last is Euler's. The noise ε is that of a Brownian path in s: over the whole step it goes on from the middle.
    """
    ratio, y = sigma / alpha, x / alpha[0]

    def made(start: float, end: float, image: Array, eps: Array) -> Array:
        down = end**2 / start
        return down / start * y + (1 - down / start) * image + math.sqrt(end**2 - down**2) * eps

    for k in range(len(alpha) - 1):
        predicted = y - ratio[k] * noise(y * alpha[k], k)
        if ratio[k + 1] == 0:
            return predicted
        middle = math.sqrt(ratio[k] * ratio[k + 1])
        first = next(draws)
        ahead = made(ratio[k], middle, predicted, first)
        predicted = ahead - middle * noise(ahead / math.hypot(1, middle), k + 0.5)
        path = math.sqrt(ratio[k] - middle) * first + math.sqrt(middle - ratio[k + 1]) * next(draws)
        y = made(ratio[k], ratio[k + 1], predicted, path / math.sqrt(ratio[k] - ratio[k + 1]))
    return y * alpha[-1]


def sa_solver(
    noise: Noise,
    alpha: Array,
    sigma: Array,
    x: Array,
    draws: Iterator[Array],
    times: Array,
    predictor: int = 2,
    corrector: int = 2,
    form: str = "image",
    tau: Callable[[float], float] = lambda time: float(200 <= time <= 800),
) -> Array:
    """SA-Solver, algorithm 1 of arXiv 2309.05019: as its authors' code weighs the slope of order 2.

    ``predictor``, ``corrector``: their orders, lowered at the start and at the end. A step of either integrates the
    polynomial through its predictions; the corrector's has the one at the end of the step.
    """
    lam, steps, past = log_snr(alpha, sigma), len(alpha) - 1, []  # past: the newest prediction first
    before = drawn = None
    for k in range(steps):
        past = [predicted(form, noise, alpha, sigma, x, k), *past]
        if k:
            order = min(corrector, steps - k + 2, k + 1)
            nodes, values = lam[k::-1][:order], past[:order]
            x = _sa_step(form, alpha, sigma, lam, k - 1, before, tau(times[k - 1]), nodes, values, drawn)
        order = min(predictor, steps - k, k + 1)
        before, drawn = x, next(draws)
        x = _sa_step(form, alpha, sigma, lam, k, x, tau(times[k]), lam[k::-1][:order], past[:order], drawn)
    return x


def _sa_step(
    form: str,
    alpha: Array,
    sigma: Array,
    lam: Array,
    k: int,
    x: Array,
    tau: float,
    nodes: Array,
    values: list[Array],
    drawn: Array,
) -> Array:
    """From level k to the next, τ constant: propositions 4.2 and A.1, the integrals by Gauss.

    For images, two nodes: the slope's weight ∫ e^((1+τ²)(λ-λ')) (λ-λ_k) dλ is replaced by h²/2, which is right to the
    same order.
    """
    h, total = lam[k + 1] - lam[k], 1 + tau**2
    at, weights = lam[k] + h * (GAUSS[0] + 1) / 2, GAUSS[1] * h / 2
    growth = np.exp(total * (at - lam[k + 1])) if form == "image" else np.exp(lam[k + 1] - at)
    if form == "image" and len(nodes) == 2:
        slope = (values[0] - values[1]) / (nodes[0] - nodes[1])
        start = values[0] if nodes[0] == lam[k] else values[1]
        integral = (weights @ growth) * start + h**2 / 2 * slope
    else:
        bases = [np.prod([(at - b) / (a - b) for b in nodes if b != a] or [at * 0 + 1], axis=0) for a in nodes]
        integral = sum((weights @ (growth * basis)) * value for basis, value in zip(bases, values, strict=True))
    if form == "image":
        kept, spread = sigma[k + 1] / sigma[k] * math.exp(-(tau**2) * h), math.sqrt(-math.expm1(-2 * tau**2 * h))
        return kept * x + alpha[k + 1] * total * integral + sigma[k + 1] * spread * drawn
    spread = tau * math.sqrt(math.expm1(2 * h))
    return alpha[k + 1] / alpha[k] * x - sigma[k + 1] * total * integral + sigma[k + 1] * spread * drawn


def dpm_singlestep(
    noise: Noise,
    alpha: Array,
    sigma: Array,
    x: Array,
    draws: Iterator[Array],
    orders: Sequence[int],
    form: str = "image",
    inner_by_halves: bool = False,
) -> Array:
    """DPM-Solver singlestep, arXiv 2206.00927 and 2211.01095: algorithms 1 and 2 of the first, 1 of the second.

    ``orders[k] == j``: call k is the j-th of its block and starts again at the block's first sample. The papers' r_1
    and r_2 are where the times lie. ``inner_by_halves``: the second of three calls goes on as if it were the last of
    two, with 1/(2 r_1) where algorithm 2 of DPM-Solver-3 has r_2/r_1 ((e^(r_2 h) - 1)/(r_2 h) - 1).
    """
    lam, past, base = log_snr(alpha, sigma), [], x
    for k, order in enumerate(orders):
        past = [predicted(form, noise, alpha, sigma, x, k), *past][:3]
        base = x if order == 1 else base
        start = k - order + 1
        first = past[order - 1]
        slope = 0.0 if order == 1 else (past[0] - first) / (lam[k] - lam[start])
        inner = order == 2 and k + 1 < len(orders) and orders[k + 1] == 3
        if order == 3 or (inner and not inner_by_halves):
            taylor = [first, slope]
        else:  # 1/(2 r_1), both algorithms 1
            taylor = [first if order == 1 else first + (lam[k + 1] - lam[start]) / 2 * slope]
        x = advance(form, alpha, sigma, start, k + 1, base, taylor)
    return x


def unipc(
    noise: Noise,
    alpha: Array,
    sigma: Array,
    x: Array,
    draws: Iterator[Array],
    order: int = 2,
    form: str = "image",
    kind: str = "bh2",
    ends_low: bool = True,
) -> Array:
    """UniPC, algorithms 1 and 2 of arXiv 2302.04867: B(h) = e^h - 1 (``bh2``) or h (``bh1``).

    The corrector of a step runs when the model is next evaluated, so not after the last step. Orders are lowered at
    the end, as the authors' code does.
    """
    past, steps, before, used = [], len(alpha) - 1, x, 0
    for k in range(steps):
        fresh = predicted(form, noise, alpha, sigma, x, k)
        if k:
            x = _unified(alpha, sigma, before, past, k - 1, used, form, kind, fresh)
        past = [fresh, *past][:order]
        used = min(order, len(past), steps - k) if ends_low else len(past)
        before = x
        x = _unified(alpha, sigma, x, past, k, used, form, kind, None)
    return x


def _unified(
    alpha: Array,
    sigma: Array,
    x: Array,
    past: list[Array],
    k: int,
    order: int,
    form: str,
    kind: str,
    fresh: Array | None,
) -> Array:
    """UniP (section 3.3) without ``fresh``, UniC (section 3.1) with it; the image's form is that of -h."""
    lam = log_snr(alpha, sigma)
    h = lam[k + 1] - lam[k]
    signed, outer = (h, sigma[k + 1]) if form == "noise" else (-h, alpha[k + 1])
    plain = advance(form, alpha, sigma, k, k + 1, x, [past[0]])
    nodes = [(lam[k - i] - lam[k]) / h for i in range(1, order)]  # r_m
    gaps = [(past[i] - past[0]) / nodes[i - 1] for i in range(1, order)]  # D_m / r_m
    if fresh is not None:
        nodes, gaps = [*nodes, 1.0], [*gaps, fresh - past[0]]
    if not nodes:
        return plain
    scale = signed if kind == "bh1" else math.expm1(signed)  # B(h)
    if len(nodes) == 1:
        weights = np.array([0.5])  # a_1 = 1/2 keeps the order, for either B
    else:
        powers = np.array([[node**n for node in nodes] for n in range(len(nodes))])
        weights = np.linalg.solve(powers, np.array([_phi(n + 1, signed) for n in range(len(nodes))]) / scale)
    return plain - outer * scale * sum(a * d for a, d in zip(weights, gaps, strict=True))


def _phi(n: int, h: float) -> float:
    """h φ_{n+1}(h) n!, by φ_{m+1} = (φ_m - 1/m!)/h, φ_0 = e^h: the right hand side of UniPC's system."""
    phi = math.exp(h)
    for m in range(n + 1):
        phi = (phi - 1 / math.factorial(m)) / h
    return h * phi * math.factorial(n)
