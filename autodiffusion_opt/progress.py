"""How long work tells what it has done; who shows it is up to the caller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Protocol, TypeVar

Block = TypeVar("Block", bound=Sized)


class Progress(Protocol):
    """Is told of long work, again and again: what is being done, how much of it, of how much (0: unknown)."""

    def __call__(self, what: str, done: int, total: int, /) -> None:
        """May raise an exception to stop the work."""
        ...


def silent(what: str, done: int, total: int) -> None:
    """A :class:`Progress` that shows nothing."""


def counted(blocks: Iterable[Block], progress: Progress, what: str, total: int, done: int = 0) -> Iterator[Block]:
    """The same blocks; tells after each how many of ``total`` items they held together, beyond ``done``."""
    for block in blocks:
        yield block
        done += len(block)
        progress(what, done, total)
