"""``kind = "paired"``: the mean distance of an image's features from those of the teacher's image of the same noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.objective.metrics.base import Metric, TeacherFeaturesConfig

if TYPE_CHECKING:
    from autodiffusion_opt.objective.teacher_reference import TeacherReference


class Paired(Metric):
    """Works from the first image on: nothing of it is a covariance."""

    Config: ClassVar[type[TeacherFeaturesConfig]] = TeacherFeaturesConfig

    def __init__(self, config: TeacherFeaturesConfig, reference: TeacherReference) -> None:
        self._teacher = reference.features
        self.dimensions = self._teacher.shape[1]
        self._total, self._count = 0.0, 0

    def add(self, block: NDArray[np.float32], /) -> None:
        """(N, D), of the images that follow those added before."""
        theirs = self._teacher[self._count : self._count + len(block)]
        difference = block.astype(np.float64) - theirs.astype(np.float64)
        # The distance, not its square: in a mean of squares the few images that are far off count for most.
        self._total += float(np.linalg.norm(difference, axis=1).sum())
        self._count += len(block)

    def value(self) -> float:
        """0 or more; 0 where the images are the teacher's."""
        return self._total / self._count
