"""``kind = "fid"``: the Fréchet distance between Gaussian fits of features (Heusel et al., 2017, equation 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.objective.metrics.base import Metric, MetricConfig
from autodiffusion_opt.objective.statistics import Moments, frechet_distance

if TYPE_CHECKING:
    from autodiffusion_opt.objective.references import Reference


class Fid(Metric):
    """Sums in float64: memory does not grow with the number of images."""

    def __init__(self, config: MetricConfig, reference: Reference) -> None:
        self._reference = reference.statistics
        self.dimensions = len(self._reference.mean)
        self._moments = Moments(self.dimensions)

    def add(self, features: NDArray[np.float32]) -> None:
        """(N, D)."""
        self._moments.add(features)

    def value(self) -> float:
        """0 or more; biased upwards by a number that falls with the number of images."""
        return frechet_distance(self._moments.gaussian(), self._reference)
