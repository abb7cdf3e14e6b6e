"""What went wrong, said so that it can be put right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from autodiffusion_opt.text import NAME, listed, quoted


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


def unknown_text(what: str, came: object, allowed: Iterable[str]) -> str:
    """``what`` must be one of ``allowed``; got ``came``; did you mean ...? (one sentence)"""
    names = sorted(allowed)
    choice = listed(names) if names else "(there is none)"
    near = nearest(came, names) if isinstance(came, str) else ""
    return f"{what} must be one of: {choice}; got {quoted(came)}.{near}"


def nearest(came: str, allowed: Iterable[str]) -> str:
    """ " Did you mean ...?" for the nearest match; nothing where none is near."""
    original = {name.lower()[:NAME]: name for name in allowed}  # comparing long names takes their lengths' product
    near = difflib.get_close_matches(came.lower()[:NAME], original, n=1, cutoff=0.5)
    return f" Did you mean {quoted(original[near[0]])}?" if near else ""


def reason_of(error: BaseException) -> str:
    """Why something failed, on one line: what the system or the error says, else the name of the error's class."""
    said = getattr(error, "strerror", None) or str(error)
    return next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)


def named_reason_of(error: BaseException) -> str:
    """The name of an error's class, and what the error says where it says anything: ``KeyError: 'height'``."""
    name, reason = type(error).__name__, reason_of(error)
    return name if reason == name else f"{name}: {reason}"
