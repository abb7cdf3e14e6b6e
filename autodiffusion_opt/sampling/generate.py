"""Images of a candidate, through the pipeline's own call: image i is the same in every trial."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.apply import GUIDANCE_SCALE, applied, install, watch_samples
from autodiffusion_opt.sampling.compatibility import arguments_of_steps
from autodiffusion_opt.sampling.conditions import Conditions, Unconditional, call_parameters, check_conditions
from autodiffusion_opt.sampling.video import pixels_of


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
        frames: of each clip that are its images, evenly spread, where the pipeline makes clips: image i is then frame
            ``i % frames`` of clip ``i // frames``, noise and conditions are a clip's, and a call makes ``micro_batch``
            clips.

    Raises:
        UserError: for conditions that do not fit the pipeline.
    """

    pipeline: Any
    conditions: Conditions = field(default_factory=Unconditional)
    call: Mapping[str, Any] = field(default_factory=dict)
    micro_batch: int = 16
    batch_size: int = 16
    frames: int = 1

    def __post_init__(self) -> None:
        check_conditions(self.pipeline, self.conditions)

    @property
    def columns(self) -> int | None:
        """Of a picture of its images: the frames of a clip in a row; None: as many as one likes."""
        return self.frames if self.frames > 1 else None

    @torch.inference_mode()
    def images(
        self, candidate: Candidate, indices: Sequence[int], seed: int, broken: list[int] | None = None
    ) -> Iterator[torch.Tensor]:
        """The images of ``indices``.

        Args:
            candidate: what to sample with.
            indices: of the images.
            seed: of their noise.
            broken: the indices of images that are not finite, before or after they are decoded, are appended; their
                pixels that are not finite are black.

        Yields:
            uint8 (batch_size, channels, height, width), the last block what is left.

        Raises:
            UserError: for a candidate that does not fit the model, or a micro batch that does not fit the GPU's memory.
        """
        with install(self.pipeline, candidate), self.calls() as call:
            last, size = LastSample(), self.micro_batch * self.frames
            watch_samples(self.pipeline, last.keep)

            def part(start: int) -> torch.Tensor:
                chosen = indices[start : start + size]
                pixels = call(chosen, seed, len(candidate.steps))
                if broken is not None:
                    finite = all_finite(pixels)
                    if self.frames == 1:  # else the last sample holds clips
                        finite &= last.finite(len(chosen))
                    broken.extend(
                        index for index, is_finite in zip(chosen, finite.tolist(), strict=True) if not is_finite
                    )
                return to_uint8(pixels)

            yield from _regrouped(map(part, range(0, len(indices), size)), self.batch_size)

    @contextlib.contextmanager
    def calls(self) -> Iterator[Callable[[Sequence[int], int, int], torch.Tensor]]:
        """The pipeline's own call, as a function of indices, a seed and a number of steps.

        It gives the pixels of the images, about 0..1, shape (len(indices), channels, height, width).
        """
        with self.conditions.around(self.pipeline), _silenced(self.pipeline):
            yield self._call

    def _call(self, indices: Sequence[int], seed: int, steps: int) -> torch.Tensor:
        if self.frames == 1:
            return self._made(indices, seed, steps)
        clips = list(dict.fromkeys(index // self.frames for index in indices))
        groups = [clips[first : first + self.micro_batch] for first in range(0, len(clips), self.micro_batch)]
        made = torch.cat([self._made(group, seed, steps) for group in groups])  # frames, one clip after the other
        return made[[clips.index(index // self.frames) * self.frames + index % self.frames for index in indices]]

    def _made(self, indices: Sequence[int], seed: int, steps: int) -> torch.Tensor:
        """The images of one call, (N, C, H, W); of clips their frames, one clip after the other."""
        filled = [*indices, *[indices[-1]] * (self.micro_batch - len(indices))]
        candidate = applied(self.pipeline)
        has_scale = candidate is not None and candidate.guidance_scale is not None
        call = {key: value for key, value in self.call.items() if key != GUIDANCE_SCALE or not has_scale}
        with enough_memory(f"{self.micro_batch} images", "micro_batch"):
            output = self.pipeline(
                **self.conditions.arguments(self.pipeline, filled),
                **call,
                **arguments_of_steps(call_parameters(self.pipeline), steps),
                generator=[noise_generator(seed, index) for index in filled],
                output_type="pt",
                return_dict=True,
            )
        return pixels_of(output, self.frames, type(self.pipeline).__name__)[: len(indices) * self.frames]


class LastSample:
    """The sampler's last sample of a call: pixels may be clipped, and then do not show what was not finite."""

    def __init__(self) -> None:
        self._sample: torch.Tensor | None = None

    def keep(self, _: torch.Tensor, sample: torch.Tensor) -> None:
        """The sample (N, ...) after a step, in the place of the one before."""
        self._sample = sample

    def finite(self, count: int) -> torch.Tensor:
        """Whether each of the first ``count`` images of the last sample is finite; all, where none was seen."""
        if self._sample is None:
            return torch.ones(count, dtype=torch.bool)
        return all_finite(self._sample[:count])


def all_finite(images: torch.Tensor) -> torch.Tensor:
    """(N, ...) -> (N,) on the CPU: whether all of an image's values are finite numbers."""
    return images.isfinite().flatten(1).all(dim=1).cpu()


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
