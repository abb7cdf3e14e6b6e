"""The guidance scale of a candidate on a pipeline: its call uses it, whatever it is called with."""

from __future__ import annotations

import inspect
from typing import Any

from autodiffusion_opt.errors import UserError

ARGUMENT = "guidance_scale"


class GuidanceOverride:
    """Sets ``guidance_scale`` in every call of a pipeline, until removed.

    A call is looked up on the class, so the instance gets a subclass of the same name; ``remove`` gives the class back.

    Raises:
        UserError: for a pipeline whose call takes no guidance scale.
    """

    def __init__(self, pipeline: Any, scale: float) -> None:
        self._pipeline = pipeline
        self._original = type(pipeline)
        if ARGUMENT not in inspect.signature(self._original.__call__).parameters:
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
        problem = inspect.signature(original.__call__).bind_partial(self, *args, **kwargs)
        problem.arguments[ARGUMENT] = scale
        # A call may have **kwargs of its own; bind_partial keeps them apart, args and kwargs put them back.
        return original.__call__(*problem.args, **problem.kwargs)

    __call__.__signature__ = inspect.signature(original.__call__)  # type: ignore[attr-defined]
    names = {"__call__": __call__, "__module__": original.__module__, "__qualname__": original.__qualname__}
    return type(original.__name__, (original,), names)
