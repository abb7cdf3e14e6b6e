"""Files that are written whole or not at all, and the folder in which computed values are kept under a checksum."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.text import quoted

CACHE_VARIABLE = "AUTODIFFUSION_CACHE"
DIGEST = 32  # bytes of a SHA-256


def cache_folder() -> Path:
    """Where computed values are kept: ``$AUTODIFFUSION_CACHE``, else the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autodiffusion-opt"


def check_output(path: Path) -> None:
    """Raises UserError, before anything is computed for it, for a file that could not be written."""
    try:
        is_folder, has_folder = path.is_dir(), path.parent.is_dir()
    except OSError as error:  # too long, or no permission
        raise UserError(f"-o: {quoted(str(path))} cannot be written: {reason_of(error)}") from None
    if is_folder:
        raise UserError(f"-o: {path} is a folder; name a file in it")
    if not has_folder:
        raise UserError(f"-o: the folder {path.parent} must exist")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"-o: {path} cannot be written: no permission")


def check_output_folder(folder: Path) -> None:
    """Raises UserError, before anything is computed for it, for a folder that cannot be made or written to."""
    try:
        nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise UserError(f"-o: {quoted(str(folder))} cannot be written: {reason_of(error)}") from None
    if not nearest.is_dir():
        raise UserError(f"-o: {folder} cannot be written: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"-o: {folder} cannot be written: no permission for {nearest}")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside and rename it: no process reads half a file, and a failure leaves nothing behind.

    Raises:
        OSError: where it cannot be written.
    """
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with beside.open("xb") as file:
            file.write(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def keep(path: Path, content: bytes, what: str) -> None:
    """Write a file with the SHA-256 of its name and content after its end; NumPy reads arrays in front of it.

    Args:
        path: a file in the cache; its folder is made.
        content: of the file.
        what: is kept there, for the message.

    Raises:
        UserError: where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content + _digest(path, content))
    except OSError as error:
        raise UserError(
            f"the {what} cannot be kept in {path.parent}: {reason_of(error)}; name a folder that can be written, and "
            f"has room, with {CACHE_VARIABLE}"
        ) from None


def read_kept(path: Path) -> bytes | None:
    """The content of a file that :func:`keep` wrote; None where there is none, or it is not what was written there."""
    try:
        written = path.read_bytes()
    except OSError:
        return None
    content = written[:-DIGEST]
    return content if written[-DIGEST:] == _digest(path, content) else None


def _digest(path: Path, content: bytes) -> bytes:
    """Of the name, too: what was copied from another file is not taken for this one's."""
    return hashlib.sha256(path.name.encode() + b"\0" + content).digest()
