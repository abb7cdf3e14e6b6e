"""Where a path leads that somebody wrote: the one rule for relative paths, in every room."""

from __future__ import annotations

import os
from pathlib import Path

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.text import quoted


def absolute(path: str | Path, base: Path | None = None) -> Path:
    """The absolute path of one that was written down; a leading ``~`` is the home folder.

    A relative path starts from the folder of the file that names it. One that no file names, but Python or a word on
    the command line, starts from the working folder.

    Args:
        path: as it was written.
        base: the folder of the file that names it (:func:`folder_of`); None: no file does.

    Raises:
        UserError: for what cannot be a path, or lies where this user may not look.
    """
    joined = Path(base or "", os.path.expanduser(path)).absolute()
    try:
        joined.is_file()
    except OSError as error:  # too long, or no permission
        raise UserError(f"the path {quoted(str(path))} cannot be looked up: {reason_of(error)}") from None
    if "\0" in str(joined):
        raise UserError(f"a path must not hold a NUL; got {quoted(str(path))}")
    return joined


def folder_of(file: Path) -> Path:
    """The folder that relative paths in a file start from: that of the file itself, not of a link to it."""
    return file.resolve().parent
