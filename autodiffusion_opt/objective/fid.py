"""FID of a candidate: generate, extract, stream, compare."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.conditions import bind_conditions
from autodiffusion_opt.objective.definitions import ObjectiveConfig
from autodiffusion_opt.objective.features import load_extractor
from autodiffusion_opt.objective.references import load_reference
from autodiffusion_opt.objective.statistics import Moments, frechet_distance
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.sampling.apply import Conditions, enough_memory, generate
from autodiffusion_opt.sampling.schedule import calls, nfe

# Told how many images are done, between batches; may raise to stop.
Images = Callable[[int], None]


@dataclass(frozen=True)
class Score:
    """What one trial measured.

    Attributes:
        value: the metric; infinite where it is not finite.
        images: how many were generated.
        seconds: wall time of generation and features.
        nfe: calls of the denoiser for one image.
        layer_runs: layers run for one image, over all calls; None where nobody counted the layers.
    """

    value: float
    images: int
    seconds: float
    nfe: int
    layer_runs: int | None

    def parts(self) -> dict[str, Any]:
        """All but the value, for SQL."""
        found = asdict(self)
        del found["value"]
        return found


class FidObjective:
    """candidate -> Fréchet distance to the reference.

    Args:
        definition: images, seed, features, reference.
        pipeline: what generates.
        batch_size: images measured at once.
        micro_batch: images sampled at once.
        call: further arguments of the pipeline's call.
        conditions: what each image is of; None: what the definition says.
        layers: L of the denoiser, for the count of layer runs; 0: not counted.
        base: the folder that relative paths start from.
        progress: is told of the reference's images.

    Raises:
        UserError: for unknown features, or a reference that is not there or does not fit the features.
    """

    def __init__(
        self,
        definition: ObjectiveConfig,
        pipeline: Any,
        *,
        batch_size: int,
        micro_batch: int,
        call: Mapping[str, Any] | None = None,
        conditions: Conditions | None = None,
        layers: int = 0,
        base: Path | None = None,
        progress: Progress = silent,
    ) -> None:
        weights = None if definition.features_weights is None else Path(definition.features_weights)
        self.definition = definition
        self.pipeline = pipeline
        self.batch_size = batch_size
        self.micro_batch = micro_batch
        self.call = dict(call or {})
        self.conditions = conditions or bind_conditions(definition.conditions, pipeline, base)
        self.layers = layers
        self.extractor = load_extractor(definition.features, torch.device(pipeline.device), weights)
        reference = load_reference(definition.reference, self.extractor, base, progress)
        self.reference, self.identity = reference.statistics, reference.identity

    def score(
        self,
        candidate: Candidate,
        *,
        images: int | None = None,
        seed: int | None = None,
        progress: Images | None = None,
    ) -> Score:
        """Generate ``images`` of ``candidate`` with the noise of ``seed`` and measure them."""
        count = self.definition.images if images is None else images
        start = time.perf_counter()
        moments = self._moments(candidate, count, self.definition.seed if seed is None else seed, progress)
        value = frechet_distance(moments.gaussian(), self.reference)
        return Score(
            value=value if math.isfinite(value) else math.inf,
            images=count,
            seconds=time.perf_counter() - start,
            nfe=nfe(self.pipeline.scheduler, len(candidate.steps)),
            layer_runs=self._layer_runs(candidate),
        )

    def _moments(self, candidate: Candidate, count: int, seed: int, progress: Images | None) -> Moments:
        moments = Moments(len(self.reference.mean))
        batches = generate(
            self.pipeline,
            candidate,
            range(count),
            seed=seed,
            batch_size=self.batch_size,
            micro_batch=self.micro_batch,
            conditions=self.conditions,
            call=self.call,
        )
        for images in batches:
            with enough_memory(f"the features of {self.batch_size} images", "batch_size"):
                features = self.extractor(images)
            if features.shape[1] != len(self.reference.mean):
                raise UserError(
                    f"the reference must have features of {features.shape[1]} dimensions, as "
                    f"{self.definition.features} gives; it has {len(self.reference.mean)}: "
                    "it was made with another extractor"
                )
            moments.add(features)
            if progress is not None:
                progress(moments.count)
        return moments

    def _layer_runs(self, candidate: Candidate) -> int | None:
        if not self.layers:
            return None
        made = calls(self.pipeline.scheduler, len(candidate.steps))
        return sum(n * (self.layers - len(removed)) for n, removed in zip(made, candidate.removed, strict=True))
