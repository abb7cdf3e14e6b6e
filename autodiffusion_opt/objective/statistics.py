"""The mean and covariance of features, and the Fréchet distance between two normal distributions over them.

The costly part of the distance is the trace of a matrix root. Of N images with D features it is taken from an N × N
matrix where N is at most 0.75 D, else from a D × D one; both are symmetric, so that only eigenvalues are needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.errors import UserError

Array = NDArray[np.float64]

# N / D up to which the N × N matrix is the cheaper one (measured at D = 2,048; benchmarks/frechet.py).
GRAM_SHARE = 0.75


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
        return square_root(self.covariance)


def square_root(covariance: Array) -> Array:
    """The symmetric square root of a covariance; eigenvalues below 0 are rounding errors and count as 0."""
    values, vectors = np.linalg.eigh(covariance)
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
        """The mean and the covariance (n - 1) of all that was added. Raises UserError for fewer than two images."""
        _need_two(self.count)
        mean = self._sum / self.count
        covariance = (self._outer - self.count * np.outer(mean, mean)) / (self.count - 1)
        return Gaussian(mean, covariance, self.count)


class FrechetDistance:
    """The Fréchet distance of features, added block by block, from a reference.

    The features themselves are kept up to 0.75 D images. Beyond that they go to sums, 0.75 D rows at a time, so that
    memory does not grow with the number of images and each update of the D × D sum is worth its cost.

    Args:
        reference: what features are compared with.
        device: a torch device that computes in float64; None: NumPy does.
    """

    def __init__(self, reference: Gaussian, device: str | None = None) -> None:
        self._reference = reference
        _ = reference.root  # computed, or read from disk, before the first image: no trial pays for it
        self._device = device
        self._limit = int(GRAM_SHARE * len(reference.mean))
        self._rows: list[NDArray[np.float32]] = []
        self._kept = 0
        self._moments: Moments | None = None

    def add(self, features: NDArray[np.float32]) -> None:
        """Add a batch of features, (N, D); they are copied."""
        self._rows.append(np.array(features))
        self._kept += len(features)
        if self._kept > self._limit:
            self._fold()

    def value(self) -> float:
        """Of all features that were added; infinite where some are not finite.

        Raises:
            UserError: for fewer than two images.
        """
        if self._moments is None:
            _need_two(self._kept)
            return frechet_distance_of_few(np.concatenate(self._rows), self._reference, self._device)
        return frechet_distance(self._fold().gaussian(), self._reference, self._device)

    def _fold(self) -> Moments:
        """The sums, with the rows that were kept since the last time."""
        self._moments = self._moments or Moments(len(self._reference.mean))
        if self._rows:
            self._moments.add(np.concatenate(self._rows))
        self._rows, self._kept = [], 0
        return self._moments


def frechet_distance(generated: Gaussian, reference: Gaussian, device: str | None = None) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½) (Heusel et al., 2017, equation 6).

    The trace of the root is Σ √eig(R½ Σ₁ R½), R the reference's covariance: symmetric, so that it stays real, and R½
    is computed once. Σ₁Σ₂ itself is not symmetric. Infinite where features were not finite.
    """
    root, covariance = _placed(device, reference.root, generated.covariance)
    inner = root @ covariance @ root
    trace = _sum_of_roots((inner + inner.T) / 2)
    return _distance(generated.mean, np.trace(generated.covariance), reference, trace)


def frechet_distance_of_few(features: NDArray[Any], reference: Gaussian, device: str | None = None) -> float:
    """The same distance of N features, (N, D); cheaper where N is below D.

    Σ₁ is XᵀX with X the centred features over √(N - 1), so the eigenvalues of R½ Σ₁ R½ = (X R½)ᵀ(X R½) that are not
    0 are those of the N × N Gram matrix (X R½)(X R½)ᵀ.
    """
    wide = features.astype(np.float64)
    mean = wide.mean(axis=0)
    centred = (wide - mean) / math.sqrt(len(wide) - 1)
    rows, root = _placed(device, centred, reference.root)
    scaled = rows @ root
    return _distance(mean, np.vdot(centred, centred), reference, _sum_of_roots(scaled @ scaled.T))


def _distance(mean: Array, variance: np.floating[Any], reference: Gaussian, trace: float) -> float:
    """Equation 6, given tr Σ₁ and tr (Σ₁Σ₂)^½. Rounding does not make it negative."""
    difference = mean - reference.mean
    distance = float(difference @ difference + variance + np.trace(reference.covariance) - 2 * trace)
    return math.inf if math.isnan(distance) else max(distance, 0.0)


def _placed(device: str | None, *arrays: Array) -> tuple[Any, ...]:
    """NumPy's arrays as they are, or torch's on a device: the formulas are the same for both."""
    if device is None:
        return arrays
    import torch

    return tuple(torch.as_tensor(array, dtype=torch.float64, device=device) for array in arrays)


def _sum_of_roots(symmetric: Any) -> float:
    """Σ sign(λ) √|λ| over the eigenvalues, none of which is below 0. Not a number where entries are not finite.

    An eigenvalue of 0 comes out as a rounding error ±ε λ_max, and its root is 1e8 times that. Features that never
    change give hundreds; with their signs the errors cancel, where √max(λ, 0) would add up those above 0.
    """
    if not math.isfinite(float(abs(symmetric).sum())):
        return math.nan  # LAPACK does not end on these
    values = _eigenvalues(symmetric)
    return float((np.sign(values) * np.sqrt(np.abs(values))).sum())


def _eigenvalues(symmetric: Any) -> Array:
    if not isinstance(symmetric, np.ndarray):
        import torch

        try:
            eigenvalues: Array = torch.linalg.eigvalsh(symmetric).cpu().numpy()
            return eigenvalues
        except RuntimeError:  # LinAlgError: cuSOLVER gives up on some that LAPACK solves
            symmetric = symmetric.cpu().numpy()
    return np.linalg.eigvalsh(symmetric)


def _need_two(count: int) -> None:
    if count < 2:
        raise UserError(f"a covariance needs at least 2 images; got {count}")
