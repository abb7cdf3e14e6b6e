"""Who this worker is, which workers are alive, and the heartbeat by which other machines know."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HEARTBEAT_SECONDS = 30
# A trial whose last heartbeat is older than this has lost its worker.
GRACE_SECONDS = 120


def this_worker() -> str:
    """host:process:start, the start so that a process number used again is not taken for the same worker."""
    return f"{socket.gethostname()}:{os.getpid()}:{_process_start(os.getpid())}"


def is_there(worker: str) -> bool | None:
    """Whether a worker of this machine is at work; None for another machine's, of which only the heartbeat tells."""
    host, process, start = worker.rsplit(":", 2)
    return _process_start(int(process)) == start if host == socket.gethostname() else None


def _process_start(process: int) -> str:
    """Start time of a process in clock ticks (Linux); "alive" elsewhere; "" for a process that is gone."""
    try:
        # Fields after the command's closing bracket; the 20th of these is the start time (proc(5)).
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        # Z, X: it ended, but its parent has not asked for the exit code yet.
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "alive"
    return "alive"


@contextmanager
def heartbeat(record: Callable[[], None]) -> Iterator[None]:
    """Calls ``record`` every half minute, in a thread of its own, until the block ends."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            record()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
