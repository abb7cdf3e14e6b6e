"""Images of a candidate, through the pipeline's own call: image i is the same in every trial."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.apply import install
from autodiffusion_opt.sampling.conditions import Conditions, Unconditional, check_conditions


@dataclass(frozen=True)
class ImageSampler:
    """A pipeline with all that decides its images but the candidate, the indices and the seed.

    Image i has its own noise, from ``(seed, i)``, and its own condition: the same in every trial. It is bit-identical
    for any batch size and for whatever else is asked for. Kernels of other shapes sum in another order and round
    otherwise, so every call makes ``micro_batch`` images, the last call filled up with images that are not returned.

    Attributes:
        pipeline: is left as it was found after every use, also after an exception.
        conditions: what each image is of.
        call: further arguments of the pipeline's call.
        micro_batch: images that one call makes and the networks see at once; another number rounds otherwise.
        batch_size: images handed over at once; changes no image.

    Raises:
        UserError: for conditions that do not fit the pipeline.
    """

    pipeline: Any
    conditions: Conditions = field(default_factory=Unconditional)
    call: Mapping[str, Any] = field(default_factory=dict)
    micro_batch: int = 16
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_conditions(self.pipeline, self.conditions)

    @torch.inference_mode()
    def images(self, candidate: Candidate, indices: Sequence[int], seed: int) -> Iterator[torch.Tensor]:
        """The images of ``indices``.

        Yields:
            uint8 (batch_size, channels, height, width), the last block what is left.

        Raises:
            UserError: for a candidate that does not fit the model, or a micro batch that does not fit the GPU's memory.
        """
        with install(self.pipeline, candidate), self.conditions.around(self.pipeline), _silenced(self.pipeline):
            starts = range(0, len(indices), self.micro_batch)
            calls = (self._call(candidate, indices[start : start + self.micro_batch], seed) for start in starts)
            yield from _regrouped(calls, self.batch_size)

    def _call(self, candidate: Candidate, indices: Sequence[int], seed: int) -> torch.Tensor:
        filled = [*indices, *[indices[-1]] * (self.micro_batch - len(indices))]
        with enough_memory(f"{self.micro_batch} images", "micro_batch"):
            images = self.pipeline(
                **self.conditions.arguments(self.pipeline, filled),
                **self.call,
                num_inference_steps=len(candidate.steps),
                generator=[noise_generator(seed, index) for index in filled],
                output_type="pt",
                return_dict=True,
            ).images[: len(indices)]
        if isinstance(images, np.ndarray):  # LDMPipeline knows no "pt": (N, H, W, C)
            images = torch.from_numpy(images).permute(0, 3, 1, 2)
        return to_uint8(images)


def _regrouped(blocks: Iterable[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """The same images in blocks of ``size``, the last block what is left."""
    held: torch.Tensor | None = None
    for block in blocks:
        held = block if held is None else torch.cat([held, block])
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if held is not None and len(held):
        yield held


@contextlib.contextmanager
def _silenced(pipeline: Any) -> Iterator[None]:
    """No progress bar of the pipeline's own while it lasts."""
    name, state = "_progress_bar_config", vars(pipeline)
    before = state.get(name)
    if hasattr(pipeline, "set_progress_bar_config"):
        pipeline.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        state.pop(name, None)
        if before is not None:
            state[name] = before


@contextlib.contextmanager
def enough_memory(what: str, key: str) -> Iterator[None]:
    """Raises UserError, naming the key of ``[pipeline]`` to lower, where the GPU's memory does not hold ``what``."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"the GPU's memory must hold {what} at once, and does not: lower {key} in [pipeline]") from None


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """0..1 -> 0..255, rounded; what is not finite becomes 0."""
    return images.float().nan_to_num(0.0).mul(255).round().clamp(0, 255).to(torch.uint8)


def noise_generator(seed: int, index: int) -> torch.Generator:
    """The generator of image ``index``: on the CPU, so that a GPU starts from the same noise."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator("cpu").manual_seed(int(state) >> 1)
