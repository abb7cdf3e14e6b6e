"""Measuring one candidate: images, block by block, into one metric or several."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.errors import EvaluationError, UserError
from autodiffusion_opt.objective.goals import Direction

if TYPE_CHECKING:
    import torch

    from autodiffusion_opt.objective.features import Extractor


class Measuring(Protocol):
    """What is asked of a metric here; :class:`~autodiffusion_opt.objective.metrics.base.Metric` has it."""

    dimensions: int | None

    @property
    def direction(self) -> Direction:
        """Whether less or more is better."""
        ...

    def add(self, block: Any, /) -> None:
        """Some more images, or features of them."""
        ...

    def value(self) -> float | Mapping[str, float]:
        """Of all that was added."""
        ...

    def of_images(self) -> NDArray[np.float64] | None:
        """A number for each image, where the value is their mean."""
        ...


class MetricMeasurement:
    """One metric's part in measuring a candidate.

    Args:
        name: that its value gets.
        own_name: that the metric itself gives it.
        extractor: of the features that it gets; None: it gets images.
        metric: measures.
    """

    def __init__(self, name: str, own_name: str, extractor: Extractor | None, metric: Measuring) -> None:
        self.name = name
        self.extractor = extractor
        self._own_name = own_name
        self._metric = metric

    def add(self, block: Any) -> None:
        """Features or images. Raises UserError for features that the metric's reference does not fit."""
        wanted = self._metric.dimensions
        if wanted is not None and block.shape[1] != wanted:
            raise UserError(
                f"the reference must have features of {block.shape[1]} dimensions, as the extractor gives; it has "
                f"{wanted}: it was made with another extractor"
            )
        with _not_finite_is_told_by_the_value():
            self._metric.add(block)

    def values(self) -> dict[str, float]:
        """The metric's values, its own first; where one is not finite, infinitely bad.

        Raises:
            EvaluationError: where the metric gives several, and none has its own name.
        """
        with _not_finite_is_told_by_the_value():
            given = self._metric.value()
        values = dict(given) if isinstance(given, Mapping) else {self._own_name: float(given)}
        if self._own_name not in values:
            raise EvaluationError(
                f"a metric must give a value named {self._own_name!r}; got {', '.join(values) or 'none'}"
            )
        values = {self.name: values.pop(self._own_name)} | values
        worst = np.inf if self._metric.direction == "minimize" else -np.inf
        return {name: value if np.isfinite(value) else worst for name, value in values.items()}

    def of_images(self) -> NDArray[np.float64] | None:
        """(N,), a number for each image, where the metric's value is their mean."""
        return self._metric.of_images()


class Measurements:
    """Images, block by block, into several metrics; features that they share are made once.

    Args:
        parts: the metrics.
        at_end: names of those whose values are asked for after the last rung only.
        batch_size: of the blocks, for messages.
    """

    def __init__(self, parts: Sequence[MetricMeasurement], at_end: Container[str], batch_size: int) -> None:
        self._parts = parts
        self._at_end = at_end
        self._batch_size = batch_size

    def add(self, images: torch.Tensor) -> None:
        """uint8 (N, C, H, W). Raises UserError for features that a reference does not fit."""
        blocks: dict[int, Any] = {id(None): images}
        for part in self._parts:
            if part.extractor is not None and id(part.extractor) not in blocks:
                blocks[id(part.extractor)] = self._features(part.extractor, images)
            part.add(blocks[id(part.extractor)])

    def values(self, *, is_last: bool) -> Mapping[str, float]:
        """Of all images that were added. Raises EvaluationError for a metric without the value that is optimised."""
        wanted = (part for part in self._parts if is_last or part.name not in self._at_end)
        return {name: value for part in wanted for name, value in part.values().items()}

    def of_images(self) -> NDArray[np.float64] | None:
        """(N,), the first metric's number for each image, where its value is their mean."""
        return self._parts[0].of_images() if self._parts else None

    def _features(self, extractor: Extractor, images: torch.Tensor) -> NDArray[np.float32]:
        from autodiffusion_opt.sampling.generate import enough_memory

        with enough_memory(f"the features of {self._batch_size} images", "batch_size"):
            return extractor(images)


def _not_finite_is_told_by_the_value() -> np.errstate:
    """No warnings of NumPy's where features are not finite."""
    return np.errstate(invalid="ignore", over="ignore")
