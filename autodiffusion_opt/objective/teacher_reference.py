"""The teacher's images as something to compare with: of each seed, images or features, from disk."""

from __future__ import annotations

import hashlib
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.files import cache_folder
from autodiffusion_opt.objective.features import Extractor
from autodiffusion_opt.objective.statistics import Gaussian, Moments
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.kept import KeptRows
from autodiffusion_opt.sampling.teacher import Teacher

# Seeds whose features stay in memory: a study's own, and the three that `verify` takes by turns.
SEEDS_IN_MEMORY = 4


class TeacherReference:
    """The first ``count`` of the teacher's images of a seed; made when they are asked for.

    Args:
        kept: their features or the images themselves, on disk.
        count: how many a candidate has.
        batch_size: how many are handed over at once: float32 features of other blocks are rounded otherwise.
        device: which computes statistics; None: NumPy does.
        progress: is told of images that are made.
    """

    def __init__(
        self, kept: KeptRows, count: int, batch_size: int, device: str | None = None, progress: Progress = silent
    ) -> None:
        self.count = count
        self._batch_size = batch_size
        self.device = device
        self._kept = kept
        self.progress = progress

    def prepare(self) -> None:
        """Make those images that are not on disk."""
        self._kept.need(self.count, self.progress)

    @cached_property
    def dimensions(self) -> int:
        """D of its features, without all images being made."""
        return int(self._kept.rows(0, min(self._batch_size, self.count)).shape[1])

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """(count, D). Raises UserError where they are not finite: nothing can be compared with them."""
        self.prepare()
        features: NDArray[np.float32] = self._kept.rows(0, self.count)
        if not np.isfinite(features).all():
            raise UserError("the features of the teacher's images must be finite numbers; some are not")
        return features

    @cached_property
    def statistics(self) -> Gaussian:
        """Mean and covariance of its features."""
        moments = Moments(self.dimensions)
        moments.add(self.features)
        return moments.gaussian()

    def images(self, start: int, stop: int) -> torch.Tensor:
        """Images ``start`` to ``stop`` - 1, uint8 (N, C, H, W), from disk."""
        return torch.from_numpy(self._kept.rows(start, stop))


class TeacherReferences:
    """A :class:`TeacherReference` for every seed.

    Args:
        sampler: the pipeline and how a study calls it.
        steps: of the teacher.
        extractor: of its features; None: the images themselves are compared.

    Raises:
        UserError: where the pipeline has no times of its own for so many steps.
    """

    def __init__(self, sampler: ImageSampler, steps: int, extractor: Extractor | None) -> None:
        self._teacher = Teacher(sampler, steps)
        self._extractor = extractor
        self._features = "" if extractor is None else extractor.identity
        self.identity = hashlib.sha256(f"{self._teacher.identity}\n{self._features}".encode()).hexdigest()[:32]
        device = torch.device(sampler.pipeline.device)
        self._device = str(device) if device.type == "cuda" else None
        self._batch_size = sampler.batch_size
        self._remembered = lru_cache(SEEDS_IN_MEMORY)(self._made)

    def of(self, seed: int, images: int, progress: Progress = silent) -> TeacherReference:
        """The reference of a seed, for candidates of so many images."""
        reference = self._remembered(seed, images)
        reference.progress = progress
        return reference

    def _made(self, seed: int, images: int) -> TeacherReference:
        kept = self._teacher.kept(seed, cache_folder(), self._extractor, self._features)
        return TeacherReference(kept, images, self._batch_size, self._device)
