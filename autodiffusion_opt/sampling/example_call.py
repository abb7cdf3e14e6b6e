"""Inputs of a pipeline's denoiser, taken from a call of the pipeline that ends where the denoiser would begin."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.layers.example_inputs import can_make_inputs
from autodiffusion_opt.sampling.layers.listing import is_listed, list_layers

PROMPT = "a photograph of a lighthouse"


class _Reached(BaseException):
    """The denoiser was called. No Exception, so that no pipeline handles it."""


def learn_layers(pipeline: Any, call: Mapping[str, Any] | None = None) -> None:
    """List the layers of a pipeline's denoiser, once, with inputs of its own first call where none can be made.

    Args:
        pipeline: is called, to the point where its denoiser would run; afterwards it is as it was.
        call: arguments of the call beside those of :func:`example_inputs`.

    Raises:
        UserError: for a pipeline whose call does not come that far, or a denoiser without layers.
    """
    denoiser = denoiser_of(pipeline)
    if not (is_listed(denoiser) or can_make_inputs(denoiser)):
        list_layers(denoiser, example_inputs(pipeline, call), as_own=True)


@torch.no_grad()
def example_inputs(pipeline: Any, call: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The keyword arguments of the denoiser in the first call that the pipeline makes of it.

    The text encoders run, and nothing else: one prompt, no guidance scale but the pipeline's own, at the pipeline's own
    size. The pipeline, its scheduler and torch's random state are left as they were.

    Raises:
        UserError: for a pipeline whose call fails, or ends without its denoiser.
    """
    denoiser, kind = denoiser_of(pipeline), type(pipeline)
    seen: dict[str, Any] = {}

    def reached(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.update(inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments)
        raise _Reached

    takes = inspect.signature(kind.__call__).parameters
    given = {"prompt": PROMPT, "class_labels": [0], "num_inference_steps": 2, **(call or {})}
    given["generator"] = torch.Generator("cpu").manual_seed(0)
    handle = denoiser.register_forward_pre_hook(reached, with_kwargs=True)
    try:
        with torch.random.fork_rng(), _scheduler_copied(pipeline), contextlib.suppress(_Reached):
            kind.__call__(pipeline, **{name: value for name, value in given.items() if name in takes})
    except Exception as error:
        raise UserError(
            f"{kind.__name__} could not be called for the inputs of its denoiser, {type(denoiser).__name__} "
            f"({type(error).__name__}: {error}): give list_layers the keyword arguments of its forward as inputs="
        ) from error
    finally:
        handle.remove()
    if not seen:
        raise UserError(f"the call of {kind.__name__} ended without its denoiser, {type(denoiser).__name__}")
    seen.pop("self", None)
    more = seen.pop("kwargs", {})
    return {**seen, **more}


@contextlib.contextmanager
def _scheduler_copied(pipeline: Any) -> Iterator[None]:
    state, scheduler = vars(pipeline), pipeline.scheduler
    attributes = {name: value for name, value in state.items() if name.startswith("_")}
    state["scheduler"] = copy.deepcopy(scheduler)
    try:
        yield
    finally:
        state["scheduler"] = scheduler
        for name in [name for name in state if name.startswith("_") and name not in attributes]:
            del state[name]  # what a call keeps of its arguments
        state.update(attributes)
