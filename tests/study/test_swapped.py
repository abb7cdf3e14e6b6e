"""One study that several optimizers go on with, each from a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState

from autodiffusion_opt.trials.attributes import OPTIMIZER, REUSED_FROM, candidate_of
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.storage import need_study, open_storage

COMMAND = (sys.executable, "-c", "from autodiffusion_opt.cli import main; main()")


def begun(path: Path, url: str, optimizer: str, trials: int) -> subprocess.Popen[str]:
    words = ("run", str(path), "--storage", url, "--optimizer", optimizer, "--trials", str(trials), "--json")
    return subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


@pytest.mark.slow
def test_three_optimizers_in_three_processes_have_one_history(study_file: Callable[..., Path], url: str) -> None:
    path = study_file()
    ended(begun(path, url, "local", 12))
    at_once = [begun(path, url, kind, 20) for kind in ("optuna:tpe", "nevergrad:CMA")]
    for process in at_once:
        ended(process)
    history = History(need_study(open_storage(url), "small")).refresh()
    complete = [trial for trial in history.trials.values() if trial.state == TrialState.COMPLETE]
    assert sorted(history.position(trial.number) for trial in complete) == list(range(20))
    measured = [candidate_of(trial) for trial in complete if REUSED_FROM not in trial.user_attrs]
    assert len(set(measured)) == len(measured)
    kinds = [trial.user_attrs.get(OPTIMIZER) for trial in complete]
    assert {"optuna:tpe", "nevergrad:CMA"} <= set(kinds)
    words = [*COMMAND, "status", "--storage", url, "--json"]
    (row,) = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert sum(row["proposed"].values()) == len([kind for kind in kinds if kind is not None])
    assert set(row["proposed"]) == {"local", "optuna:tpe", "nevergrad:CMA"}
