"""Studies deleted, renamed and copied: whole, alone, or not at all."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState
from trials.random_trials import random_study, shown

from autodiffusion_opt import UserError
from autodiffusion_opt.trials import moving
from autodiffusion_opt.trials.claims import is_alive
from autodiffusion_opt.trials.moving import copy_study, delete_study, read_rows, rename_study
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.studies import find_study, need_study, set_value_names, value_names


def named_study(url: str, seed: int = 0, values: int = 2) -> optuna.Study:
    """A study with everything that a study may have."""
    study = random_study(url, seed, values, is_bounded=True)
    set_value_names(study, [f"value {index}" for index in range(values)])
    study.set_user_attr("definition", {"é": [1, None, {"x": 1e-320}]})
    study._storage.set_study_system_attr(study._study_id, "another program's", "kept")
    return study


def rows_of(study: optuna.Study) -> dict[str, list[dict[str, Any]]]:
    """Every row of a study without its ids; of a trial's, the trial's place among its study's trials."""
    rows = read_rows(study)
    place = {row["trial_id"]: index for index, row in enumerate(rows.trials)}
    tables = {moving.TRIALS: rows.trials, **rows.of_study, **rows.of_trials}
    plain: dict[str, list[dict[str, Any]]] = {}
    for table, listed in tables.items():
        ids = {next(iter(table.primary_key)).name, "study_id", "trial_id"}
        plain[table.name] = [
            {key: value for key, value in row.items() if key not in ids}
            | ({"place": place[row["trial_id"]]} if "trial_id" in row else {})
            for row in listed
        ]
    return plain


def count_of_rows(url: str) -> int:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    tables = (moving.STUDIES, moving.TRIALS, moving.HEARTBEATS, *moving.OF_STUDY, *moving.OF_TRIAL)
    with engine.connect() as connection:
        return sum(len(connection.execute(sqlalchemy.select(table)).all()) for table in tables)


def test_a_copy_of_a_copy_in_another_database_has_every_row(url: str, tmp_path: Path) -> None:
    """Where the tests have a server, there and back again."""
    study = named_study(url)
    expected = rows_of(study)
    assert all(expected.values())
    elsewhere, back = open_storage(f"sqlite:///{tmp_path}/copy.db"), open_storage(url)
    named_study(f"sqlite:///{tmp_path}/copy.db", seed=1)  # so that ids differ
    assert copy_study(study, elsewhere, "copy") == 80
    copied = need_study(elsewhere, "copy")
    assert rows_of(copied) == expected
    copy_study(copied, back, "copy of a copy")
    again = need_study(back, "copy of a copy")
    assert rows_of(again) == expected
    assert rows_of(study) == expected
    for each in (copied, again):
        assert value_names(each) == ["value 0", "value 1"]
        assert (each.directions, each.user_attrs) == (study.directions, study.user_attrs)
        assert each._storage.get_study_system_attrs(each._study_id) == study._storage.get_study_system_attrs(
            study._study_id
        )
        assert list(map(shown, each.get_trials())) == list(map(shown, study.get_trials()))


def test_a_copied_running_trial_has_a_dead_worker_on_every_machine(url: str, tmp_path: Path) -> None:
    study = named_study(url)
    target = open_storage(f"sqlite:///{tmp_path}/copy.db")
    copy_study(study, target, "copy")
    copied = need_study(target, "copy")
    running = copied.get_trials(states=(TrialState.RUNNING,))
    assert running
    assert {trial.user_attrs["worker"] for trial in running} == {"elsewhere:1:1"}
    assert not any(is_alive(copied, trial) for trial in running)


@pytest.mark.parametrize("table", ["trials", "trial_values", "trial_heartbeats"])
def test_an_interrupted_copy_leaves_nothing_behind(table: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study, insert = named_study(url, values=1), moving.insert
    before, target = count_of_rows(url), open_storage(url)

    def interrupted(into: sqlalchemy.Table) -> Any:
        if into.name == table:
            raise KeyboardInterrupt
        return insert(into)

    monkeypatch.setattr(moving, "insert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        copy_study(study, target, "copy")
    assert find_study(target, "copy") is None
    assert count_of_rows(url) == before
    monkeypatch.undo()
    assert copy_study(study, target, "copy") == 80


COPY = """
import sys, time
import sqlalchemy
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.studies import need_study
from autodiffusion_opt.trials.moving import copy_study

source, target = map(open_storage, sys.argv[1:])

@sqlalchemy.event.listens_for(target.engine, "after_cursor_execute")
def on_execute(connection, cursor, statement, *more):
    if statement.startswith("INSERT INTO trial_params "):
        print("now", flush=True)
        time.sleep(60)

copy_study(need_study(source, "random 0"), target, "copy")
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_copy_whose_process_ends_in_a_statement_leaves_nothing_behind(
    number: signal.Signals, url: str, tmp_path: Path
) -> None:
    named_study(url)
    target = f"sqlite:///{tmp_path}/target.db" if url.startswith("sqlite") else url
    process = subprocess.Popen(
        [sys.executable, "-c", COPY, url, target], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        process.send_signal(number)
        assert process.wait(30) != 0
    assert find_study(open_storage(target), "copy") is None
    assert copy_study(need_study(open_storage(url), "random 0"), open_storage(target), "copy") == 80


def test_a_database_that_cannot_be_written_is_told_in_a_sentence(url: str) -> None:
    study = named_study(url)
    target = open_storage(url)

    @sqlalchemy.event.listens_for(target.engine, "before_cursor_execute")
    def on_execute(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if statement.startswith("INSERT INTO trials "):
            raise sqlalchemy.exc.OperationalError(statement, {}, Exception("disk is full"))

    with pytest.raises(UserError, match=r"'random 0' cannot be copied to .* nothing was changed: .*disk is full"):
        copy_study(study, target, "copy")
    assert find_study(target, "copy") is None


def test_a_name_that_is_taken_is_refused(url: str) -> None:
    study, taken = named_study(url), named_study(url, seed=1)
    before = count_of_rows(url)
    for move in (lambda: copy_study(study, open_storage(url), "random 1"), lambda: rename_study(study, "random 1")):
        with pytest.raises(UserError, match=r"must have no study 'random 1' yet, and has one: give another name"):
            move()
    assert count_of_rows(url) == before
    assert {study.study_name, taken.study_name} == {"random 0", "random 1"}


def test_a_renamed_study_has_its_rows_under_the_new_name_only(url: str) -> None:
    study = named_study(url)
    expected = rows_of(study)
    rename_study(study, "new")
    storage = open_storage(url)
    assert rows_of(need_study(storage, "new")) == expected
    assert find_study(storage, "random 0") is None


def test_a_deleted_study_leaves_no_row_and_others_as_they_are(url: str) -> None:
    kept = named_study(url)
    rows, expected = count_of_rows(url), rows_of(kept)
    gone = named_study(url, seed=1)
    gone._storage.record_heartbeat(gone.get_trials(states=(TrialState.RUNNING,))[0]._trial_id)
    assert count_of_rows(url) > rows
    delete_study(gone)
    assert count_of_rows(url) == rows
    assert rows_of(kept) == expected
    with pytest.raises(UserError, match=re.escape("got 'random 1'")):
        need_study(open_storage(url), "random 1")


def test_a_storage_that_is_no_database_is_refused(url: str) -> None:
    study, in_memory = named_study(url), optuna.create_study()
    for move in (
        lambda: rename_study(in_memory, "new"),
        lambda: delete_study(in_memory),
        lambda: copy_study(in_memory, study._storage, "new"),
        lambda: copy_study(study, in_memory._storage, "new"),
    ):
        with pytest.raises(UserError, match="must be given SQL databases; got InMemoryStorage"):
            move()
