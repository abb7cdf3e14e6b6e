"""The base of metrics: a class with ``add(block)`` and ``value()``, and the keys of its table.

The class of the table answers two questions: what is measured (images, or features of them), and what it is compared
with (real images, the teacher's, nothing).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, PlainValidator, field_serializer, model_validator

from autodiffusion_opt.config import Registry, build
from autodiffusion_opt.errors import UserError, unknown_text
from autodiffusion_opt.objective.base import Objective, ObjectiveConfig
from autodiffusion_opt.objective.custom import Features
from autodiffusion_opt.objective.goals import COSTS, SECONDS, Direction, Goals, goals_of
from autodiffusion_opt.objective.image_objective import ImageObjective, Measurement
from autodiffusion_opt.objective.metrics.measurement import Measurements, MetricMeasurement
from autodiffusion_opt.objective.pruners import needs_each_image
from autodiffusion_opt.paths import absolute
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.space.model_info import ModelInfo

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from autodiffusion_opt.objective.features import Extractor
    from autodiffusion_opt.sampling.generate import ImageSampler


# Keys of a table that say what becomes of values.
GOAL_KEYS = ("minimise", "maximise", "at_most", "at_least", "report", "report_in", "metrics")
# Keys that further metrics do not take over from the table that names them.
ALONE = {"kind", "images", "pruner", *GOAL_KEYS}


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

    @model_validator(mode="after")
    def _goals_fit(self) -> ImagesConfig:
        if any(getattr(self, key) is not None for key in GOAL_KEYS) and (mistakes := _mistakes(self)):
            raise ValueError("; ".join(mistakes))
        if self.pruner is not None and needs_each_image(self.pruner) and not METRICS[self.kind].is_mean:
            means = ", ".join(sorted(name for name in METRICS if METRICS[name].is_mean))
            raise ValueError(
                f"pruner wilcoxon compares a number for each image, which {self.kind} has not: {means} have"
            )
        return self

    @property
    def features_key(self) -> tuple[Any, ...]:
        """What :meth:`extractor` depends on: tables that share it share their features."""
        return ()

    def extractor(self, device: torch.device, base: Path) -> Extractor | None:
        """The features that the metric gets in place of images; None: it gets the images."""
        return None

    def comparison(
        self, sampler: ImageSampler, extractor: Extractor | None, base: Path, progress: Progress
    ) -> Comparison:
        """What they are compared with: nothing."""
        return Comparison("", lambda seed, images, progress: None)

    def directions(self) -> Mapping[str, Direction]:
        """The name of the kind's own value, and whether less or more is better."""
        return {self.kind: METRICS[self.kind].direction}

    @property
    def goals(self) -> Goals:
        """What becomes of all values that the table names."""
        [(name, direction)] = self.directions().items()
        lists = (self.minimise or (), self.maximise or (), self.at_most or {}, self.at_least or {})
        return replace(goals_of(name, direction, *lists), reported=self.report or ())

    @property
    def further(self) -> list[str]:
        """The names of the values that other metrics than this one give."""
        return [name for name in self.goals.names if name not in (*COSTS, *self.directions())]

    def table(self, name: str) -> ImagesConfig:
        """The table of a further metric: its own keys, and those of this table that it has too. Raises UserError."""
        own = (self.metrics or {}).get(name, {})
        kind = METRICS.get_kind(own.get("kind", name), f"metrics.{name}: ").Config
        here = self.model_fields_set & set(kind.model_fields) - ALONE
        shared = {key: getattr(self, key) for key in here} | {"images": self.images}
        named = {"name": name} if "name" in kind.model_fields else {}
        return build(kind, {"kind": name, **shared, **named, **own}, f"metrics.{name}")

    def objective(self, sampler: ImageSampler, info: ModelInfo, base: Path, progress: Progress = silent) -> Objective:
        """Images, features, metrics; see :class:`~autodiffusion_opt.objective.base.ObjectiveConfig`."""
        goals = self.goals
        own_name = next(iter(self.directions()))
        tables = {name: self if name == own_name else self.table(name) for name in goals.names if name not in COSTS}
        metrics = _bound(tables, sampler, base, progress)
        optimised = {*goals.directions, *(bound.name for bound in goals.bounds)}
        at_end = [metric for metric in metrics if metric.name not in optimised]
        in_trials = [metric for metric in metrics if self.report_in is None or metric not in at_end]

        def starter(bound: Sequence[BoundMetric]) -> Callable[[int, int, Progress], Measurement]:
            def start(seed: int, images: int, progress: Progress) -> Measurement:
                parts = [metric.start(seed, images, progress) for metric in bound]
                measurements = Measurements(parts, {metric.name for metric in at_end}, sampler.batch_size)
                return _behind_the_sampler(measurements, sampler)

            return start

        for metric in metrics:  # what does not fit is told now, not in the first trial
            metric.start(self.seed, self.rungs[-1], progress)
        costs = tuple(name for name in goals.names if name in COSTS)
        return ImageObjective(
            sampler,
            info,
            self.images,
            self.seed,
            goals.directions,
            starter(in_trials),
            _identity(metrics, sampler, timed=SECONDS in costs),
            goals.bounds,
            costs,
            starter(metrics),
        )


class FeaturesConfig(ImagesConfig):
    """The table ``[objective]`` of a metric on features.

    Attributes:
        features: the extractor: an embedded one (``digits``), ``pixels``, one of torch-fidelity's, a registered one, or
            the file of a network (``.pt2``, ``.pt``, ``.ts``); in Python also :class:`~autodiffusion_opt.Features`.
        features_weights: a file of its weights, instead of the download.
    """

    features: Annotated[Any, PlainValidator(_name_or_features)]
    features_weights: str | None = None

    @property
    def features_key(self) -> tuple[Any, ...]:
        """The features' names."""
        return (self.features, self.features_weights)

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
        return load_extractor(self.features, device, weights, base)


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
        is_mean: whether the value is the mean of a number for each image, which :meth:`of_images` gives.
    """

    direction: ClassVar[Direction] = "minimize"
    Config: ClassVar[type[ImagesConfig]] = MetricConfig
    least_images: int = 1
    is_mean: ClassVar[bool] = False

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

    def of_images(self) -> NDArray[np.float64] | None:
        """(N,), a number for each image that was added, where the value is their mean."""
        return None


# The kinds; filled where they are imported, in ``autodiffusion_opt.objective.metrics``.
METRICS: Registry[type[Metric]] = Registry("metric", "metrics", {}, Metric)


@dataclass(frozen=True)
class BoundMetric:
    """A metric of an objective with everything loaded.

    Attributes:
        name: of its value.
        config: its table.
        extractor: of its features; None: it gets images.
        comparison: what images are compared with.
    """

    name: str
    config: ImagesConfig
    extractor: Extractor | None
    comparison: Comparison

    def start(self, seed: int, images: int, progress: Progress) -> MetricMeasurement:
        """The measurement of one candidate. Raises UserError for a reference that does not suffice."""
        metric = METRICS[self.config.kind](self.config, self.comparison.reference(seed, images, progress))
        return MetricMeasurement(self.name, next(iter(self.config.directions())), self.extractor, metric)


def _bound(
    tables: Mapping[str, ImagesConfig], sampler: ImageSampler, base: Path, progress: Progress
) -> list[BoundMetric]:
    """The metrics of several tables; an extractor that several name is loaded once."""
    import torch

    extractors: dict[Any, Extractor | None] = {}
    bound = []
    for name, table in tables.items():
        if table.features_key not in extractors:
            extractors[table.features_key] = table.extractor(torch.device(sampler.pipeline.device), base)
        extractor = extractors[table.features_key]
        bound.append(BoundMetric(name, table, extractor, table.comparison(sampler, extractor, base, progress)))
    return bound


def _behind_the_sampler(measurements: Measurements, sampler: ImageSampler) -> Measurement:
    """On a GPU, measured while the next images are sampled."""
    import torch

    from autodiffusion_opt.objective.streamed import Streamed

    device = torch.device(sampler.pipeline.device)
    return Streamed(measurements, device) if device.type == "cuda" else measurements


def _identity(metrics: Sequence[BoundMetric], sampler: ImageSampler, *, timed: bool) -> str:
    """Of what the metrics compare with; and of the machine, where its times count."""
    parts = [metric.comparison.identity for metric in metrics]
    if timed:
        import torch

        from autodiffusion_opt.sampling.timing import machine_name

        parts.append(machine_name(torch.device(sampler.pipeline.device)))
    return "; ".join(parts)


def _mistakes(table: ImagesConfig) -> list[str]:
    """What is wrong with the values that a table names."""
    own, metrics = table.directions(), table.metrics or {}
    lists = {"minimise": table.minimise or (), "maximise": table.maximise or (), "report": table.report or ()}
    named = [*itertools.chain(*lists.values()), *(table.at_most or ()), *(table.at_least or ())]
    known = [*own, *COSTS, *metrics, *METRICS]
    wrong = [unknown_text("the name of a value", name, known) for name in dict.fromkeys(named) if name not in known]
    counts = Counter(itertools.chain(*lists.values()))
    wrong += [f"{name} must stand once in {', '.join(lists)}" for name, count in counts.items() if count > 1]
    if not {*own} & {*named} and (table.minimise or table.maximise):
        name = next(iter(own))
        wrong.append(f"{name}, the table's kind, must stand in one of {', '.join(lists)}, at_most, at_least")
    wrong += [f"metrics.{name} must stand in one of the lists too" for name in metrics if name not in named]
    if table.report_in is not None and not table.report:
        wrong.append("report_in needs report, the names of values")
    if table.pruner is not None and len(table.goals.directions) > 1:
        wrong.append(f"pruner: Optuna's pruners compare one value; got {', '.join(table.goals.directions)}")
    return wrong or _wrong_tables(table)


def _wrong_tables(table: ImagesConfig) -> list[str]:
    """What is wrong with the tables of further metrics, and with their directions."""
    directions: dict[str, Direction] = {**table.directions(), **dict.fromkeys(COSTS, "minimize")}
    wrong = []
    for name in table.further:
        try:
            directions[name] = next(iter(table.table(name).directions().values()))
        except UserError as error:
            wrong.append(str(error))
    for name, direction in table.goals.directions.items():
        right = directions.get(name, direction)
        if right != direction and (table.minimise or table.maximise):
            better, key = ("less", "minimise") if right == "minimize" else ("more", "maximise")
            wrong.append(f"of {name}, {better} is better: it must stand in {key}")
    return wrong
