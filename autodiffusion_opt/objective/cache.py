"""Computed arrays kept on disk under a checksum: what is half written, altered or another's is computed again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.archives import Archive

CACHE_VARIABLE = "AUTODIFFUSION_CACHE"
Arrays = Mapping[str, NDArray[Any]]


def cache_folder() -> Path:
    """Where computed arrays are kept: ``$AUTODIFFUSION_CACHE``, else the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autodiffusion-opt"


def kept(name: str, keys: tuple[str, ...], compute: Callable[[], Arrays]) -> Arrays:
    """The arrays that are kept under a name; computed where there are none, or not these.

    Args:
        name: says what the arrays are of: with it, they are always the same.
        keys: of the arrays.
        compute: gives them.

    Raises:
        UserError: where the cache cannot be written.
    """
    path = cache_folder() / f"{name}.npz"
    stored = _read(path, name, keys)
    if stored is None:
        stored = compute()
        _write(path, {**stored, "checksum": np.array(_checksum(name, stored))})
    return stored


def _read(path: Path, name: str, keys: tuple[str, ...]) -> Arrays | None:
    """None for anything but what was written there."""
    with contextlib.suppress(UserError), Archive(path) as archive:
        arrays = {key: archive.array(key) for key in keys}
        if str(archive.array("checksum")) == _checksum(name, arrays):
            return arrays
    return None


def _checksum(name: str, arrays: Arrays) -> str:
    total = hashlib.sha256(name.encode())
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        total.update(f"\0{key} {array.dtype.str} {np.shape(arrays[key])}\0".encode())
        total.update(array.data.cast("B") if array.size else b"")
    return total.hexdigest()


def _write(path: Path, arrays: Arrays) -> None:
    """Written beside and renamed, so that no other process reads half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, arrays)
    except OSError as error:
        raise UserError(
            f"the statistics of the reference cannot be kept in {path.parent}: {error.strerror}; "
            f"name a folder that can be written with {CACHE_VARIABLE}"
        ) from None


def write_whole(path: Path, arrays: Arrays) -> None:
    """An ``.npz`` file that is there whole or not at all. Raises OSError."""
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with beside.open("xb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes the keys for its own option
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
