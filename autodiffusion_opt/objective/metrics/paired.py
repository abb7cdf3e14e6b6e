"""``kind = "paired"``: the mean distance of an image's features from those of the teacher's image of the same noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.objective.metrics.base import TeacherFeaturesConfig
from autodiffusion_opt.objective.metrics.mean_of_images import MeanOfImages

if TYPE_CHECKING:
    from autodiffusion_opt.objective.teacher_reference import TeacherReference


class Paired(MeanOfImages):
    """Works from the first image on: nothing of it is a covariance."""

    Config: ClassVar[type[TeacherFeaturesConfig]] = TeacherFeaturesConfig

    def __init__(self, config: TeacherFeaturesConfig, reference: TeacherReference) -> None:
        super().__init__(config, reference)
        self._teacher = reference.features
        self.dimensions = self._teacher.shape[1]

    def of_each(self, block: NDArray[np.float32], first: int) -> NDArray[np.float64]:
        """(N,) of features (N, D)."""
        theirs = self._teacher[first : first + len(block)]
        difference = block.astype(np.float64) - theirs.astype(np.float64)
        # The distance, not its square: in a mean of squares the few images that are far off count for most.
        distances: NDArray[np.float64] = np.linalg.norm(difference, axis=1)
        return distances
