"""The base of metrics: a class with ``add(block)`` and ``value()``, and the keys of its table.

The class of the table answers two questions: what is measured (images, or features of them), and what it is compared
with (real images, the teacher's, nothing).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainValidator, field_serializer

from autodiffusion_opt.config import Registry
from autodiffusion_opt.errors import EvaluationError, UserError
from autodiffusion_opt.objective.base import Direction, Objective, ObjectiveConfig
from autodiffusion_opt.objective.custom import Features
from autodiffusion_opt.objective.image_objective import ImageObjective
from autodiffusion_opt.paths import absolute
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.space.model_info import ModelInfo

if TYPE_CHECKING:
    import torch

    from autodiffusion_opt.objective.features import Extractor
    from autodiffusion_opt.sampling.generate import ImageSampler


def _name_or_features(value: Any) -> str | Features:
    if not isinstance(value, str | Features):
        raise ValueError("should be a name, or in Python an ado.Features")
    return value


@dataclass(frozen=True)
class Comparison:
    """What the images of every candidate are compared with.

    Attributes:
        identity: changes when it does, for a reason that the table does not tell.
        reference: what a metric gets, for the noise's seed and a number of images; the progress is told of images that
            are generated first.
    """

    identity: str
    reference: Callable[[int, int, Progress], Any]


class ImagesConfig(ObjectiveConfig):
    """The table ``[objective]`` of a metric on images, and the base of the others: two questions, a method each.

    What is measured: the images themselves, unless :meth:`extractor` gives one. What they are compared with:
    :meth:`comparison` says.
    """

    def extractor(self, device: torch.device, base: Path) -> Extractor | None:
        """The features that the metric gets in place of images; None: it gets the images."""
        return None

    def comparison(
        self, sampler: ImageSampler, extractor: Extractor | None, base: Path, progress: Progress
    ) -> Comparison:
        """What they are compared with: nothing."""
        return Comparison("", lambda seed, images, progress: None)

    def directions(self) -> Mapping[str, Direction]:
        """The names of the values that are optimised: the kind's."""
        return {self.kind: METRICS[self.kind].direction}

    def objective(self, sampler: ImageSampler, info: ModelInfo, base: Path, progress: Progress = silent) -> Objective:
        """Images, features, metric; see :class:`~autodiffusion_opt.objective.base.ObjectiveConfig`."""
        import torch

        metric = METRICS[self.kind]
        extractor = self.extractor(torch.device(sampler.pipeline.device), base)
        comparison = self.comparison(sampler, extractor, base, progress)
        directions = self.directions()
        name = next(iter(directions))

        def start(seed: int, images: int, progress: Progress) -> MetricMeasurement:
            measuring = metric(self, comparison.reference(seed, images, progress))
            return MetricMeasurement(name, extractor, measuring, sampler.batch_size)

        start(self.seed, self.rungs[-1], progress)  # what does not fit is told now, not in the first trial
        return ImageObjective(sampler, info, self.images, self.seed, directions, start, comparison.identity)


class FeaturesConfig(ImagesConfig):
    """The table ``[objective]`` of a metric on features.

    Attributes:
        features: the extractor: an embedded one (``digits``), ``pixels``, one of torch-fidelity's, a registered one;
            in Python also a :class:`~autodiffusion_opt.Features`.
        features_weights: a file of its weights, instead of the download.
    """

    features: Annotated[Any, PlainValidator(_name_or_features)]
    features_weights: str | None = None

    @field_serializer("features")
    def _features_json(self, value: str | Features) -> Any:
        return value if isinstance(value, str) else {"python": "Features", "identity": value.identity}

    def extractor(self, device: torch.device, base: Path) -> Extractor | None:
        """The one that the table names."""
        from autodiffusion_opt.objective.features import load_extractor

        if not isinstance(self.features, str):
            given: Extractor = self.features
            return given
        weights = None if self.features_weights is None else absolute(self.features_weights, base)
        return load_extractor(self.features, device, weights)


class MetricConfig(FeaturesConfig):
    """The table ``[objective]`` of a metric that compares features with those of a reference.

    Attributes:
        reference: an embedded model's images (``digits``), a folder of images, or an ``.npz`` file with ``mu`` and
            ``sigma``.
    """

    reference: str

    def comparison(
        self, sampler: ImageSampler, extractor: Extractor | None, base: Path, progress: Progress
    ) -> Comparison:
        """Real images, the same for every seed: the metric gets a ``Reference``."""
        from autodiffusion_opt.objective.references import load_reference

        assert extractor is not None
        reference = load_reference(self.reference, extractor, base, progress, sampler.pipeline.device)
        return Comparison(reference.identity, lambda seed, images, progress: reference)


class TeacherConfig(ImagesConfig):
    """The table ``[objective]`` of a metric that compares with the teacher: the pipeline itself with many steps.

    It needs no data. Image i of the teacher has the noise and the condition of a candidate's image i.

    Attributes:
        teacher_steps: how many steps the teacher makes, at the pipeline's own times.
    """

    teacher_steps: int = Field(default=50, ge=1)

    def comparison(
        self, sampler: ImageSampler, extractor: Extractor | None, base: Path, progress: Progress
    ) -> Comparison:
        """The teacher's images of the same seed: the metric gets a ``TeacherReference``."""
        from autodiffusion_opt.objective.teacher_reference import TeacherReferences

        references = TeacherReferences(sampler, self.teacher_steps, extractor)
        return Comparison(references.identity, references.of)


class TeacherFeaturesConfig(TeacherConfig, FeaturesConfig):
    """The table ``[objective]`` of a metric that compares features with those of the teacher's images."""


class Metric(ABC):
    """Measures the images of one candidate, as features or as they are. Each candidate gets a new one.

    Attributes:
        direction: whether less or more is better.
        Config: the keys of its table, which say what is measured and what it is compared with: a subclass of
            :class:`MetricConfig` for features and a reference.
        dimensions: D, which the features must have; None: any, or the metric gets images.
        least_images: with fewer images a value says nothing.
    """

    direction: ClassVar[Direction] = "minimize"
    Config: ClassVar[type[ImagesConfig]] = MetricConfig
    least_images: int = 1

    def __init__(self, config: ImagesConfig, reference: Any) -> None:
        """Keep what ``value`` needs of the reference: ``reference.statistics`` or ``reference.features``.

        Args:
            config: the table.
            reference: what the table's kind compares with.

        Raises:
            UserError: for a reference that does not suffice.
        """
        self.dimensions: int | None = None

    @abstractmethod
    def add(self, block: Any, /) -> None:
        """Some more images, in the order of their indices: features, float32 (N, D); or images, uint8 (N, C, H, W)."""

    @abstractmethod
    def value(self) -> float | Mapping[str, float]:
        """Of all that was added: a number; or several by name, of which the one that is optimised must be one."""


# The kinds; filled where they are imported, in ``autodiffusion_opt.objective.metrics``.
METRICS: Registry[type[Metric]] = Registry("metric", "metrics", {}, Metric)


class MetricMeasurement:
    """Images, or features of them, block by block, into a metric."""

    def __init__(self, name: str, extractor: Extractor | None, metric: Metric, batch_size: int) -> None:
        self._name = name
        self._extractor = extractor
        self._metric = metric
        self._batch_size = batch_size

    def add(self, images: torch.Tensor) -> None:
        """Raises UserError for features that the metric's reference does not fit."""
        block: Any = images if self._extractor is None else self._features(self._extractor, images)
        with _not_finite_is_told_by_the_value():
            self._metric.add(block)

    def values(self) -> Mapping[str, float]:
        """The metric's values, the optimised one first; where one is not finite, infinitely bad.

        Raises:
            EvaluationError: where the metric gives several, and none has the name of the one that is optimised.
        """
        with _not_finite_is_told_by_the_value():
            given = self._metric.value()
        values = dict(given) if isinstance(given, Mapping) else {self._name: float(given)}
        if self._name not in values:
            raise EvaluationError(f"a metric must give a value named {self._name!r}; got {', '.join(values) or 'none'}")
        values = {self._name: values[self._name]} | values
        worst = np.inf if self._metric.direction == "minimize" else -np.inf
        return {name: value if np.isfinite(value) else worst for name, value in values.items()}

    def _features(self, extractor: Extractor, images: torch.Tensor) -> NDArray[np.float32]:
        from autodiffusion_opt.sampling.generate import enough_memory

        with enough_memory(f"the features of {self._batch_size} images", "batch_size"):
            features = extractor(images)
        wanted = self._metric.dimensions
        if wanted is not None and features.shape[1] != wanted:
            raise UserError(
                f"the reference must have features of {features.shape[1]} dimensions, as the extractor gives; it has "
                f"{wanted}: it was made with another extractor"
            )
        return features


def _not_finite_is_told_by_the_value() -> np.errstate:
    """No warnings of NumPy's where features are not finite."""
    return np.errstate(invalid="ignore", over="ignore")
