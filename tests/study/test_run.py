"""The study: baselines first, resumed as if nothing had happened, several workers at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt import Candidate, Study, UserError
from autodiffusion_opt import study as rooms
from autodiffusion_opt.study.config import StudyConfig
from autodiffusion_opt.study.run import Watch
from autodiffusion_opt.trials.history import BASELINE, CANDIDATE, ERROR, REUSED_FROM, SCORE, candidate_of, positions, value_of

Write = Callable[..., Path]
TRIALS = 14
BASELINES = ["leading", "linspace", "trailing", "quadratic", "karras", "exponential", "beta", "log-snr"]


class Stop(Watch):
    """Raises ``error`` in the middle of trial ``number``."""

    def __init__(self, number: int, error: BaseException) -> None:
        self.number, self.error = number, error
        self.now = -1

    def proposed(self, number: int, candidate: Candidate) -> None:
        self.now = number

    def images(self, done: int, of: int) -> None:
        if self.now == self.number and 0 < done < of:
            raise self.error


class Notes(Watch):
    """What was told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def started(self, plan: StudyConfig, trials: list[FrozenTrial], wanted: int) -> None:
        self.told.append(f"started {wanted}")

    def proposed(self, number: int, candidate: Candidate) -> None:
        self.told.append(f"proposed {number}")

    def images(self, done: int, of: int) -> None:
        self.told.append(f"images {done}/{of}")

    def finished(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> None:
        self.told.append(f"finished {trial.number}")


def sequence(study: Study) -> list[tuple[Candidate | None, float | None]]:
    """Candidate and value at each position; every position complete exactly once, nothing running or waiting."""
    trials = study.trials()
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    placed = positions(trials)
    found = {placed[t.number]: (candidate_of(t), value_of(t)) for t in trials if t.state == TrialState.COMPLETE}
    assert len(found) == sum(trial.state == TrialState.COMPLETE for trial in trials)
    assert sorted(found) == list(range(len(found)))
    return [found[position] for position in sorted(found)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, study_text: str) -> Study:
    """The small study, run at one go."""

    place = tmp_path_factory.mktemp("uninterrupted")
    (place / "small.toml").write_text(study_text)
    study = Study.load(place / "small.toml", storage=f"sqlite:///{place}/studies.db")
    study.run()
    return study


def test_baselines_come_first(uninterrupted: Study) -> None:
    trials = uninterrupted.trials()
    assert [trial.user_attrs.get(BASELINE) for trial in trials] == BASELINES + [None] * (TRIALS - len(BASELINES))
    assert trials[0].params == {"t1": 750, "t2": 500, "t3": 250, "t4": 0}
    assert len(sequence(uninterrupted)) == TRIALS


def test_a_trial_says_what_it_measured(uninterrupted: Study, problem: Any) -> None:
    for trial in uninterrupted.trials():
        score = trial.user_attrs[SCORE]
        assert (score["images"], score["nfe"], score["layer_runs"]) == (20, 4, 4 * problem.info.layers)
        assert score["seconds"] > 0
        candidate = candidate_of(trial)
        assert candidate is not None
        assert problem.space.encode(candidate) == trial.params
        assert problem.objective.score(candidate).value == pytest.approx(value_of(trial), rel=1e-9)


def test_run_again_returns_at_once(uninterrupted: Study) -> None:
    before = uninterrupted.trials()
    notes = Notes()
    done = uninterrupted.run(watch=notes)
    assert notes.told == [f"started {TRIALS}"]
    assert [trial.values[0] for trial in done] == sorted(trial.values[0] for trial in before)
    assert uninterrupted.trials() == before
    assert uninterrupted.best(2) == [(candidate_of(trial), trial.values[0]) for trial in done[:2]]


def test_more_trials_continue_the_same_sequence(uninterrupted: Study, study_file: Write, url: str) -> None:
    path = study_file()
    for wanted in (3, 9, TRIALS):
        study = Study.load(path, storage=url)
        assert len(study.run(wanted)) == wanted
    assert sequence(study) == sequence(uninterrupted)


def test_what_is_told(study_file: Write, url: str) -> None:
    notes = Notes()
    Study.load(study_file(), storage=url).run(2, watch=notes)
    each = ["proposed {}", "images 10/20", "images 20/20", "finished {}"]
    assert notes.told == ["started 2"] + [line.format(number) for number in (0, 1) for line in each]


@pytest.mark.parametrize("number", [0, 5, 10, TRIALS - 1])
def test_interrupted_and_resumed_it_is_the_uninterrupted_one(
    number: int, uninterrupted: Study, study_file: Write, url: str
) -> None:
    path = study_file()
    study = Study.load(path, storage=url)
    with pytest.raises(KeyboardInterrupt):
        study.run(watch=Stop(number, KeyboardInterrupt()))
    assert not [trial for trial in study.trials() if trial.state == TrialState.RUNNING]
    (failed,) = [trial for trial in study.trials() if trial.state == TrialState.FAIL]
    assert failed.number == number
    assert failed.user_attrs[ERROR] == "KeyboardInterrupt: "
    again = Study.load(path, storage=url)
    assert len(again.run()) == TRIALS
    assert sequence(again) == sequence(uninterrupted)


def test_interrupted_again_and_again(uninterrupted: Study, study_file: Write, url: str) -> None:
    path = study_file()
    for number in (2, 9, 10, 11):
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            Study.load(path, storage=url).run(
                watch=Stop(number, KeyboardInterrupt() if number % 2 else RuntimeError("no memory"))
            )
    study = Study.load(path, storage=url)
    study.run()
    assert sequence(study) == sequence(uninterrupted)
    assert Counter(trial.state for trial in study.trials()) == {TrialState.COMPLETE: TRIALS, TrialState.FAIL: 4}


KILLED = """
import os, signal, sys, torch
from autodiffusion_opt import Study
from autodiffusion_opt.study.run import Watch

torch.set_num_threads(1)

class Kill(Watch):
    def proposed(self, number, candidate):
        self.number = number

    def images(self, done, of):
        if self.number == 10:
            os.kill(os.getpid(), signal.SIGKILL)

Study.load(sys.argv[1], storage=sys.argv[2]).run(watch=Kill())
"""


def test_killed_and_resumed_it_is_the_uninterrupted_one(uninterrupted: Study, study_file: Write, url: str) -> None:
    path = study_file()
    # Not waited for: the dead process stays in the table of processes, as it does in a container.
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path), url])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    study = Study.load(path, storage=url)
    assert [trial.number for trial in study.trials() if trial.state == TrialState.RUNNING] == [10]
    assert len(study.run()) == TRIALS
    assert child.wait() == -signal.SIGKILL
    assert sequence(study) == sequence(uninterrupted)
    (failed,) = [trial for trial in study.trials() if trial.state == TrialState.FAIL]
    assert (failed.number, failed.user_attrs[ERROR]) == (10, "its worker died")


WORKER = """
import sys, torch
from autodiffusion_opt import Study

torch.set_num_threads(1)
study = Study.load(sys.argv[1], storage=sys.argv[2])
study.problem
print("ready", flush=True)
sys.stdin.readline()
study.run()
"""


def test_two_workers_at_once(study_file: Write, url: str) -> None:
    """Started in the same moment on an empty database: the baselines once, no candidate measured twice."""
    path = study_file(trials="trials = 24")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path), url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
    trials, placed = study.trials(), positions(study.trials())
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert {placed[trial.number] for trial in complete} == set(range(24))
    assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
    measured = Counter(candidate_of(trial) for trial in complete if REUSED_FROM not in trial.user_attrs)
    assert set(measured.values()) == {1}
    assert len({trial.user_attrs["worker"] for trial in complete}) == 2
    assert [name for name in BASELINES if name in {t.user_attrs.get(BASELINE) for t in complete}] == BASELINES
    again = Notes()
    assert len({placed[trial.number] for trial in study.run(watch=again)}) == 24
    assert again.told == ["started 24"]


def test_baselines_that_two_workers_enqueued_are_run_once(uninterrupted: Study, study_file: Write, url: str) -> None:
    """Where the database does not lock early, both see an empty study, and their trials come in turn."""
    study = Study.load(study_file(), storage=url)
    opened, space = study._open(), study.problem.space
    for name, candidate in space.baselines().items():
        for _ in range(2):
            attributes = {BASELINE: name, CANDIDATE: candidate.to_json(), "origin": "baseline"}
            opened.enqueue_trial(space.encode(candidate), user_attrs=attributes)
    study.run()
    states = [trial.state for trial in study.trials()[: 2 * len(BASELINES)]]
    assert states == [TrialState.COMPLETE, TrialState.FAIL] * len(BASELINES)
    assert sequence(study) == sequence(uninterrupted)


def test_a_trial_that_is_not_wanted_any_more_is_given_back(study_file: Write, url: str) -> None:
    """Two workers saw one trial left, and both asked for it."""
    study = Study.load(study_file(), storage=url)
    study.run(9)
    opened = study._open()
    assert study._one_trial(opened, Watch(), wanted=9) is None
    assert len(study.run(9)) == 9
    assert not [trial for trial in study.trials() if trial.state == TrialState.RUNNING]
    assert len(study.run(10)) == 10
    sequence(study)


def test_a_worker_that_dies_while_another_runs_is_replaced(study_file: Write, url: str) -> None:
    """Its trial is retried within the same run, not by the next one."""
    study = Study.load(study_file(), storage=url)
    study.run(9)

    class Die(Watch):
        def finished(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> None:
            if trial.number == 10:
                lost = opened.ask(fixed_distributions=study.problem.space.distributions())
                study.storage.set_trial_user_attr(lost._trial_id, "worker", dead)

    opened = study._open()
    host, process, start = rooms.worker_name().rsplit(":", 2)
    dead = f"{host}:{process}:{int(start) - 1}"
    with pytest.warns(UserWarning, match="Heartbeat of storage"):
        assert len(study.run(watch=Die())) == TRIALS
    assert len(sequence(study)) == TRIALS


def test_an_equal_candidate_is_not_measured_again(study_file: Write, url: str) -> None:
    """Of two steps, several of the usual schedules are the same."""
    study = Study.load(study_file(steps="steps = 1"), storage=url)
    study.run(2)
    opened = study._open()
    known = study.trials()[0]
    candidate = candidate_of(known)
    assert candidate is not None
    opened.enqueue_trial(known.params)
    notes = Notes()
    study.run(3, watch=notes)
    assert not [line for line in notes.told if line.startswith("images")]
    reused = study.trials()[2]
    assert reused.user_attrs[REUSED_FROM] == 0
    assert (candidate_of(reused), value_of(reused)) == (candidate, value_of(known))
    assert reused.user_attrs[SCORE] == known.user_attrs[SCORE]


def test_another_seed_is_a_study_of_its_own(study_file: Write, url: str) -> None:
    one, other = (Study.load(study_file(), storage=url, seed=seed) for seed in (0, 3))
    assert (one.plan.name, other.plan.name) == ("small", "small-seed3")
    one.run(12)
    other.run(12)
    first, second = sequence(one), sequence(other)
    assert first[:8] == second[:8]  # the baselines
    assert first[8:] != second[8:]


def test_timeout_starts_no_further_trial(study_file: Write, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study.load(study_file(), storage=url)
    study.problem  # noqa: B018  # loaded before the time runs
    now = [0.0]
    monkeypatch.setattr(rooms.time, "monotonic", lambda: now[0])

    class Slow(Watch):
        def finished(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> None:
            now[0] += 10

    assert len(study.run(timeout=25, watch=Slow())) == 3
    assert len(study.run(timeout=0.001, watch=Slow())) == 4


def test_nothing_was_run_yet(study_file: Write, url: str) -> None:
    study = Study.load(study_file(), storage=url)
    assert study.trials() == []
    with pytest.raises(UserError, match="'small' has no complete trial yet; run it first"):
        study.best()


def test_the_stored_definition_is_json(uninterrupted: Study) -> None:
    found = rooms.find_study(uninterrupted.storage, "small")
    assert found is not None
    assert json.loads(json.dumps(found.user_attrs))[rooms.DEFINITION]["space"]["steps"] == 4


@pytest.mark.slow
def test_memory_is_the_same_for_any_number_of_images(problem: Any) -> None:
    """Peak resident memory of 500 and of 20,000 images, in processes of their own."""
    script = (
        "import resource, sys, torch; torch.set_num_threads(1)\n"
        "from autodiffusion_opt import Candidate\n"
        "from autodiffusion_opt.study.config import load_study_config\n"
        "from autodiffusion_opt.study.problem import bind\n"
        "found = bind(load_study_config('digits-4'))\n"
        "found.objective.score(Candidate.from_time_steps([926, 153]), images=int(sys.argv[1]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = [
        int(subprocess.run([sys.executable, "-c", script, count], capture_output=True, text=True, check=True).stdout)
        for count in ("500", "20000")
    ]
    assert peaks[1] < peaks[0] + 20_000  # kilobytes; the images alone would be 5 MB as float32, features 5 MB
