"""``kind = "kl"``: the Kullback-Leibler divergence between Gaussian fits of features. AutoDiffusion's ablation of FID
(Li et al., 2023), where it ranks badly: for comparison, not for use."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.metrics.base import Metric, MetricConfig
from autodiffusion_opt.objective.statistics import Gaussian, Moments

if TYPE_CHECKING:
    from autodiffusion_opt.objective.references import Reference

# Of the reference's mean variance, added to all variances of both sides: features that are always 0 have none.
RIDGE = 1e-6


class Kl(Metric):
    """Sums in float64: memory does not grow with the number of images."""

    def __init__(self, config: MetricConfig, reference: Reference) -> None:
        self._reference = reference.statistics
        self.dimensions = len(self._reference.mean)
        self.least_images = self.dimensions + 1
        if config.rungs[0] < self.least_images:
            raise UserError(
                f"images must be at least {self.least_images} with kl, more than the {self.dimensions} dimensions of "
                f"the features; got {config.rungs[0]}: of fewer, the covariance has no inverse"
            )
        if not self._reference.covariance.any():
            raise UserError("reference: the features of its images must differ; they are the same for all of them")
        self._moments = Moments(self.dimensions)

    def add(self, block: NDArray[np.float32], /) -> None:
        """(N, D)."""
        self._moments.add(block)

    def value(self) -> float:
        """0 or more."""
        return divergence(self._moments.gaussian(), self._reference)


def divergence(generated: Gaussian, reference: Gaussian) -> float:
    """KL(generated ‖ reference) = ½ (tr(Σ_r⁻¹ Σ_g) + (μ_r - μ_g)ᵀ Σ_r⁻¹ (μ_r - μ_g) - D + ln(|Σ_r| / |Σ_g|)).

    Not a number where features were not finite, or a covariance is none but for rounding.
    """
    dimensions = len(reference.mean)
    ridge = RIDGE * np.trace(reference.covariance) / dimensions * np.eye(dimensions)
    ours, theirs = generated.covariance + ridge, reference.covariance + ridge
    difference = reference.mean - generated.mean
    solved = np.linalg.solve(theirs, np.column_stack([ours, difference]))
    of_theirs, of_ours = np.linalg.slogdet(theirs), np.linalg.slogdet(ours)
    if min(of_theirs.sign, of_ours.sign) <= 0:
        return math.nan
    logs = of_theirs.logabsdet - of_ours.logabsdet
    return float(np.trace(solved[:, :-1]) + difference @ solved[:, -1] - dimensions + logs) / 2
