"""Which cases of a test wait for the slow run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(values: Iterable[Any], *quick: Any) -> list[Any]:
    """All values for ``parametrize``; those that are not among ``quick`` are for ``pytest -m slow``.

    A tuple is of several arguments.
    """
    values = list(values)
    assert set(quick) <= set(values), "each quick value must be among the values"
    return [
        pytest.param(*arguments, marks=() if value in quick else pytest.mark.slow)
        for value in values
        for arguments in [value if isinstance(value, tuple) else (value,)]
    ]
