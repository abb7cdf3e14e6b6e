"""The teacher of a study: the same pipeline with many steps of its own, from the same noise, of the same conditions.

What it gives is what few steps can at best come near to. Its images are made once, and kept on disk: themselves, or
what was computed of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import diffusers
import numpy as np
import torch

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.fingerprint import fingerprint_components
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.kept import Array, KeptRows
from autodiffusion_opt.sampling.own import own_candidate


@dataclass(frozen=True)
class Teacher:
    """A pipeline sampled with many steps.

    Attributes:
        sampler: the pipeline and how a study calls it.
        steps: of the pipeline's own, at most; see :func:`~autodiffusion_opt.sampling.own.own_candidate`.

    Raises:
        UserError: where the pipeline has no times of its own for so many steps.
    """

    sampler: ImageSampler
    steps: int

    @cached_property
    def candidate(self) -> Candidate:
        """The pipeline's own times for so many steps."""
        return own_candidate(self.sampler, self.steps)

    @cached_property
    def identity(self) -> str:
        """Changes when the images do; not with the noise's seed, the device or the versions of libraries."""
        given = [
            fingerprint_components(self.sampler.pipeline),
            self.candidate.to_json(),
            self.sampler.conditions.identity,
            json.dumps(dict(self.sampler.call), sort_keys=True, default=repr),
            str(self.sampler.micro_batch),
            *([] if self.sampler.frames == 1 else [f"{self.sampler.frames} frames"]),
        ]
        return hashlib.sha256("\n".join(given).encode()).hexdigest()

    def images(self, indices: Sequence[int], seed: int) -> Iterator[torch.Tensor]:
        """The images of ``indices``, uint8 (N, channels, height, width), block by block.

        Raises:
            UserError: where one is not finite: nothing can be compared with it.
        """
        broken: list[int] = []
        for block in self.sampler.images(self.candidate, indices, seed, broken):
            if broken:
                raise UserError(
                    f"the teacher's image {broken[0]} is not finite: with {self.steps} steps the model overflows; "
                    "with dtype float16, try bfloat16 or float32"
                )
            yield block

    def kept(
        self, seed: int, folder: Path, compute: Callable[[torch.Tensor], Array] | None = None, computed: str = ""
    ) -> KeptRows:
        """Its images of a seed, or what is computed of each, on disk.

        Args:
            seed: of the noise.
            folder: in which all that is computed is kept.
            compute: images (N, C, H, W) to N rows; None: the images themselves.
            computed: the identity of ``compute``.
        """
        device = str(torch.device(self.sampler.pipeline.device).type)
        versions = [torch.__version__, diffusers.__version__]
        parts = [self.identity, str(seed), computed, device, *versions]
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

        def make(indices: Sequence[int]) -> Iterator[Array]:
            for block in self.images(indices, seed):
                yield np.asarray(block.cpu()) if compute is None else compute(block)

        return KeptRows(folder / f"teacher-{key}", make, "teacher's images")
