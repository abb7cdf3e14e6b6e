"""``kind = "rfid"``: the Fréchet distance to the teacher's images of the same noise, in place of real ones (the
relative FID of Flexiffusion, Huang et al., 2024)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.metrics.base import Metric, TeacherFeaturesConfig
from autodiffusion_opt.objective.statistics import FrechetDistance

if TYPE_CHECKING:
    from autodiffusion_opt.objective.teacher_reference import TeacherReference

# Least images for each dimension of the features. Below n = D both covariances have rank n - 1 in different subspaces,
# and the distance measures that: on the digits it then ranks candidates no better than chance.
LEAST_SHARE = 1.5


class RelativeFid(Metric):
    """As ``fid``, with statistics of as many of the teacher's images as a candidate has after its last rung."""

    Config: ClassVar[type[TeacherFeaturesConfig]] = TeacherFeaturesConfig

    def __init__(self, config: TeacherFeaturesConfig, reference: TeacherReference) -> None:
        self.dimensions = reference.dimensions
        self.least_images = math.ceil(LEAST_SHARE * self.dimensions)
        fewest = min(reference.count, config.rungs[0])
        if fewest < self.least_images:
            raise UserError(
                f"images must be at least {self.least_images} with rfid, 1.5 times the {self.dimensions} dimensions of "
                f"the features; got {fewest}: of fewer, the covariances have not the full rank and the "
                'distance ranks nothing. Generate more, or screen with kind = "paired"'
            )
        self._distance = FrechetDistance(reference.statistics, reference.device)

    def add(self, block: NDArray[np.float32], /) -> None:
        """(N, D)."""
        self._distance.add(block)

    def value(self) -> float:
        """0 or more; 0 where the images are the teacher's."""
        return self._distance.value()
