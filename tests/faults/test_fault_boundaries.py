"""A worker that is killed just before or just after any commit of a run loses nothing, and nothing is counted twice."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import sqlalchemy
from faults.conftest import MakeDatabase
from faults.quick_study import FORK, history_of, study_of
from optuna.trial import TrialState

from autodiffusion_opt.trials.attributes import candidate_of

WHOLE = 10


def die_at(url: str, trials: int, optimizer: str, boundary: int, when: str) -> None:
    """Run the study, and be killed before or after a commit; exit code 0 where there are fewer that write."""
    study = study_of(url, trials, optimizer=optimizer)
    count, is_written = 0, False

    def on_execute(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        nonlocal is_written
        is_written |= statement.lstrip().startswith(("INSERT", "UPDATE", "DELETE"))

    def on_commit(session: Any) -> None:
        nonlocal count, is_written
        if when == "before":
            session.flush()
        count, is_written = count + is_written, False
        if count == boundary:
            os.kill(os.getpid(), signal.SIGKILL)

    sqlalchemy.event.listen(study.storage.engine, "before_cursor_execute", on_execute)
    sqlalchemy.event.listen(study.storage.scoped_session, f"{when}_commit", on_commit)
    study.run(progress=False)


def sequence(study: Any, trials: int) -> list[tuple[str | None, list[float] | None]]:
    """Candidate and values of each position; every position must be complete once, and no trial unfinished."""
    history = history_of(study)
    complete = {
        history.position(trial.number): trial for trial in history.trials.values() if trial.state == TrialState.COMPLETE
    }
    states = [trial.state for trial in history.trials.values()]
    assert states.count(TrialState.COMPLETE) == len(complete) == trials
    assert not {TrialState.RUNNING, TrialState.WAITING} & set(states[:trials])
    study.storage.close()
    return [(str(candidate_of(complete[position])), complete[position].values) for position in range(trials)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("optimizer", ["local", "nevergrad:OnePlusOne"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("begun", "trials"), [(0, 1), (WHOLE - 2, WHOLE)], ids=["first", "last"])
def test_fault_at_every_commit(make_database: MakeDatabase, when: str, optimizer: str, begun: int, trials: int) -> None:
    whole = study_of(make_database(None), trials, optimizer=optimizer)
    whole.run(progress=False)
    expected = sequence(whole, trials)
    before = study_of(make_database(None), max(begun, 1), optimizer=optimizer)
    if begun:
        before.run(progress=False)
        before.storage.close()
    for boundary in range(1, 1000):
        url = make_database(before.url if begun else None)
        process = FORK.Process(target=die_at, args=(url, trials, optimizer, boundary, when))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:
            break
        resumed = study_of(url, trials, optimizer=optimizer)
        resumed.run(progress=False)
        assert sequence(resumed, trials) == expected, f"killed {when} commit {boundary}"
    assert boundary > 10  # the events were heard
