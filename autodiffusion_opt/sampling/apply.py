"""Put a candidate on a diffusers pipeline, take it off again, generate images with it.

The pipeline's own call is what runs: what is searched is what is shipped.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.guidance import GuidanceOverride
from autodiffusion_opt.sampling.layers import Bypass, install_bypass
from autodiffusion_opt.sampling.load import denoiser_of
from autodiffusion_opt.sampling.compatibility import check_compatible
from autodiffusion_opt.sampling.schedule import (
    Schedule,
    check_scheduler,
    check_times,
    install_schedule,
)


class Conditions(Protocol):
    """One condition an image: the arguments of the pipeline's call for some images.

    A source may also have a method ``around(pipeline)``: a context manager that all calls are made in.
    """

    def arguments(self, pipeline: Any, indices: Sequence[int]) -> Mapping[str, Any]:
        """Keyword arguments that make the call generate these images, one each."""
        ...


class Unconditional:
    """No condition: the call is told how many images to make."""

    def arguments(self, pipeline: Any, indices: Sequence[int]) -> Mapping[str, Any]:
        """``batch_size``."""
        return {"batch_size": len(indices)}

    def around(self, pipeline: Any) -> contextlib.AbstractContextManager[None]:
        """Nothing. Raises UserError for a pipeline that needs prompts or labels."""
        from autodiffusion_opt.sampling.conditions import check_conditions

        check_conditions(pipeline, self)
        return contextlib.nullcontext()


@dataclass
class Installed:
    """What a candidate put on a pipeline."""

    candidate: Candidate
    schedule: Schedule
    bypass: Bypass | None = None
    guidance: GuidanceOverride | None = None

    def remove(self) -> None:
        """Take it off again."""
        for part in (self.guidance, self.bypass, self.schedule):
            if part is not None:
                part.remove()


_installed: weakref.WeakKeyDictionary[Any, Installed] = weakref.WeakKeyDictionary()


def apply(pipeline: Any, candidate: Candidate | str | Path) -> Any:
    """Make ``pipeline`` sample with ``candidate``, whatever ``num_inference_steps`` it is called with.

    The time steps go on its scheduler, the layer sets on its denoiser, the guidance scale (where the candidate has
    one) on its call; a candidate applied before is taken off first.

    Args:
        pipeline: any diffusers pipeline whose scheduler is accepted.
        candidate: a candidate, or the path of its JSON file.

    Returns:
        The same pipeline.

    Raises:
        UserError: for a candidate that does not fit the model, or a scheduler that is not accepted.
    """
    if not isinstance(candidate, Candidate):
        candidate = Candidate.load(candidate)
    remove(pipeline)
    check_fits(pipeline, candidate)
    installed = Installed(candidate, install_schedule(pipeline.scheduler, candidate.times))
    try:
        installed.bypass = _bypass(pipeline, candidate, installed.schedule)
        installed.guidance = _guidance(pipeline, candidate)
    except BaseException:  # half a candidate must not stay
        installed.remove()
        raise
    _installed[pipeline] = installed
    return pipeline


def _bypass(pipeline: Any, candidate: Candidate, schedule: Schedule) -> Bypass | None:
    if not any(candidate.removed):
        return None
    return install_bypass(denoiser_of(pipeline), candidate.removed, lambda: schedule.step)


def _guidance(pipeline: Any, candidate: Candidate) -> GuidanceOverride | None:
    return None if candidate.guidance_scale is None else GuidanceOverride(pipeline, candidate.guidance_scale)


def remove(pipeline: Any) -> Any:
    """Undo :func:`apply`; the pipeline is as it was. Does nothing where no candidate is applied."""
    found = _installed.pop(pipeline, None)
    if found is not None:
        found.remove()
    return pipeline


@contextlib.contextmanager
def install(pipeline: Any, candidate: Candidate) -> Iterator[Any]:
    """:func:`apply` for the length of a ``with`` block, also if it ends with an exception.

    A candidate that was applied before is applied again after it.
    """
    before = _installed.get(pipeline)
    try:
        yield apply(pipeline, candidate)
    finally:
        remove(pipeline)
        if before is not None:
            apply(pipeline, before.candidate)


def check_fits(pipeline: Any, candidate: Candidate) -> None:
    """Raises UserError for a candidate that the pipeline cannot run."""
    check_scheduler(pipeline.scheduler)
    check_compatible(pipeline)
    check_times(pipeline.scheduler, candidate.times)
    if any(step.compute == "partial" for step in candidate.steps):
        raise UserError('a step with compute "partial" cannot be run yet; use steps with compute "full"')


@torch.inference_mode()
def generate(
    pipeline: Any,
    candidate: Candidate,
    indices: Sequence[int],
    *,
    seed: int,
    batch_size: int,
    micro_batch: int,
    conditions: Conditions | None = None,
    call: Mapping[str, Any] | None = None,
) -> Iterator[torch.Tensor]:
    """Images of a candidate, through the pipeline's own call.

    Image i has its own noise, from ``(seed, i)``, and its own condition: the same in every trial. It is the same bits
    whatever the batch size and whatever else is asked for. Kernels of other shapes sum in another order and round
    otherwise, so every call makes ``micro_batch`` images, the last one filled up with some that are not returned.

    Args:
        pipeline: the pipeline; is left as it was found, also after an exception.
        candidate: how to sample.
        indices: which images.
        seed: of the noise.
        batch_size: images handed over at once.
        micro_batch: images that one call makes and the networks see at once; another number rounds otherwise.
        conditions: what each image is of; None: unconditional.
        call: further arguments of the call.

    Yields:
        uint8 (batch_size, channels, height, width), the last one what is left.

    Raises:
        UserError: for a candidate that does not fit the model, conditions that do not fit the pipeline, or a micro
            batch that does not fit the GPU's memory.
    """
    source = Unconditional() if conditions is None else conditions
    around = getattr(source, "around", lambda _: contextlib.nullcontext())
    with install(pipeline, candidate), around(pipeline):
        calls = (
            _call(pipeline, candidate, chosen, micro_batch, seed, source, call or {})
            for chosen in _parts(indices, micro_batch)
        )
        yield from _regrouped(calls, batch_size)


def _parts(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    return (list(indices[start : start + size]) for start in range(0, len(indices), size))


def _regrouped(blocks: Iterable[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """The same images in blocks of ``size``, the last one what is left."""
    held: torch.Tensor | None = None
    for block in blocks:
        held = block if held is None else torch.cat([held, block])
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if held is not None and len(held):
        yield held


def _call(
    pipeline: Any,
    candidate: Candidate,
    indices: Sequence[int],
    micro_batch: int,
    seed: int,
    conditions: Conditions,
    call: Mapping[str, Any],
) -> torch.Tensor:
    filled = [*indices, *[indices[-1]] * (micro_batch - len(indices))]
    with enough_memory(f"{micro_batch} images", "micro_batch"):
        images = pipeline(
            **conditions.arguments(pipeline, filled),
            **call,
            num_inference_steps=len(candidate.steps),
            generator=[noise_generator(seed, index) for index in filled],
            output_type="pt",
            return_dict=True,
        ).images[: len(indices)]
    if isinstance(images, np.ndarray):  # LDMPipeline knows no "pt": (N, H, W, C)
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    return to_uint8(images)


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
