"""What tests of compiled layers use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from peers.counting_backend import Counting


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """Graphs of other tests' models would be used again, as they lie in the classes' code."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def backend() -> Counting:
    return Counting()
