"""The base of metrics on features: a class with ``add(features)`` and ``value()``, and the keys of its table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainValidator, field_serializer

from autodiffusion_opt.config import Registry
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.base import Direction, Objective, ObjectiveConfig
from autodiffusion_opt.objective.custom import Features
from autodiffusion_opt.objective.image_objective import ImageObjective
from autodiffusion_opt.paths import absolute
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.space.model_info import ModelInfo

if TYPE_CHECKING:
    import torch

    from autodiffusion_opt.objective.features import Extractor
    from autodiffusion_opt.objective.references import Reference
    from autodiffusion_opt.sampling.generate import ImageSampler


def _name_or_features(value: Any) -> str | Features:
    if not isinstance(value, str | Features):
        raise ValueError("should be a name, or in Python an ado.Features")
    return value


class MetricConfig(ObjectiveConfig):
    """The table ``[objective]`` of a metric that compares features with those of a reference.

    Attributes:
        features: the extractor: an embedded one (``digits``), ``pixels``, one of torch-fidelity's, a registered one;
            in Python also a :class:`~autodiffusion_opt.Features`.
        features_weights: a file of its weights, instead of the download.
        reference: an embedded model's images (``digits``), a folder of images, or an ``.npz`` file with ``mu`` and
            ``sigma``.
    """

    features: Annotated[Any, PlainValidator(_name_or_features)]
    features_weights: str | None = None
    reference: str

    @field_serializer("features")
    def _features_json(self, value: str | Features) -> Any:
        return value if isinstance(value, str) else {"python": "Features", "identity": value.identity}

    def objective(self, sampler: ImageSampler, info: ModelInfo, base: Path, progress: Progress = silent) -> Objective:
        """Images, features, metric; see :class:`~autodiffusion_opt.objective.base.ObjectiveConfig`."""
        import torch

        from autodiffusion_opt.objective.features import load_extractor
        from autodiffusion_opt.objective.references import load_reference

        metric = METRICS[self.kind]
        weights = None if self.features_weights is None else absolute(self.features_weights, base)
        if isinstance(self.features, str):
            extractor: Extractor = load_extractor(self.features, torch.device(sampler.pipeline.device), weights)
        else:
            extractor = self.features
        reference = load_reference(self.reference, extractor, base, progress)

        def start() -> FeatureMeasurement:
            return FeatureMeasurement(self.kind, extractor, metric(self, reference), sampler.batch_size)

        start()  # what does not fit is told now, not in the first trial
        directions = {self.kind: metric.direction}
        return ImageObjective(sampler, info, self.images, self.seed, directions, start, reference.identity)


class Metric(ABC):
    """Measures the features of one candidate's images against a reference. Each candidate gets a new one.

    Attributes:
        direction: whether less or more is better.
        Config: the keys of its table; a subclass of :class:`MetricConfig` where it has keys of its own.
        dimensions: D, which the features must have; None: any.
    """

    direction: ClassVar[Direction] = "minimize"
    Config: ClassVar[type[MetricConfig]] = MetricConfig

    def __init__(self, config: MetricConfig, reference: Reference) -> None:
        """Keep what ``value`` needs of the reference: ``reference.statistics`` or ``reference.features``.

        Raises:
            UserError: for a reference that does not suffice.
        """
        self.dimensions: int | None = None

    @abstractmethod
    def add(self, features: NDArray[np.float32]) -> None:
        """Features of some more images, float32 (N, D)."""

    @abstractmethod
    def value(self) -> float:
        """Of all features that were added."""


# The kinds; filled where they are imported, in ``autodiffusion_opt.objective.metrics``.
METRICS: Registry[type[Metric]] = Registry("metric", "metrics", {}, Metric)


class FeatureMeasurement:
    """Features of images, block by block, into a metric."""

    def __init__(self, name: str, extractor: Extractor, metric: Metric, batch_size: int) -> None:
        self._name = name
        self._extractor = extractor
        self._metric = metric
        self._batch_size = batch_size

    def add(self, images: torch.Tensor) -> None:
        """Raises UserError for features that the metric's reference does not fit."""
        from autodiffusion_opt.sampling.generate import enough_memory

        with enough_memory(f"the features of {self._batch_size} images", "batch_size"):
            features = self._extractor(images)
        wanted = self._metric.dimensions
        if wanted is not None and features.shape[1] != wanted:
            raise UserError(
                f"the reference must have features of {features.shape[1]} dimensions, as the extractor gives; it has "
                f"{wanted}: it was made with another extractor"
            )
        with _not_finite_is_told_by_the_value():
            self._metric.add(features)

    def values(self) -> Mapping[str, float]:
        """The metric's value; where it is not finite, infinitely bad."""
        with _not_finite_is_told_by_the_value():
            value = float(self._metric.value())
        worst = np.inf if self._metric.direction == "minimize" else -np.inf
        return {self._name: value if np.isfinite(value) else worst}


def _not_finite_is_told_by_the_value() -> np.errstate:
    """No warnings of NumPy's where features are not finite."""
    return np.errstate(invalid="ignore", over="ignore")
