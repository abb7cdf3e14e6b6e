"""Who this worker is, who is alive, and the heartbeat."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autodiffusion_opt.trials import workers
from autodiffusion_opt.trials.workers import heartbeat, is_there, this_worker


def dead_worker() -> str:
    """The worker's name of a process that has ended."""
    code = "from autodiffusion_opt.trials.workers import this_worker; print(this_worker())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_worker_of_this_machine_is_dead_when_its_process_is_gone() -> None:
    host, process, start = this_worker().rsplit(":", 2)
    assert int(process) == os.getpid()
    assert is_there(this_worker())
    assert is_there(f"{host}:{process}:{int(start) - 1}") is False  # the number was given to another process
    assert is_there(dead_worker()) is False
    assert is_there(f"elsewhere:{process}:{int(start) - 1}") is None  # only its heartbeat tells


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_process_that_nobody_waited_for_is_dead() -> None:
    """A killed worker stays in the table of processes until its parent asks for its exit code."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    name = f"{this_worker().rsplit(':', 2)[0]}:{child.pid}:{start}"
    try:
        assert is_there(name)
        os.kill(child.pid, 9)
        for _ in range(200):
            if not is_there(name):
                break
            time.sleep(0.02)
        assert is_there(name) is False
    finally:
        child.kill()
        child.wait()
        assert child.stdin is not None
        child.stdin.close()


def test_the_heartbeat_goes_on_until_the_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "HEARTBEAT_SECONDS", 0.001)
    beats: list[float] = []
    enough = threading.Event()

    def record() -> None:
        beats.append(time.monotonic())
        if len(beats) == 5:
            enough.set()

    with heartbeat(record):
        assert enough.wait(30)
    counted = len(beats)
    time.sleep(0.02)
    assert len(beats) == counted
    assert workers.GRACE_SECONDS > 3 * 30  # several lost heartbeats do not make a worker dead
