"""The objective that generates images, block by block, and hands them to a measurement."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import EvaluationError
from autodiffusion_opt.objective.base import PREVIEW_IMAGES, Score, rungs_of
from autodiffusion_opt.objective.goals import FLOPS, SECONDS, Bound, Direction
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.space import cost
from autodiffusion_opt.space.model_info import ModelInfo

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from autodiffusion_opt.sampling.generate import ImageSampler


class Measurement(Protocol):
    """Takes the images of one candidate, block by block, and says what they are worth."""

    def add(self, images: torch.Tensor) -> None:
        """uint8 (N, C, H, W)."""
        ...

    def values(self, *, is_last: bool) -> Mapping[str, float]:
        """Of all images that were added; what is only reported, after the last rung alone."""
        ...

    def of_images(self) -> NDArray[np.float64] | None:
        """(N,), a number for each image, of which the first value is the mean; None where it is no mean."""
        ...


class Clock:
    """Wall seconds by part. What a GPU still has to do counts where it is waited for.

    Attributes:
        seconds: of each part.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = 0.0

    def start(self) -> None:
        """What comes before is of no part."""
        self._begun = time.perf_counter()

    def stop(self, part: str) -> None:
        """The time since the last start or stop was of this part; the next begins now."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._begun
        self._begun = now


@dataclass(frozen=True)
class ImageObjective:
    """Generates ``images`` images of a candidate, always from the same noise, and measures them.

    Attributes:
        sampler: makes the images.
        info: the model's numbers, for costs.
        images: how many, or ascending rungs, unless ``measure`` is told.
        seed: of the noise, unless ``measure`` is told.
        directions: of the values that are optimised.
        bounds: what values must keep to.
        costs: the names of costs among the values.
        start: makes the measurement of one candidate, for a seed and a number of images; it may first generate the
            images that a candidate's are compared with, of which the progress is told.
        identity: changes when the measurement does, for a reason that the table does not tell.
        start_verify: the same as ``start`` with what only ``verify`` measures; None: it measures nothing more.
    """

    sampler: ImageSampler
    info: ModelInfo
    images: int | tuple[int, ...]
    seed: int
    directions: Mapping[str, Direction]
    start: Callable[[int, int, Progress], Measurement]
    identity: str
    bounds: tuple[Bound, ...] = ()
    costs: tuple[str, ...] = ()
    start_verify: Callable[[int, int, Progress], Measurement] | None = None

    def for_verify(self) -> ImageObjective:
        """The same with all that ``verify`` measures."""
        return replace(self, start=self.start_verify or self.start)

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
        import torch

        rungs = self.rungs if images is None else (images,)
        seed = self.seed if seed is None else seed
        costs = {name: self.cost(name, candidate) for name in self.costs}
        counted = costs.get(FLOPS)
        if counted is None and candidate.engine is not None and self.info.flops:
            counted = self.cost(FLOPS, candidate)
        measurement, done, clock = self.start(seed, rungs[-1], progress), 0, Clock()
        broken: list[int] = []
        preview: list[torch.Tensor] = []
        shown = max(PREVIEW_IMAGES // self.sampler.frames, 1) * self.sampler.frames  # whole clips
        for count in rungs:
            clock.start()
            for block in self.sampler.images(candidate, range(done, count), seed, broken):
                clock.stop("sampling")
                measurement.add(block)
                clock.stop("features")
                if done < shown:
                    preview.append(block[: shown - done].cpu())
                done += len(block)
                progress("images", done, rungs[-1])
            clock.stop("sampling")
            if len(broken) == count:
                raise EvaluationError(
                    f"none of the {count} images is finite: the model or its sampler overflows with {candidate}; "
                    "with dtype float16, try bfloat16 or float32"
                )
            values = {**measurement.values(is_last=count == rungs[-1]), **costs}
            values = {name: values[name] for name in self.directions} | values
            clock.stop("metric")
            score = Score.of(
                values,
                candidate,
                self.info,
                images=count,
                seconds=sum(clock.seconds.values()),
                not_finite=len(broken),
                seconds_of=clock.seconds,
            )
            numbers = measurement.of_images()
            of_images = () if numbers is None else tuple(numbers.tolist())
            if candidate.engine is not None:
                score = replace(score, flops=None if counted is None else round(counted), layer_runs=None)
            yield replace(score, of_images=of_images, preview=torch.cat(preview))
        if broken:
            warnings.warn(f"{len(broken)} of {rungs[-1]} images are not finite with {candidate}", stacklevel=2)

    def cost(self, name: str, candidate: Candidate) -> float:
        """A cost of a candidate, for one image; the wall time is measured, on the machine that this runs on, and so
        are the FLOPs with an engine's cache."""
        if name == SECONDS:
            from autodiffusion_opt.sampling.timing import seconds_an_image

            return seconds_an_image(self.sampler, candidate)
        if name == FLOPS and candidate.engine is not None:
            from autodiffusion_opt.sampling.counted import networks_run

            return networks_run(self.sampler, candidate, self.seed) * self.info.flops
        return float(cost.COSTS[name](self.info, candidate))
