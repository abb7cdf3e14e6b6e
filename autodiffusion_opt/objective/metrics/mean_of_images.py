"""The base of metrics that give each image a number: the value is their mean."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.objective.metrics.base import ImagesConfig, Metric


class MeanOfImages(Metric):
    """The mean over images of a number of each; a number an image is all that is kept."""

    is_mean: ClassVar[bool] = True

    def __init__(self, config: ImagesConfig, reference: Any) -> None:
        super().__init__(config, reference)
        self._numbers: list[NDArray[np.float64]] = []
        self._count = 0

    @abstractmethod
    def of_each(self, block: Any, first: int) -> Any:
        """(N,) numbers of a block of N images or features, of which the first has the index ``first``."""

    def add(self, block: Any, /) -> None:
        """Images or features that follow those added before."""
        numbers = self.of_each(block, self._count)
        self._numbers.append(np.asarray(numbers.cpu() if hasattr(numbers, "cpu") else numbers, dtype=np.float64))
        self._count += len(block)

    def of_images(self) -> NDArray[np.float64]:
        """(N,)."""
        return np.concatenate(self._numbers)

    def value(self) -> float:
        """The mean over all images."""
        return float(self.of_images().mean())
