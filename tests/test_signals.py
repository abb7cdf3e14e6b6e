"""Signals that end a run: where they raise, where they wait, and that none is lost."""

from __future__ import annotations

import contextlib
import signal
import threading

import pytest

from autodiffusion_opt import signals
from autodiffusion_opt.signals import ENDING, Ended, handled, held_back, raise_since


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_raises_where_the_main_thread_is(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Ended) as ended, handled():
        signal.raise_signal(number)
    assert ended.value.number == number
    assert str(ended.value) == signal.Signals(number).name
    assert signal.getsignal(number) is before


def test_it_waits_for_the_end_of_the_outermost_block() -> None:
    reached = []

    def write() -> None:
        with held_back():
            with held_back():
                signal.raise_signal(signal.SIGINT)
                reached.append("inner")
            reached.append("outer")

    with handled(), pytest.raises(Ended):
        write()
    assert reached == ["inner", "outer"]
    with handled(), held_back():
        reached.append("again")  # what came before does not raise a second time


def test_an_error_in_the_block_comes_before_the_signal() -> None:

    def write() -> None:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("first")

    with handled() as before:
        with pytest.raises(ValueError, match="first"):
            write()
        with pytest.raises(Ended):
            raise_since(before)


def test_a_signal_whose_exception_is_swallowed_is_known() -> None:
    with handled() as before:
        raise_since(before)
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Ended, match="SIGTERM"):
            raise_since(before)


def test_what_is_ignored_stays_ignored() -> None:
    """A program that a shell put into the background is started so."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handled():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_changes_nothing() -> None:
    seen = []

    def work() -> None:
        with handled(), held_back():
            seen.append((signals._state.depth, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, signal.getsignal(signal.SIGTERM))]
