"""Workers that are killed at random while their database's server is stopped and started: every position once."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from faults.conftest import MakeDatabase
from faults.quick_study import history_of, start_worker, study_of
from optuna.trial import FrozenTrial, TrialState
from peers.postgres import Server

from autodiffusion_opt.study.replay import replay
from autodiffusion_opt.trials.attributes import REUSED_FROM, UNMEASURED, candidate_of

WORKERS, TRIALS, KILLS = 4, 200, 60
# Of a trial, so that there is time for all the kills.
SECONDS = 0.8
DEADLINE_SECONDS = 500.0


class Crew:
    """Workers that are started again when they are killed."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._at_work = [start() for _ in range(WORKERS)]
        self.exit_codes: list[int] = []

    def replace_ended(self) -> None:
        """Another worker for each that was killed; those that found nothing left to do stay away."""
        for worker in [worker for worker in self._at_work if worker.exitcode is not None]:
            self._at_work.remove(worker)
            self.exit_codes.append(worker.exitcode)
            if worker.exitcode == -signal.SIGKILL:
                self._at_work.append(self._start())

    def kill(self, generator: random.Random) -> None:
        """Any worker, wherever it is."""
        if self._at_work:
            generator.choice(self._at_work).kill()

    @property
    def is_at_work(self) -> bool:
        return bool(self._at_work)


def run_with_kills(start: Callable[[], Any], disturb: Callable[[int], None]) -> list[int]:
    """Exit codes of all workers, of which one is killed about every second until there were enough kills.

    Args:
        start: starts a worker.
        disturb: is given the number of kills so far, after each.
    """
    generator = random.Random(0)
    crew, kills, begun = Crew(start), 0, time.monotonic()
    while crew.is_at_work:
        assert time.monotonic() < begun + DEADLINE_SECONDS, "the study does not end"
        time.sleep(generator.uniform(0.2, 1.2))
        if kills < KILLS:
            crew.kill(generator)
            kills += 1
            disturb(kills)
        crew.replace_ended()
    assert kills == KILLS, "the study was complete too early: trials must take longer"
    return crew.exit_codes


def check_whole(study: Any) -> None:
    """Every position complete, once, and none left running."""
    history = history_of(study)
    by_state: dict[TrialState, list[FrozenTrial]] = {}
    for trial in history.trials.values():
        by_state.setdefault(trial.state, []).append(trial)
    complete = by_state[TrialState.COMPLETE]
    assert sorted(history.position(trial.number) for trial in complete) == list(range(TRIALS))
    assert TrialState.RUNNING not in by_state
    measured = [candidate_of(trial) for trial in complete if REUSED_FROM not in trial.user_attrs]
    lost = {candidate_of(trial) for trial in by_state[TrialState.FAIL]} - {None}
    assert lost <= {candidate_of(trial) for trial in complete}  # no candidate is lost
    assert len(measured) >= TRIALS - 4 * WORKERS


def start_of(url: str) -> Callable[[], Any]:
    """Starts workers of an optimizer that does not look at all the others, so that repeats are rare."""
    return lambda: start_worker(url, TRIALS, SECONDS, "random")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fault_workers_killed(make_database: MakeDatabase) -> None:
    url = make_database(None)
    codes = run_with_kills(start_of(url), lambda kills: None)
    assert set(codes) <= {0, -signal.SIGKILL}
    check_whole(study_of(url, TRIALS))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fault_workers_killed_and_the_server_stopped_and_started(server: Server) -> None:
    with sqlalchemy.create_engine(
        server.url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
    ).connect() as connection:
        connection.execute(sqlalchemy.text("CREATE DATABASE stopped"))
    url = server.url.rsplit("/", 1)[0] + "/stopped"

    def disturb(kills: int) -> None:
        if kills in (KILLS // 3, 2 * KILLS // 3):
            server.stop("fast" if kills < KILLS // 2 else "immediate")
            time.sleep(2)
            server.start()

    codes = run_with_kills(start_of(url), disturb)
    assert set(codes) <= {0, -signal.SIGKILL}
    check_whole(study_of(url, TRIALS))


@pytest.mark.slow
def test_fault_values_are_those_of_an_uninterrupted_run(make_database: MakeDatabase) -> None:
    """One worker, killed again and again: the same candidates and values, in the same order."""
    trials = 40
    whole, url = study_of(make_database(None), trials), make_database(None)
    whole.run(progress=False)
    generator = random.Random(1)
    for attempt in range(100):  # longer and longer, so that it ends on a slow machine too
        worker = start_worker(url, trials, 0.02)
        worker.join(generator.uniform(0.2, 0.7) * (1 + attempt / 20))
        worker.kill()
        worker.join()
        if worker.exitcode == 0:
            break
    broken = study_of(url, trials)
    assert worker.exitcode == 0
    assert [history_of(broken).at(position)[-1].values for position in range(trials)] == [
        history_of(whole).at(position)[-1].values for position in range(trials)
    ]
    assert [candidate_of(history_of(broken).at(position)[-1]) for position in range(trials)] == [
        candidate_of(history_of(whole).at(position)[-1]) for position in range(trials)
    ]


@pytest.mark.slow
def test_fault_proposals_of_several_workers_follow_from_what_was_complete(make_database: MakeDatabase) -> None:
    url, trials = make_database(None), 60
    workers = [start_worker(url, trials, 0.05) for _ in range(WORKERS)]
    for worker in workers:
        worker.join(120)
    study = study_of(url, trials)
    count, different = replay(study)
    assert different == []
    assert count >= trials - 10
    history = history_of(study)
    assert sum(UNMEASURED in trial.user_attrs for trial in history.trials.values()) > trials // 3  # they were at once
