"""How long work tells what it has done; who shows it is up to the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

# Told what is being done, how much of it is done, and of how much (0: nobody knows).
Progress = Callable[[str, int, int], None]

Block = TypeVar("Block", problem=Sized)


def silent(what: str, done: int, of: int) -> None:
    """Nobody is told."""


def counted(blocks: Iterable[Block], progress: Progress, what: str, of: int, done: int = 0) -> Iterator[Block]:
    """The same blocks; tells after each one how many of ``of`` items they held together, beyond ``done``."""
    for block in blocks:
        yield block
        done += len(block)
        progress(what, done, of)
