"""Files of torch's without pickles: what is unpickled can run code."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@contextlib.contextmanager
def no_pickles() -> Iterator[None]:
    """Libraries read weights with ``weights_only=False``; torch's own switch forbids that."""
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCE]
        else:
            os.environ[FORCE] = before
