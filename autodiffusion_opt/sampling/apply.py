"""Put a candidate on a diffusers pipeline, and take it off again without a trace.

The times go on the pipeline's scheduler, the layer sets on its denoiser, the guidance scale on its call. The
pipeline's own call is what runs: what is searched is what is shipped.
"""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.compatibility import check_compatible
from autodiffusion_opt.sampling.layers import Bypass, install_bypass
from autodiffusion_opt.sampling.load import denoiser_of
from autodiffusion_opt.sampling.schedule import InstalledSchedule, check_scheduler, check_times, install_schedule

GUIDANCE_SCALE = "guidance_scale"


@dataclass
class Applied:
    """What a candidate put on a pipeline."""

    candidate: Candidate
    schedule: InstalledSchedule
    bypass: Bypass | None = None
    guidance: GuidanceOverride | None = None

    def remove(self) -> None:
        """Take it off again."""
        for part in (self.guidance, self.bypass, self.schedule):
            if part is not None:
                part.remove()


_applied: weakref.WeakKeyDictionary[Any, Applied] = weakref.WeakKeyDictionary()


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
    schedule = install_schedule(pipeline.scheduler, candidate.times)
    applied = Applied(candidate, schedule)
    try:
        if any(candidate.removed):
            applied.bypass = install_bypass(denoiser_of(pipeline), candidate.removed, lambda: schedule.step)
        if candidate.guidance_scale is not None:
            applied.guidance = GuidanceOverride(pipeline, candidate.guidance_scale)
    except BaseException:  # half a candidate must not stay
        applied.remove()
        raise
    _applied[pipeline] = applied
    return pipeline


def remove(pipeline: Any) -> Any:
    """Undo :func:`apply`; the pipeline is as it was. Does nothing where no candidate is applied."""
    applied = _applied.pop(pipeline, None)
    if applied is not None:
        applied.remove()
    return pipeline


@contextlib.contextmanager
def install(pipeline: Any, candidate: Candidate) -> Iterator[Any]:
    """:func:`apply` for the length of a ``with`` block, also if it ends with an exception.

    A candidate that was applied before is applied again after it.
    """
    before = _applied.get(pipeline)
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


class GuidanceOverride:
    """Sets ``guidance_scale`` in every call of a pipeline, until removed.

    Python looks a call up on the class, so the object gets a subclass of the same name; ``remove`` gives the class
    back.

    Raises:
        UserError: for a pipeline whose call takes no guidance scale.
    """

    def __init__(self, pipeline: Any, scale: float) -> None:
        self._pipeline = pipeline
        self._original = type(pipeline)
        if GUIDANCE_SCALE not in inspect.signature(self._original.__call__).parameters:
            raise UserError(
                f"the candidate has a guidance_scale, but {self._original.__name__} takes none: "
                "remove it from the candidate"
            )
        pipeline.__class__ = _guided(self._original, scale)

    def remove(self) -> None:
        """Give the pipeline its class back; does nothing the second time."""
        self._pipeline.__class__ = self._original


def _guided(original: type, scale: float) -> type:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original.__call__).bind_partial(self, *args, **kwargs)
        given.arguments[GUIDANCE_SCALE] = scale
        # A call may have **kwargs of its own; bind_partial keeps them apart, args and kwargs put them back.
        return original.__call__(*given.args, **given.kwargs)

    __call__.__signature__ = inspect.signature(original.__call__)  # type: ignore[attr-defined]
    names = {"__call__": __call__, "__module__": original.__module__, "__qualname__": original.__qualname__}
    return type(original.__name__, (original,), names)
