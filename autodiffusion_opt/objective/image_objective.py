"""The objective that generates images, block by block, and hands them to a measurement."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import EvaluationError
from autodiffusion_opt.objective.base import Direction, Score, rungs_of
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.space.model_info import ModelInfo

if TYPE_CHECKING:
    import torch

    from autodiffusion_opt.sampling.generate import ImageSampler


class Measurement(Protocol):
    """Takes the images of one candidate, block by block, and says what they are worth."""

    def add(self, images: torch.Tensor) -> None:
        """uint8 (N, C, H, W)."""
        ...

    def values(self) -> Mapping[str, float]:
        """Of all images that were added."""
        ...


@dataclass(frozen=True)
class ImageObjective:
    """Generates ``images`` images of a candidate, always from the same noise, and measures them.

    Attributes:
        sampler: makes the images.
        info: the model's numbers, for costs.
        images: how many, or ascending rungs, unless ``measure`` is told.
        seed: of the noise, unless ``measure`` is told.
        directions: of the values.
        start: makes the measurement of one candidate, for a seed and a number of images; it may first generate the
            images that a candidate's are compared with, of which the progress is told.
        identity: changes when the measurement does, for a reason that the table does not tell.
    """

    sampler: ImageSampler
    info: ModelInfo
    images: int | tuple[int, ...]
    seed: int
    directions: Mapping[str, Direction]
    start: Callable[[int, int, Progress], Measurement]
    identity: str

    @property
    def rungs(self) -> tuple[int, ...]:
        """The numbers of images after which there are values."""
        return rungs_of(self.images)

    def measure(
        self, candidate: Candidate, *, seed: int | None = None, images: int | None = None, progress: Progress = silent
    ) -> Iterator[Score]:
        """A score after each rung; see :class:`~autodiffusion_opt.objective.base.Objective`.

        A rung costs its new images: those of the rungs before it are part of it. ``images`` is a single rung.

        Raises:
            EvaluationError: where none of the images is finite: no metric means anything then.
        """
        rungs = self.rungs if images is None else (images,)
        seed = self.seed if seed is None else seed
        measurement, done, seconds = self.start(seed, rungs[-1], progress), 0, 0.0
        broken: list[int] = []
        for count in rungs:
            begun = time.perf_counter()
            for block in self.sampler.images(candidate, range(done, count), seed, broken):
                measurement.add(block)
                done += len(block)
                progress("images", done, rungs[-1])
            if len(broken) == count:
                raise EvaluationError(
                    f"none of the {count} images is finite: the model or its sampler overflows with {candidate}; "
                    "with dtype float16, try bfloat16 or float32"
                )
            values = measurement.values()
            seconds += time.perf_counter() - begun
            yield Score.of(values, candidate, self.info, images=count, seconds=seconds, not_finite=len(broken))
        if broken:
            warnings.warn(f"{len(broken)} of {rungs[-1]} images are not finite with {candidate}", stacklevel=2)
