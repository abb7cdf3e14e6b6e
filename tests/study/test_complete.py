"""A study that has all its trials prints its result from SQL; its model is not loaded, and may be gone."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from optuna.trial import FrozenTrial

from autodiffusion_opt import Study, UserError
from autodiffusion_opt.study.callback import Callback
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.reading import read_trials
from autodiffusion_opt.zoo import EMBEDDED

Call = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]


def never(*given: object, **more: object) -> NoReturn:
    raise AssertionError("the model was to be left alone")


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    """An SQLite database, on whichever server the others are."""
    return f"sqlite:///{tmp_path}/copy.db"


def copied(stored: str, url: str) -> sqlite3.Connection:
    """A copy of an SQLite database."""
    database = sqlite3.connect(url.removeprefix("sqlite:///"))
    with sqlite3.connect(stored.removeprefix("sqlite:///")) as original:
        original.backup(database)
    return database


def test_a_complete_study_prints_its_result_though_its_model_is_gone(
    tmp_path: Path, study_text: str, url: str, call: Call
) -> None:
    shutil.copytree(EMBEDDED["digits"].pipeline, tmp_path / "model")
    path = tmp_path / "own.toml"
    path.write_text(study_text.replace('model = "digits"', 'model = "./model"'))
    words = ("run", path, "--storage", url, "--trials", 9)
    code, out, _ = call(*words)
    assert code == 0
    shutil.rmtree(tmp_path / "model")
    code, again, err = call(*words)
    assert (code, again) == (0, out)
    assert err in ("", "\n")  # rich 14.0 ends what it has not shown with an empty line
    code, _, err = call("run", path, "--storage", url, "--trials", 10)
    assert (code, "there is no folder" in err) == (2, True)


def test_a_complete_study_is_told_of_and_noted_all_the_same(
    ran: tuple[Path, str], study_file: Write, file_url: str
) -> None:
    copied(ran[1], file_url).close()
    told: list[int] = []

    class Heard(Callback):
        def started(self, config: Any, history: History, wanted: int) -> None:
            told.append(len(history.settled))

    study = Study.load(study_file(trials="trials = 12"), storage=file_url)
    results = study.run(progress=Heard())
    assert told == [14]
    assert [result.trial for result in results] == [
        result.trial for result in Study.load(ran[0], storage=file_url).run()
    ]
    assert {trial.number for trial in study.trials()} == set(range(14))


def test_a_changed_definition_is_refused_without_the_model(
    ran: tuple[Path, str], study_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autodiffusion_opt.study.run.load_problem", never)
    with pytest.raises(UserError, match=r"objective\.images: 20 -> 30"):
        Study.load(study_file(images="images = 30"), storage=ran[1]).run()
    assert len(Study.load(ran[0], storage=ran[1]).run(9)) == 14


def test_evaluations_that_failed_in_a_row_are_tried_again(ran: tuple[Path, str], file_url: str) -> None:
    """They ended the run, so the study is not complete although each position is settled."""
    with copied(ran[1], file_url) as database:
        database.execute("UPDATE trials SET state = 'FAIL' WHERE number >= 9")
        database.execute("DELETE FROM trial_values WHERE trial_id IN (SELECT trial_id FROM trials WHERE number >= 9)")
        database.execute(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) "
            "SELECT trial_id, 'evaluation_failed', 'true' FROM trials WHERE number >= 9"
        )
    study = Study.load(ran[0], storage=file_url)
    study.run()
    assert len(study.trials()) > 14


def test_the_trials_of_a_complete_study_are_read_once(
    ran: tuple[Path, str], file_url: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with copied(ran[1], file_url) as database:
        fill(database, 1000)
    monkeypatch.setattr("autodiffusion_opt.study.run.load_problem", never)
    reads: list[int] = []

    def counted(*asked: Any) -> list[FrozenTrial]:
        trials = read_trials(*asked)
        reads.append(len(trials))
        return trials

    monkeypatch.setattr("autodiffusion_opt.trials.sql.read_trials", counted)
    code, out, _ = call("run", ran[0], "--storage", file_url, "--trials", 1000, "--json")
    assert (code, json.loads(out)["trials"]) == (0, 1000)
    assert sum(reads) < 1000 + 50  # and those that are shown


def fill(database: sqlite3.Connection, count: int) -> None:
    """Copies of the last trial, until there are ``count``, with other times."""
    last, number = database.execute("SELECT trial_id, number FROM trials ORDER BY number DESC LIMIT 1").fetchone()
    (candidate,) = database.execute(
        "SELECT value_json FROM trial_user_attributes WHERE trial_id = ? AND key = 'candidate'", (last,)
    ).fetchone()
    times = [step["time"] for step in json.loads(json.loads(candidate))["steps"]]
    for index in range(1, count - number):
        trial = last + index
        database.execute(
            "INSERT INTO trials SELECT ?, ?, study_id, state, datetime_start, datetime_complete FROM trials "
            "WHERE trial_id = ?",
            (trial, number + index, last),
        )
        database.execute(
            "INSERT INTO trial_values (trial_id, objective, value, value_type) "
            "SELECT ?, objective, value + ?, value_type FROM trial_values WHERE trial_id = ?",
            (trial, index, last),
        )
        steps = [{"time": step + (index / 10_000 if step == times[0] else 0)} for step in times]
        database.execute(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) "
            "SELECT ?, key, CASE key WHEN 'candidate' THEN ? ELSE value_json END "
            "FROM trial_user_attributes WHERE trial_id = ?",
            (trial, json.dumps(json.dumps({"format": 1, "steps": steps})), last),
        )
        database.execute(
            "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
            "SELECT ?, param_name, param_value, distribution_json FROM trial_params WHERE trial_id = ?",
            (trial, last),
        )
