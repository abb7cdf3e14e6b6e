"""A joint search whose best is known: times and layers valued by a formula, no model; for ``evolution.py``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt import Candidate, ModelInfo
from autodiffusion_opt.space import Joint, JointConfig, TimeSteps, TimeStepsConfig

TRAIN_STEPS, LAYERS = 1000, 18
# p_l of layer l: 1/18, 2/18 .. 1, shuffled so that a layer's number tells nothing.
SHARES: NDArray[np.float64] = (np.random.default_rng(0).permutation(LAYERS) + 1) / LAYERS
# Rounds of choosing the best layers and the best times by turns.
ROUNDS = 20


@dataclass(frozen=True)
class Toy:
    """The error of the times, and what the removed layers cost.

    With u = √(t / 999) and a budget of W whole networks the error is (W + 1) · Σ gap² over the gaps that the steps
    leave in u = 0 .. 1: at best (W + 1) / (K + 1) for K steps. Removing layer l at a step costs price · p_l · (½ + u).
    So the price decides whether W whole steps are best, or more steps that run fewer layers.

    Attributes:
        whole: W.
        price: of a layer.
    """

    whole: int
    price: float

    @property
    def joint(self) -> Joint:
        """W to 2 W steps, any half of the layers removed at each; the layers are not ranked."""
        info = ModelInfo(TRAIN_STEPS, layers=LAYERS, removable=tuple(range(LAYERS)))
        return JointConfig(n_max=self.whole * LAYERS, steps_min=self.whole).space(info)

    @property
    def times(self) -> TimeSteps:
        """W steps, all layers run."""
        return TimeStepsConfig(steps=self.whole).space(ModelInfo(TRAIN_STEPS))

    def value(self, candidate: Candidate) -> float:
        """Of a candidate of either space."""
        u = np.sqrt(np.array(candidate.times) / (TRAIN_STEPS - 1))
        return self._value(u, np.array([SHARES[list(layers)].sum() for layers in candidate.removed]))

    def best(self, steps: int) -> float:
        """The best value of so many steps: the cheapest layers for the times, the best times for those, by turns.

        Times are real numbers here.
        """
        cheapest, gone = np.sort(SHARES)[: LAYERS // 2], LAYERS * (steps - self.whole)
        # (W + 1) Σ gap² = const + ½ uᵀ matrix u - u · ends, as 1 and 0 are the ends of the range
        scale = 2.0 * (self.whole + 1)
        matrix = scale * (2 * np.eye(steps) - np.eye(steps, k=1) - np.eye(steps, k=-1))
        ends = np.concatenate([[scale], np.zeros(steps - 1)])
        u, values = np.arange(steps, 0, -1) / (steps + 1), []
        for _ in range(ROUNDS):
            order = np.argsort(np.outer(0.5 + u, cheapest), axis=None)[:gone]
            shares = np.bincount(order // len(cheapest), cheapest[order % len(cheapest)], minlength=steps)
            u = np.linalg.solve(matrix, ends - self.price * shares)
            values.append(self._value(u, shares))
        return min(values)

    def _value(self, u: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
        """Of u and of Σ p_l at each step, noise to image."""
        gaps = np.diff([1.0, *u, 0.0])
        return float((self.whole + 1) * (gaps**2).sum() + self.price * (shares * (0.5 + u)).sum())


TOYS = {
    "4 steps, dear layers": Toy(4, 0.15),
    "4 steps, cheap layers": Toy(4, 0.01),
    "10 steps, dear layers": Toy(10, 0.1),
    "10 steps, cheap layers": Toy(10, 0.005),
}
