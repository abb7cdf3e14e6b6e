"""Where a path leads that somebody wrote: the one rule for relative paths, in every room."""

from __future__ import annotations

import os
from pathlib import Path


def absolute(path: str | Path, base: Path | None = None) -> Path:
    """The absolute path of one that was written down; a leading ``~`` is the home folder.

    A relative path starts from the folder of the file that names it. One that no file names, but Python or a word on
    the command line, starts from the working folder.

    Args:
        path: as it was written.
        base: the folder of the file that names it (:func:`folder_of`); None: no file does.
    """
    return Path(base or "", os.path.expanduser(path)).absolute()


def folder_of(file: Path) -> Path:
    """The folder that relative paths in a file start from: that of the file itself, not of a link to it."""
    return file.resolve().parent
