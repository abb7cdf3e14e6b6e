"""What went wrong, said so that it can be put right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave (a file, a name, an option). The command line exits with 2, no traceback.

    The message says what must hold, what came, and what to do about it.
    """


class EvaluationError(Exception):
    """A candidate could not be measured: the user's own function raised an error, or gave no number.

    The trial fails with this message, and the study goes on.
    """


def unknown(what: str, came: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not allowed: lists those that are and the nearest match."""
    return UserError(unknown_text(what, came, allowed))


def unknown_text(what: str, came: str, allowed: Iterable[str]) -> str:
    """``what`` must be one of ``allowed``; got ``came``; did you mean ...? (one sentence)"""
    names = sorted(allowed)
    listed = ", ".join(names) if names else "(there is none)"
    return f"{what} must be one of: {listed}; got {came!r}.{nearest(came, names)}"


def nearest(came: str, allowed: Iterable[str]) -> str:
    """ " Did you mean ...?" for the nearest match; nothing where none is near."""
    original = {name.lower(): name for name in allowed}
    near = difflib.get_close_matches(came.lower(), original, n=1, cutoff=0.5)
    return f" Did you mean {original[near[0]]!r}?" if near else ""
