"""What an objective is: candidate -> named values, each with its direction. Imports neither torch nor diffusers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from pydantic import Field, field_validator, model_validator

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.config import Config
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.goals import Direction
from autodiffusion_opt.objective.pruners import check_pruner
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.sampling.config import ConditionsConfig
from autodiffusion_opt.space import cost
from autodiffusion_opt.space.model_info import ModelInfo

if TYPE_CHECKING:
    import torch

    from autodiffusion_opt.sampling.generate import ImageSampler


@dataclass(frozen=True)
class Score:
    """What was measured of a candidate.

    Attributes:
        values: the named values; those that the objective has a direction for, in its order, then any others.
        images: how many were generated and measured, of all rungs so far.
        seconds: wall time of generation and measurement.
        nfe: calls of the denoiser for one image.
        layer_runs: layers run for one image, over all calls; None where the layers are not counted.
        flops: floating-point operations of the denoiser for one image; None where they are not counted.
        not_finite: how many of the images are not finite (NaN or infinite somewhere).
        seconds_of: the seconds by part, ``sampling``, ``features`` and ``metric``, where they are known.
        of_images: a number for each image, of which the first value is the mean, where it is one. Not in SQL.
        preview: the first images, uint8 (N, C, H, W); None where there are none. Not in SQL.
    """

    values: Mapping[str, float]
    images: int
    seconds: float
    nfe: int | None = None
    layer_runs: int | None = None
    flops: int | None = None
    not_finite: int = 0
    seconds_of: Mapping[str, float] = field(default_factory=dict)
    of_images: tuple[float, ...] = field(default=(), repr=False)
    preview: torch.Tensor | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for SQL."""
        written = asdict(replace(self, of_images=(), preview=None))
        return {name: value for name, value in written.items() if name not in ("of_images", "preview")}

    @classmethod
    def of(
        cls,
        values: Mapping[str, float],
        candidate: Candidate,
        info: ModelInfo,
        *,
        images: int,
        seconds: float,
        not_finite: int = 0,
        seconds_of: Mapping[str, float] | None = None,
    ) -> Score:
        """A score with the costs of its candidate filled in."""
        return cls(
            values=dict(values),
            images=images,
            seconds=seconds,
            nfe=cost.nfe(info, candidate),
            layer_runs=cost.layer_runs(info, candidate) if info.layers else None,
            flops=cost.flops(info, candidate) if info.flops else None,
            not_finite=not_finite,
            seconds_of=dict(seconds_of or {}),
        )


@runtime_checkable
class Objective(Protocol):
    """What is minimised or maximised.

    An objective may have two attributes more: ``rungs``, the numbers of images after which ``measure`` yields, and
    ``bounds``, what values must keep to (:class:`~autodiffusion_opt.objective.goals.Bound`).
    """

    @property
    def directions(self) -> Mapping[str, Direction]:
        """The names of the values that are optimised, and whether less or more is better."""
        ...

    @property
    def identity(self) -> str:
        """Changes when the same candidate would get other values, for a reason that the table does not tell."""
        ...

    def measure(
        self, candidate: Candidate, *, seed: int | None = None, images: int | None = None, progress: Progress = silent
    ) -> Iterator[Score]:
        """Measure a candidate.

        Args:
            candidate: what to sample with.
            seed: of the noise; None: the objective's own, the same for every candidate.
            images: how many; None: the objective's own number.
            progress: is told of the images.

        Yields:
            A score after each rung of images; the last is the result.

        Raises:
            UserError: for a candidate that does not fit the model.
            EvaluationError: where the user's own function failed, or no image is finite.
        """
        ...


# So many of a candidate's first images are kept to be looked at; of clips the whole ones among them, or the first.
PREVIEW_IMAGES = 16
# The least number of images of a trial: a covariance needs two.
LEAST_IMAGES = 2


def rungs_of(images: int | tuple[int, ...]) -> tuple[int, ...]:
    """The numbers of images after which there are values."""
    return (images,) if isinstance(images, int) else images


def ascending(images: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """The same. Raises ValueError for rungs that do not ascend."""
    rungs = rungs_of(images)
    if any(after <= before for before, after in pairwise(rungs)):
        raise ValueError("must ascend from rung to rung")
    return images


class ObjectiveConfig(Config):
    """The table ``[objective]``: what all kinds have.

    Attributes:
        kind: the name of a metric.
        images: how many images a trial generates; or a list such as ``[100, 500, 2000]``: in rungs, after each of which
            a candidate may be stopped.
        pruner: which candidates are stopped after a rung: ``median``, ``percentile``, ``successive-halving``,
            ``hyperband``, ``threshold``; or ``wilcoxon``, where the value is a mean of one number an image; or a table
            with ``kind`` and the options of Optuna's pruner; absent: none is.
        minimise: the names of several values: this table's ``kind``, other metrics, ``nfe``, ``layers``, ``flops``,
            ``seconds`` (of sampling an image here); absent, and ``maximise`` too: the kind's own value.
        maximise: the same for those that are the better the greater.
        at_most: name -> what a candidate's value must not exceed. Up to 1 of a cost (``flops = 0.5``): a share of what
            the pipeline's own schedule costs, all layers run.
        at_least: name -> below which a candidate's value must not be.
        report: names of values that are measured at the end of a trial and shown, no more.
        report_in: ``verify``: they are measured there only; absent: at the end of each trial.
        metrics: name -> keys of another metric, where they are not those of this table; ``kind`` where the name is
            none: ``fd-dinov2 = {kind = "fid", features = "dinov2-vit-l-14"}``.
        seed: of their noise: the same in every trial, so that candidates are compared on common random numbers.
        conditions: the table ``[conditions]``: prompts or class labels.
        frames: how many frames of each clip are measured, evenly spread, where the pipeline makes clips; each counts as
            an image.
    """

    kind: str
    images: int | tuple[int, ...]
    pruner: str | dict[str, Any] | None = None
    minimise: tuple[str, ...] | None = None
    maximise: tuple[str, ...] | None = None
    at_most: dict[str, float] | None = None
    at_least: dict[str, float] | None = None
    report: tuple[str, ...] | None = None
    report_in: Literal["verify"] | None = None
    metrics: dict[str, dict[str, Any]] | None = None
    seed: int = Field(default=0, ge=0)
    conditions: ConditionsConfig = Field(default_factory=ConditionsConfig)
    frames: int = Field(default=1, ge=1)

    @field_validator("images", mode="before")
    @classmethod
    def _numbers_ascend(cls, value: Any) -> Any:
        rungs = list(value) if isinstance(value, list | tuple) else [value]
        if not rungs or any(isinstance(count, bool) or not isinstance(count, int) for count in rungs):
            raise ValueError("should be a whole number, or a list of them")
        if min(rungs) < LEAST_IMAGES:
            raise ValueError(f"should be greater than or equal to {LEAST_IMAGES}")
        return ascending(tuple(rungs)) if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _pruner_fits(self) -> ObjectiveConfig:
        if self.pruner is not None:
            try:
                check_pruner(self.pruner)
            except UserError as error:
                raise ValueError(str(error)) from None
            if len(self.rungs) == 1:
                raise ValueError(f"pruner needs rungs: give images a list, such as [100, {self.rungs[0]}]")
        return self

    @property
    def rungs(self) -> tuple[int, ...]:
        """The numbers of images after which there are values, ascending."""
        return rungs_of(self.images)

    @abstractmethod
    def objective(self, sampler: ImageSampler, info: ModelInfo, base: Path, progress: Progress = silent) -> Objective:
        """The objective of a loaded pipeline.

        Args:
            sampler: makes the images.
            info: the model's numbers, for costs.
            base: the folder that relative paths start from.
            progress: is told of the reference's images.

        Raises:
            UserError: for unknown features, or a reference that is not there or does not fit.
        """
