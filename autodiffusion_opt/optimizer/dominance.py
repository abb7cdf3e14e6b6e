"""The best of candidates with several values: non-dominated sorting with crowding (Deb et al., 2002, section III).

With one value these are the candidates of least loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.trials.history import Observation, Past, dominates


def best_of(past: Past, count: int, before: int) -> list[Observation]:
    """The ``count`` best different candidates at positions below ``before``, best first.

    Front after front; of a front that does not fit whole, those whose neighbours in it are farthest. What keeps to its
    bounds comes before what does not, this by how far it is beyond.
    """
    least = past.best(1, before)
    if not least or len(_losses(least[0])) == 1:
        return past.best(count, before)
    measured = past.best(before, before)
    best: list[Observation] = []
    while measured and len(best) < count:
        front = _front(measured)
        best += _least_crowded(front, count - len(best))
        measured = [observation for observation in measured if observation not in front]
    return best


def front_of(past: Past, before: int) -> list[Observation]:
    """The candidates at positions below ``before`` that no other dominates; with one value the best one."""
    least = past.best(1, before)
    if not least or len(_losses(least[0])) == 1:
        return least
    return _front(past.best(before, before))


def _front(observations: Sequence[Observation]) -> list[Observation]:
    """Those of the least excess that no other of these dominates."""
    least = min(observation.excess for observation in observations)
    kept = [observation for observation in observations if observation.excess == least]
    return [
        observation
        for observation in kept
        if not any(dominates(_losses(rival), _losses(observation)) for rival in kept)
    ]


def _least_crowded(front: Sequence[Observation], count: int) -> list[Observation]:
    """At most ``count`` of a front: its ends first, then by crowding distance."""
    losses = np.array([_losses(observation) for observation in front])
    crowding = _crowding(losses)
    order = sorted(range(len(front)), key=lambda index: (-crowding[index], front[index].position))
    return [front[index] for index in order[:count]]


def _crowding(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ over values of the distance between both neighbours, in shares of the range; infinite at the ends."""
    distance = np.zeros(len(losses))
    for values in losses.T:
        order = np.argsort(values, kind="stable")
        spread = values[order[-1]] - values[order[0]]
        distance[order[[0, -1]]] = math.inf
        if spread > 0:
            distance[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / spread
    return distance


def _losses(observation: Observation) -> tuple[float, ...]:
    assert observation.losses is not None  # past.best has measured ones alone
    return observation.losses
