"""The class of a pipeline while a candidate is applied to it.

Python looks a call, ``repr`` and copying up on the class, so the pipeline object gets a subclass of its own class, of
the same name, whose methods hand over to what is applied (``vars(pipeline)[KEY]``). ``remove`` gives the class back.
"""

from __future__ import annotations

import functools
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from autodiffusion_opt.errors import UserError

# The attribute of a pipeline that holds what is applied to it.
KEY = "_autodiffusion_applied"
# The file beside ``model_index.json`` that a pipeline is saved with.
CANDIDATE_FILE = "autodiffusion_candidate.json"


@cache
def class_with_candidate(kind: Any) -> Any:
    """A subclass of a pipeline's class, for as long as a candidate is applied."""

    @functools.wraps(kind.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return vars(self)[KEY].current(self).call(self, args, kwargs)

    def __repr__(self: Any) -> str:
        return f"{kind.__repr__(self)}\nwith the candidate {vars(self)[KEY].candidate} applied by autodiffusion_opt"

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        return vars(self)[KEY].deep_copied(self, memo)

    members = {
        "__call__": __call__,
        "__repr__": __repr__,
        "__deepcopy__": __deepcopy__,
        "__copy__": _refuse_copy,
        "__reduce_ex__": _refuse_pickle,
        "__hash__": kind.__hash__,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    if hasattr(kind, "get_timesteps"):
        members["get_timesteps"] = functools.wraps(kind.get_timesteps)(_get_timesteps)
    if hasattr(kind, "save_pretrained"):
        members["save_pretrained"] = _saving(kind)
    return type(kind.__name__, (kind,), members)


def _get_timesteps(self: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    timesteps: tuple[Any, ...] = vars(self)[KEY].timesteps(self, args, kwargs)
    return timesteps


def _saving(kind: Any) -> Any:
    @functools.wraps(kind.save_pretrained)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """diffusers' own, with the candidate beside: first, so that it is pushed to a hub with the rest."""
        folder = Path(save_directory)
        if not folder.is_file():  # diffusers says what is wrong then
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CANDIDATE_FILE).write_text(vars(self)[KEY].candidate.to_json() + "\n", encoding="utf-8")
        return kind.save_pretrained(self, save_directory, *args, **kwargs)

    return save_pretrained


def _refuse_copy(self: Any) -> NoReturn:
    raise UserError(
        "a shallow copy of a pipeline with a candidate would share it in part: use copy.deepcopy, or "
        "ado.remove(pipeline) first"
    )


def _refuse_pickle(self: Any, protocol: Any) -> NoReturn:
    raise UserError(
        "a pipeline with a candidate cannot be pickled: ado.remove(pipeline) first, and ado.apply the candidate "
        "(candidate.to_json()) where it is unpickled; save_pretrained keeps both"
    )
