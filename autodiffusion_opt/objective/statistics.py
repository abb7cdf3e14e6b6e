"""The mean and covariance of features, streamed, and the Fréchet distance between two of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution over features.

    Attributes:
        mean: (D,) float64.
        covariance: (D, D) float64, of n - 1 degrees of freedom.
        count: n, the number of images it was taken from; 0 where a file does not say.
    """

    mean: Array
    covariance: Array
    count: int = 0

    @cached_property
    def root(self) -> Array:
        """The symmetric square root of the covariance, computed once."""
        values, vectors = np.linalg.eigh(self.covariance)
        root: Array = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        return root


class Moments:
    """Σ1, Σx and Σxxᵀ in float64: memory does not grow with the number of images."""

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self._sum: Array = np.zeros(dimensions)
        self._outer: Array = np.zeros((dimensions, dimensions))

    def add(self, features: NDArray[np.float32]) -> None:
        """Add a batch of features, (N, D)."""
        wide = features.astype(np.float64)
        self.count += len(wide)
        self._sum += wide.sum(axis=0)
        self._outer += wide.T @ wide

    def gaussian(self) -> Gaussian:
        """The mean and the covariance (n - 1) of all that was added. Raises ValueError for fewer than two images."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images; got {self.count}")
        mean = self._sum / self.count
        covariance = (self._outer - self.count * np.outer(mean, mean)) / (self.count - 1)
        return Gaussian(mean, covariance, self.count)


def frechet_distance(generated: Gaussian, reference: Gaussian) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½) (Heusel et al., 2017, equation 6).

    The trace of the root is Σ √eig(R½ Σ₁ R½), R the reference's covariance: symmetric, so that it stays real, and R½
    is computed once. Not a number where features were not finite.
    """
    difference = generated.mean - reference.mean
    inner = reference.root @ generated.covariance @ reference.root
    if not np.isfinite(inner).all():
        return math.nan  # LAPACK does not end on these
    values = np.linalg.eigvalsh((inner + inner.T) / 2)
    trace = float(np.sqrt(np.maximum(values, 0.0)).sum())
    both = float(np.trace(generated.covariance) + np.trace(reference.covariance))
    return float(difference @ difference) + both - 2 * trace
