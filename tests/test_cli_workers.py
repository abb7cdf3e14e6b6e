"""``run --workers`` and ``--wait``: processes that share a study, their end, and what is said of them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autodiffusion_opt import Study
from autodiffusion_opt.study.workers import _own_device
from autodiffusion_opt.trials.attributes import WORKER
from autodiffusion_opt.trials.opening import open_storage

Write = Callable[..., Path]
COMMAND = [sys.executable, "-c", "from autodiffusion_opt.cli import main; main()"]
# Where the tests themselves run in the background, they and their children are started to ignore it.
HEED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
INTERRUPTIBLE = [sys.executable, "-c", f"{HEED}; from autodiffusion_opt.cli import main; main()"]


def workers_of(path: Path, url: str) -> list[str]:
    return [trial.user_attrs[WORKER] for trial in Study.load(path, storage=url).trials() if WORKER in trial.user_attrs]


@pytest.mark.slow
def test_two_workers_share_a_study(study_file: Write, url: str) -> None:
    path = study_file(trials="trials = 150")
    words = ["run", str(path), "--storage", url, "--workers", "2", "--json"]
    ended = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["trials"] == 150
    assert len(set(workers_of(path, url))) == 2
    assert not any(str(os.getpid()) == worker.split(":")[1] for worker in workers_of(path, url))
    again = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=200)
    assert json.loads(again.stdout) == json.loads(ended.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_workers(number: int, study_file: Write, url: str) -> None:
    path = study_file()
    words = ["run", str(path), "--storage", url, "--workers", "2", "--trials", "100000"]
    child = subprocess.Popen([*INTERRUPTIBLE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    names: set[str] = set()
    for _ in range(600):
        if Path(url.removeprefix("sqlite:///")).exists():
            names = set(workers_of(path, url))
        if len(names) == 2:
            break
        time.sleep(0.2)
    assert len(names) == 2
    os.kill(child.pid, number)
    out, err = child.communicate(timeout=100)
    assert (child.returncode, out) == (128 + number, "")
    _, _, continued = err.partition("Continue with: ")
    assert sorted(shlex.split(continued.splitlines()[0])) == sorted(["autodiffusion-opt", *words])
    assert "Traceback" not in err
    for worker in names:
        assert not Path(f"/proc/{worker.split(':')[1]}").exists()
    assert "RUNNING" not in {trial.state.name for trial in Study.load(path, storage=url).trials()}


@pytest.mark.slow
def test_a_mistake_is_told_once(study_file: Write, url: str) -> None:
    path = study_file(device='device = "cuda:7"')
    words = ["run", str(path), "--storage", url, "--workers", "2"]
    ended = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 2
    assert ended.stderr.count("cuda:7") == 1
    assert "Traceback" not in ended.stderr


def test_each_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [_own_device("auto", number) for number in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert _own_device("cuda:1", 0) == "cuda:1"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert _own_device("auto", 3) == "auto"


def test_workers_are_of_a_single_study(study_file: Write, url: str, call: Callable[..., Any]) -> None:
    code, _, err = call("run", study_file(), "--storage", url, "--workers", "2", "--repeats", "2")
    assert code == 2
    assert "--workers is of a single study" in err


def test_trials_that_others_measure_are_told_of_or_waited_for(study_file: Write, url: str) -> None:
    path = study_file()
    study = Study.load(path, storage=url)
    wanted = study.config.trials
    study.run(wanted - 1, progress=False)
    storage = open_storage(url)
    study_id = storage.get_study_id_from_name(study.config.name)
    elsewhere = storage.start(study_id, None)
    assert elsewhere is not None
    storage.set_trial_user_attr(elsewhere, WORKER, "elsewhere:1:1")
    with pytest.warns(UserWarning, match=r"a trial is still being measured by other workers.*--wait"):
        assert len(study.run(progress=False)) == wanted - 1
    storage.grace_period = study.storage.grace_period = -1  # type: ignore[attr-defined]  # its heartbeat stops
    assert len(study.run(progress=False, wait=True)) == wanted
