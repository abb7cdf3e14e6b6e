"""Several workers at one study: each candidate once, and whoever dies is replaced."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt import Callback, Candidate, CandidateMetric, Study, UserError, testing
from autodiffusion_opt.trials.attributes import REUSED_FROM, WORKER, candidate_of
from autodiffusion_opt.trials.claims import Claims
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.studies import find_study
from autodiffusion_opt.trials.workers import this_worker

Write = Callable[..., Path]


def history_of(study: Study) -> History:
    stored = find_study(study.storage, study.config.name)
    assert stored is not None
    return History(stored).refresh()


WORKER_SCRIPT = """
import sys, torch
from autodiffusion_opt import Study

torch.set_num_threads(1)
study = Study.load(sys.argv[1], storage=sys.argv[2])
study.problem
print("ready", flush=True)
sys.stdin.readline()
study.run()
"""


@pytest.mark.slow
def test_two_workers_at_once_measure_each_candidate_once(study_file: Write, url: str) -> None:
    """Started in the same moment on an empty database: the baselines once, no candidate measured twice."""
    path = study_file(trials="trials = 24")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER_SCRIPT, str(path), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    study = Study.load(path, storage=url)
    history = history_of(study)
    complete = [trial for trial in history.trials.values() if trial.state == TrialState.COMPLETE]
    assert {history.position(trial.number) for trial in complete} == set(range(24))
    assert not history.unfinished(TrialState.RUNNING)
    measured: dict[Candidate | None, FrozenTrial] = {}
    for trial in complete:
        if REUSED_FROM in trial.user_attrs:
            continue
        first = measured.setdefault(candidate_of(trial), trial)
        if first is not trial:  # only where both were proposed at the same instant, neither knowing of the other
            assert trial.datetime_start < first.datetime_complete  # type: ignore[operator]
    assert len({trial.user_attrs[WORKER] for trial in complete}) == 2
    assert history.given_names() == set(study.problem.baselines)
    assert len(study.run(progress=False)) == len(complete)
    assert len(study.trials()) == len(history.trials)  # nothing was left to do


@pytest.mark.slow
def test_a_worker_that_dies_while_another_runs_is_replaced_in_the_same_run(study_file: Write, url: str) -> None:
    study = Study.load(study_file(), storage=url)
    study.run(9)
    host, process, start = this_worker().rsplit(":", 2)
    dead = f"{host}:{process}:{int(start) - 1}"

    class Die(Callback):
        def finished(self, trial: FrozenTrial, history: History) -> None:
            if trial.number == 10:
                lost = Claims(History(history.study), study.problem.space.encode).take(14)
                assert lost is not None
                study.storage.set_trial_user_attr(lost.trial_id, WORKER, dead)

    assert len(study.run(progress=Die())) == 14
    assert history_of(study).settled == set(range(14))


@pytest.mark.parametrize("when", ["measuring", "between trials"])
def test_a_study_that_is_deleted_while_it_runs_is_told(when: str, url: str) -> None:
    """By the dashboard's button, or by ``rm`` between two trials of a worker."""

    def delete() -> None:
        optuna.delete_study(study_name="s", storage=open_storage(url))

    def measured(candidate: Candidate) -> float:
        if when == "measuring":
            delete()
        return testing.cost(candidate)

    class Deletes(Callback):
        def finished(self, *_: Any) -> None:
            delete()

    study = Study(
        "s",
        space={"kind": "time-steps", "steps": 4},
        objective=CandidateMetric(measured, identity="cost"),
        optimizer="random",
        trials=20,
        storage=url,
        model_info=testing.INFO,
    )
    with pytest.raises(UserError, match=r"the study 's' was deleted from storage .+ while it was run"):
        study.run(progress=Deletes() if when == "between trials" else False)
