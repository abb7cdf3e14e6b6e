"""Computed arrays kept on disk: what is half written, altered or another's is computed again."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.files import cache_folder, keep, read_kept

Arrays = Mapping[str, NDArray[Any]]


def kept(name: str, compute: Callable[[], Arrays], what: str) -> Arrays:
    """The arrays that are kept under a name; computed where there are none.

    Args:
        name: says what the arrays are of: with it, they are always the same.
        compute: gives them.
        what: they are, for messages.

    Raises:
        UserError: where the cache cannot be written.
    """
    path = cache_folder() / f"{name}.npz"
    content = read_kept(path)
    if content is not None:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return dict(file)
    arrays = compute()
    keep(path, packed(arrays), what)
    return arrays


def packed(arrays: Arrays) -> bytes:
    """The content of an ``.npz`` file."""
    memory = io.BytesIO()
    np.savez(memory, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes the keys for its own option
    return memory.getvalue()
