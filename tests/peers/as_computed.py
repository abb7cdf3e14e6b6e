"""What a scheduler computes where that is not the paper's formula: diffusers' own step runs there.

Each says what differs; docs/schedulers.md has by how much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from peers.dpm_solvers import dpm_singlestep
from peers.solvers import Array, Noise, adams


def deis_log_rho(noise: Noise, alpha: Array, sigma: Array, x: Array, draws: Iterator[Array], order: int = 2) -> Array:
    """DEIS with polynomials in log ρ: arXiv 2204.13902 has ρ (section 4) or t (section 3).

    The order is lowered at the end of less than 15 steps, which the paper does not do.
    """
    return adams(noise, alpha, sigma, x, order, np.log, ends_low=len(alpha) - 1 < 15)


def dpm_singlestep_as_computed(
    noise: Noise,
    alpha: Array,
    sigma: Array,
    x: Array,
    draws: Iterator[Array],
    orders: Sequence[int],
    form: str = "image",
) -> Array:
    """DPM-Solver singlestep 3 with h/2 in its second call: algorithm 2 of arXiv 2206.00927 has φ₂ of r₂h.

    In diffusers the second call of three is the same as the last of two.
    """
    return dpm_singlestep(noise, alpha, sigma, x, draws, orders, form, inner_by_halves=True)


def block_orders(order: int, count: int, to_zero: bool, lower_order_final: bool = False) -> tuple[int, ...]:
    """Which call of its block each call is: whole blocks of ``order`` calls, then what is left.

    The last call is a block of its own where it goes to σ = 0, and with ``lower_order_final`` where it would end a
    whole block. The paper (section 3.3 of 2206.00927) and its authors' code end with a shorter block only.
    """
    sizes = [min(order, count - start) for start in range(0, count, order)]
    places = [place for size in sizes for place in range(1, size + 1)]
    if to_zero or (lower_order_final and sizes[-1] == order):
        places[-1] = 1
    return tuple(places)
