"""Several workers on one machine: processes that run one study, and what is shown of them.

Each worker is a process of its own with a share of the CPU's threads and, where there are GPUs, one of them. They know
of each other by SQL alone, as workers on several machines do.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.study.callback import Callback
from autodiffusion_opt.study.progress_bar import shown
from autodiffusion_opt.study.results import Result, complete
from autodiffusion_opt.study.run import Study
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.studies import find_study

POLL_SECONDS = 0.5
# A worker that was asked to end is given so long to let go of its trial.
END_SECONDS = 30.0


@dataclass(frozen=True)
class Worker:
    """A process that runs the study.

    Attributes:
        number: from 0.
        process: whose standard input stays open as long as its work is wanted.
        said: its standard error.
    """

    number: int
    process: subprocess.Popen[str]
    said: IO[str]

    def complaint(self) -> str:
        """The last that it said before it ended, or how it ended."""
        self.said.seek(0)
        lines = self.said.read().strip().splitlines()
        code = self.process.returncode
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return lines[-1].removeprefix("error: ") if lines else how


def run_workers(
    count: int,
    study: Study,
    loading: dict[str, Any],
    running: dict[str, Any],
    progress: bool | Callback | None = None,
) -> list[Result]:
    """Run a study in several processes until it has all its trials; the complete ones, best first.

    The first opens the study and computes its warm starts before the others start. Where a worker dies, the others
    take over its trial.

    Args:
        count: how many processes.
        study: the study.
        loading: arguments of :meth:`Study.load`, from which each process loads it: ``name``, ``storage`` ...
        running: arguments of :meth:`Study.run`: ``trials``, ``timeout`` ...
        progress: whether a bar is shown, or what is told instead.

    Raises:
        UserError: what the last worker ended with, where all ended before the study was complete.
    """
    wanted = running.get("trials") or study.config.trials
    study.connect(running.get("patience"))
    with shown(progress) as callback, contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_started(0, count, loading, running))]
        history = _opened(study, workers[0])
        if history is not None:
            workers += [stack.enter_context(_started(number, count, loading, running)) for number in range(1, count)]
            stack.callback(_ask_to_end, workers)
            callback.started(study.config, history, wanted)
            _watch(workers, history, callback)
        complaints = {worker.number: worker.complaint() for worker in workers if worker.process.returncode}
    if len(complaints) == len(workers):
        raise UserError(complaints[0])
    for number, complaint in complaints.items():
        warnings.warn(f"worker {number + 1} of {count}: {complaint}", stacklevel=2)
    stored = find_study(study.storage, study.config.name)
    return [] if stored is None else complete(stored)


def _ask_to_end(workers: Sequence[Worker]) -> None:
    """All at once, before the first is waited for."""
    for worker in workers:
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            worker.process.stdin.close()


def _opened(study: Study, worker: Worker) -> History | None:
    """The study's trials, once there are any; None where the worker ended without."""
    while True:
        ended = worker.process.poll() is not None  # asked first: it may have made the study just before
        stored = find_study(study.storage, study.config.name)
        history = None if stored is None else History(stored).refresh()
        if history is not None and any(trial.datetime_start for trial in history.trials.values()):
            return history
        if ended:
            return None
        time.sleep(POLL_SECONDS)


def _watch(workers: Sequence[Worker], history: History, callback: Callback) -> None:
    """Tell of the trials that finish, until all workers have ended."""
    settled = {number for number, trial in history.trials.items() if trial.state.is_finished()}
    while True:
        is_working = any(worker.process.poll() is None for worker in workers)
        for number, trial in history.refresh().trials.items():
            if trial.state.is_finished() and number not in settled:
                settled.add(number)
                callback.finished(trial, history)
        if not is_working:
            return
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _started(number: int, count: int, loading: dict[str, Any], running: dict[str, Any]) -> Iterator[Worker]:
    """A worker; whatever ends the block, it is asked to let go of its trial, and has ended.

    A session of its own keeps Ctrl-C from it: it hears of it from here. Its arguments go through standard input, since
    a list of processes would show a database's password.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = int(os.environ.get("OMP_NUM_THREADS") or cores or 1)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, threads // count))}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", "from autodiffusion_opt.study.workers import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            text=True,
            env=environment,
            start_new_session=True,
        )
        worker = Worker(number, process, said)
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it ended already
                process.stdin.write(json.dumps({"number": number, "loading": loading, "running": running}) + "\n")
                process.stdin.flush()
            yield worker
        finally:
            _ask_to_end([worker])
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _own_device(device: str, number: int) -> str:
    """Of several GPUs, one for each worker in turn, unless a device is named."""
    import torch

    gpus = torch.cuda.device_count()
    return f"cuda:{number % gpus}" if device == "auto" and gpus > 1 else device


def _end_with_parent() -> None:
    """Ask this process to end when nothing more can come on standard input."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """A worker's process: what :func:`run_workers` writes to its standard input is done."""
    from autodiffusion_opt.process import run_and_leave

    def work() -> None:
        given = json.loads(sys.stdin.readline())
        threading.Thread(target=_end_with_parent, daemon=True).start()
        loading = given["loading"] | {"overrides": tuple(given["loading"].get("overrides", ()))}
        study = Study.load(**loading)
        if study.config.pipeline is not None:
            study.config = study.config.on_device(_own_device(study.config.pipeline.device, given["number"]))
        study.run(progress=False, wait=True, **given["running"])

    run_and_leave(work)
