"""Signals that end a run, held back while a transaction is written.

Ctrl-C, SIGTERM and SIGHUP raise in the main thread, wherever it is. In the middle of a transaction that would leave a
connection behind that holds a lock, so there they wait for its end.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Ended(KeyboardInterrupt):
    """A signal asked the process to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class _State:
    """Of this process.

    Attributes:
        depth: how many blocks hold signals back.
        count: of the signals that came.
        last: of them.
    """

    depth: int = 0
    count: int = 0
    last: int = 0


_state = _State()


def _handle(number: int, frame: object) -> None:
    _state.count, _state.last = _state.count + 1, number
    if _state.depth == 0:
        raise Ended(number)


@contextmanager
def held_back() -> Iterator[None]:
    """A signal that arrives meanwhile raises :class:`Ended` at the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    count = _state.count
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1
    if _state.depth == 0:
        raise_since(count)


@contextmanager
def handled() -> Iterator[int]:
    """While it lasts, signals that end a run raise :class:`Ended`; outside the main thread nothing is changed.

    A signal that is ignored stays so: a shell starts what it runs in the background to ignore Ctrl-C.

    Yields:
        how many signals had come, for :func:`raise_since`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _state.count
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _handle)
        yield _state.count
    finally:
        with held_back():
            for number, handler in before.items():
                signal.signal(number, handler)


def raise_since(count: int) -> None:
    """Raise :class:`Ended` where more than ``count`` signals came: a library's callback may have swallowed it."""
    if _state.count > count:
        raise Ended(_state.last)
