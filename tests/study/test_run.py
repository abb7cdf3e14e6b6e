"""The study: baselines first, resumed as if nothing had happened, several workers at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from marks import slow_but
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt import Callback, Candidate, Study, UserError
from autodiffusion_opt.study import run as run_room
from autodiffusion_opt.study.config import StudyConfig
from autodiffusion_opt.trials.attributes import (
    BASELINE,
    CANDIDATE,
    DEFINITION,
    ERROR,
    ORIGIN,
    RANKING,
    REUSED_FROM,
    SCORE,
    STAGE,
    candidate_of,
    values_of,
)
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.studies import find_study

Write = Callable[..., Path]
TRIALS = 14
BASELINES = ["own", "linspace", "trailing", "quadratic", "karras", "exponential", "beta", "log-snr"]


class Stop(Callback):
    """Raises ``error`` in the middle of trial ``number``."""

    def __init__(self, number: int, error: BaseException) -> None:
        self.number, self.error = number, error
        self.current = -1

    def proposed(self, number: int, candidate: Candidate) -> None:
        self.current = number

    def progress(self, what: str, done: int, total: int) -> None:
        if self.current == self.number and 0 < done < total:
            raise self.error


class Notes(Callback):
    """What was told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def started(self, config: StudyConfig, history: History, wanted: int) -> None:
        self.told.append(f"started {wanted}")

    def proposed(self, number: int, candidate: Candidate) -> None:
        self.told.append(f"proposed {number}")

    def progress(self, what: str, done: int, total: int) -> None:
        if what == "images":
            self.told.append(f"images {done}/{total}")

    def finished(self, trial: FrozenTrial, history: History) -> None:
        self.told.append(f"finished {trial.number}")


def history_of(study: Study) -> History:
    optuna_study = find_study(study.storage, study.config.name)
    assert optuna_study is not None
    return History(optuna_study).refresh()


def sequence(study: Study) -> list[tuple[Candidate | None, tuple[float, ...] | None]]:
    """Candidate and values at each position; every position complete exactly once, nothing running or waiting."""
    history = history_of(study)
    trials = history.trials.values()
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    at = {history.position(t.number): (candidate_of(t), values_of(t)) for t in complete}
    assert len(at) == len(complete)
    assert sorted(at) == list(range(len(at)))
    return [at[position] for position in sorted(at)]


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
        assert (score["images"], score["nfe"], score["layer_runs"]) == (20, 4, 4 * 18)
        assert score["flops"] == 4 * problem.info.flops
        assert score["seconds"] > 0
        candidate = candidate_of(trial)
        assert candidate is not None
        assert problem.space.encode(candidate) == trial.params
        (again,) = problem.objective.measure(candidate)
        assert score["values"] == {"fid": trial.values[0]}
        assert again.values["fid"] == pytest.approx(trial.values[0], rel=1e-9)


def test_a_complete_study_returns_at_once(uninterrupted: Study) -> None:
    before = uninterrupted.trials()
    notes = Notes()
    results = uninterrupted.run(progress=notes)
    assert notes.told == [f"started {TRIALS}"]
    assert [result.value for result in results] == sorted(trial.values[0] for trial in before)
    assert uninterrupted.trials() == before
    assert uninterrupted.top(2) == results[:2]
    assert uninterrupted.best() == results[0]


@pytest.mark.slow
def test_more_trials_continue_the_same_sequence(uninterrupted: Study, study_file: Write, url: str) -> None:
    path = study_file()
    for wanted in (3, 9, TRIALS):
        study = Study.load(path, storage=url)
        assert len(study.run(wanted)) == wanted
    assert sequence(study) == sequence(uninterrupted)


def test_a_callback_is_told_of_trials_and_images(study_file: Write, url: str) -> None:
    notes = Notes()
    Study.load(study_file(), storage=url).run(2, progress=notes)
    each = ["proposed {}", "images 10/20", "images 20/20", "finished {}"]
    assert notes.told == ["started 2"] + [line.format(number) for number in (0, 1) for line in each]


@pytest.mark.parametrize("number", slow_but([0, 10, TRIALS - 1], 10))
def test_interrupted_and_resumed_it_is_the_uninterrupted_study(
    number: int, uninterrupted: Study, study_file: Write, url: str
) -> None:
    path = study_file()
    study = Study.load(path, storage=url)
    with pytest.raises(KeyboardInterrupt):
        study.run(progress=Stop(number, KeyboardInterrupt()))
    assert not [trial for trial in study.trials() if trial.state == TrialState.RUNNING]
    (failed,) = [trial for trial in study.trials() if trial.state == TrialState.FAIL]
    assert failed.number == number
    assert failed.user_attrs[ERROR] == "KeyboardInterrupt"
    again = Study.load(path, storage=url)
    assert len(again.run()) == TRIALS
    assert sequence(again) == sequence(uninterrupted)


@pytest.mark.slow
def test_interrupted_again_and_again_it_is_the_uninterrupted_study(
    uninterrupted: Study, study_file: Write, url: str
) -> None:
    path = study_file()
    for number in (2, 9, 10, 11):
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            Study.load(path, storage=url).run(
                progress=Stop(number, KeyboardInterrupt() if number % 2 else RuntimeError("no memory"))
            )
    study = Study.load(path, storage=url)
    study.run()
    assert sequence(study) == sequence(uninterrupted)
    assert Counter(trial.state for trial in study.trials()) == {TrialState.COMPLETE: TRIALS, TrialState.FAIL: 4}


KILLED = """
import os, signal, sys, torch
from autodiffusion_opt import Callback, Study

torch.set_num_threads(1)

class Kill(Callback):
    number = -1

    def proposed(self, number, candidate):
        self.number = number

    def progress(self, what, done, total):
        if self.number == 10:
            os.kill(os.getpid(), signal.SIGKILL)

Study.load(sys.argv[1], storage=sys.argv[2]).run(progress=Kill())
"""


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_uninterrupted_study(uninterrupted: Study, study_file: Write, url: str) -> None:
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


def test_an_equal_candidate_is_not_measured_again(study_file: Write, url: str) -> None:
    study = Study.load(study_file(steps="steps = 1"), storage=url)
    study.run(2)
    known = study.trials()[0]
    history_of(study).study.enqueue_trial(known.params)
    notes = Notes()
    study.run(3, progress=notes)
    assert not [line for line in notes.told if line.startswith("images")]
    reused = study.trials()[2]
    assert reused.user_attrs[REUSED_FROM] == 0
    assert (candidate_of(reused), reused.values) == (candidate_of(known), known.values)
    assert reused.user_attrs[ORIGIN] == "enqueued"
    assert reused.user_attrs[SCORE] == known.user_attrs[SCORE]


@pytest.mark.slow
def test_another_seed_is_a_study_of_its_own(study_file: Write, url: str) -> None:
    first, second = (Study.load(study_file(), storage=url, seed=seed) for seed in (0, 3))
    assert (first.config.name, second.config.name) == ("small", "small-seed3")
    first.run(12)
    second.run(12)
    assert sequence(first)[:8] == sequence(second)[:8]  # the baselines
    assert sequence(first)[8:] != sequence(second)[8:]


def test_a_timeout_starts_no_further_trial(study_file: Write, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study.load(study_file(), storage=url)
    study.problem  # noqa: B018  # loaded before the time runs
    now = [0.0]

    class Clock:
        sleep = staticmethod(time.sleep)

        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr(run_room, "time", Clock)

    class Slow(Callback):
        def finished(self, trial: FrozenTrial, history: History) -> None:
            now[0] += 10

    assert len(study.run(timeout=25, progress=Slow())) == 3
    assert len(study.run(timeout=0.001, progress=Slow())) == 4


def test_a_study_that_was_never_run_says_so(study_file: Write, url: str) -> None:
    study = Study.load(study_file(), storage=url)
    assert study.trials() == []
    with pytest.raises(UserError, match=r"a study in .* must be one of: .* got 'small'\. Run it first"):
        study.best()


def test_the_stored_definition_is_json(uninterrupted: Study) -> None:
    stored = find_study(uninterrupted.storage, "small")
    assert stored is not None
    definition = json.loads(json.dumps(stored.user_attrs))[DEFINITION]
    assert definition["space"]["steps"] == 4
    assert definition["pipeline"]["model"] == "digits"
    assert "device" not in definition["pipeline"]
    assert stored.metric_names == ["fid"]


JOINT = """
kind = "joint"
n_max = 72
steps_min = 3
steps_max = 5
layers = "ranked"
"""


def joint_file(study_file: Write) -> Path:
    path = study_file("joint")
    path.write_text(path.read_text().replace('kind = "time-steps"\nsteps = 4\n', JOINT))
    return path


@pytest.mark.slow
def test_the_layer_ranking_is_measured_once_and_kept(
    study_file: Write, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = joint_file(study_file)
    study = Study.load(path, storage=url)
    study.run(1)
    stored = history_of(study).study.user_attrs[RANKING]
    assert [sorted(third) for third in stored] == [list(range(18))] * 3

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the ranking was measured again")

    monkeypatch.setattr("autodiffusion_opt.sampling.ranking.rank_layers", never)
    again = Study.load(path, storage=url)
    assert [list(third) for third in again.problem.info.ranking] == stored
    assert len(again.run(2)) == 2


@pytest.mark.slow
def test_the_stage_of_a_search_in_stages_is_kept(study_file: Write, url: str) -> None:
    study = Study.load(joint_file(study_file), storage=url)
    study.run(TRIALS)
    stages = [trial.user_attrs.get(STAGE) for trial in study.trials()]
    baselines = len([trial for trial in study.trials() if BASELINE in trial.user_attrs])
    assert stages[:baselines] == [None] * baselines
    assert set(stages[baselines:]) <= {"times", "joint 50%", "joint 100%"}
    assert stages[-1] is not None
    assert all(ORIGIN in trial.user_attrs and CANDIDATE in trial.user_attrs for trial in study.trials())


@pytest.mark.slow
def test_memory_is_the_same_for_any_number_of_images() -> None:
    """Peak resident memory of 500 and of 20,000 images, in processes of their own."""
    script = (
        "import resource, sys, torch; torch.set_num_threads(1)\n"
        "from autodiffusion_opt import Candidate\n"
        "from autodiffusion_opt.study.config import load_study_config\n"
        "from autodiffusion_opt.study.problem import load_problem\n"
        "problem = load_problem(load_study_config('digits-4', ['objective=digits-fid']))\n"
        "list(problem.objective.measure(Candidate.from_time_steps([926, 153]), images=int(sys.argv[1])))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = [
        int(subprocess.run([sys.executable, "-c", script, count], capture_output=True, text=True, check=True).stdout)
        for count in ("500", "20000")
    ]
    assert peaks[1] < peaks[0] + 20_000  # kilobytes; the images alone would be 5 MB as float32, features 5 MB
