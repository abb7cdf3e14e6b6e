"""What an objective is: candidate -> named values, each with its direction. Imports neither torch nor diffusers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.config import Config
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.sampling.config import ConditionsConfig
from autodiffusion_opt.space import cost
from autodiffusion_opt.space.model_info import ModelInfo

if TYPE_CHECKING:
    from autodiffusion_opt.sampling.generate import ImageSampler

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Score:
    """What was measured of a candidate.

    Attributes:
        values: the named values; those that the objective has a direction for, in its order, then any others.
        images: how many were generated.
        seconds: wall time of generation and measurement.
        nfe: calls of the denoiser for one image.
        layer_runs: layers run for one image, over all calls; None where the layers are not counted.
        flops: floating-point operations of the denoiser for one image; None where they are not counted.
        not_finite: how many of the images are not finite (NaN or infinite somewhere).
    """

    values: Mapping[str, float]
    images: int
    seconds: float
    nfe: int | None = None
    layer_runs: int | None = None
    flops: int | None = None
    not_finite: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for SQL."""
        return asdict(self)

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
        )


@runtime_checkable
class Objective(Protocol):
    """What is minimised or maximised."""

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


class ObjectiveConfig(Config):
    """The table ``[objective]``: what all kinds have.

    Attributes:
        kind: the name of a metric.
        images: how many images a trial generates.
        seed: of their noise: the same in every trial, so that candidates are compared on common random numbers.
        conditions: the table ``[conditions]``: prompts or class labels.
    """

    kind: str
    images: int = Field(ge=2)
    seed: int = Field(default=0, ge=0)
    conditions: ConditionsConfig = Field(default_factory=ConditionsConfig)

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
