"""``kind = "fid"``: the Fréchet distance between Gaussian fits of features (Heusel et al., 2017, equation 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.objective.metrics.base import Metric, MetricConfig
from autodiffusion_opt.objective.statistics import FrechetDistance

if TYPE_CHECKING:
    from autodiffusion_opt.objective.references import Reference


class Fid(Metric):
    """Keeps at most 0.75 D features of D dimensions: memory does not grow with the number of images."""

    def __init__(self, config: MetricConfig, reference: Reference) -> None:
        self._distance = FrechetDistance(reference.statistics, reference.device)
        self.dimensions = len(reference.statistics.mean)

    def add(self, features: NDArray[np.float32]) -> None:
        """(N, D)."""
        self._distance.add(features)

    def value(self) -> float:
        """0 or more; biased upwards by a number that falls with the number of images."""
        return self._distance.value()
