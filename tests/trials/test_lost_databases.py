"""A database that is gone, full, replaced or damaged: what is waited for, what is said, and that nothing is lost."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from autodiffusion_opt import UserError
from autodiffusion_opt.trials import database, opening, sql
from autodiffusion_opt.trials import storage as storage_room
from autodiffusion_opt.trials.attributes import SCORE, WORKER
from autodiffusion_opt.trials.opening import close_all, open_storage
from autodiffusion_opt.trials.sql import SqlStorage
from autodiffusion_opt.trials.studies import create_study
from autodiffusion_opt.trials.workers import this_worker

MINIMIZE = optuna.study.StudyDirection.MINIMIZE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "studies.db"


@pytest.fixture
def storage(file: Path) -> SqlStorage:
    opened = open_storage(f"sqlite:///{file}")
    assert isinstance(opened, SqlStorage)
    return opened


@pytest.fixture
def study(storage: SqlStorage) -> optuna.Study:
    return create_study(storage, "s", {"value": MINIMIZE})


@pytest.fixture
def started(study: optuna.Study, storage: SqlStorage) -> int:
    """The id of a running trial."""
    trial_id = storage.start(study._study_id, None)
    assert trial_id is not None
    return trial_id


def lost(message: str = "database is locked") -> sqlalchemy.exc.OperationalError:
    return sqlalchemy.exc.OperationalError("BEGIN IMMEDIATE", {}, sqlite3.OperationalError(message))


@pytest.fixture
def fail_at(storage: SqlStorage, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], list[int]]:
    """The next so many transactions lose the database, before or after they are written; how many there were."""

    def fail_next(when: str, times: int) -> list[int]:
        count = [0]
        made = sql._create_scoped_session
        monkeypatch.setattr(storage_room, "FIRST_PAUSE", 0.001)

        class Losing:
            def __init__(self, *arguments: Any) -> None:
                self._session = made(*arguments)

            def __enter__(self) -> Any:
                return self._session.__enter__()

            def __exit__(self, *error: Any) -> Any:
                count[0] += 1
                if when == "before" and count[0] <= times:
                    self._session.__exit__(ValueError, ValueError("rolled back"), None)
                    raise lost()
                result = self._session.__exit__(*error)
                if count[0] <= times:
                    raise lost()
                return result

        for module in (sql, optuna.storages._rdb.storage):
            monkeypatch.setattr(module, "_create_scoped_session", Losing)
        storage.patience = 30.0
        return count

    return fail_next


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_trial_starts_once_though_the_answer_is_lost(
    when: str, study: optuna.Study, storage: SqlStorage, fail_at: Callable[[str, int], list[int]]
) -> None:
    fail_at(when, 1)
    with pytest.warns(UserWarning, match="is gone: database is locked. Waiting for it, up to 30 s|is back after"):
        started = storage.start(study._study_id, None)
    (trial,) = study.get_trials(deepcopy=False)
    assert (trial._trial_id, trial.state) == (started, TrialState.RUNNING)
    assert trial.user_attrs == {WORKER: this_worker()}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_waiting_trial_is_enqueued_and_started_once(
    when: str, study: optuna.Study, storage: SqlStorage, fail_at: Callable[[str, int], list[int]]
) -> None:
    template = optuna.trial.create_trial(state=TrialState.WAITING, user_attrs={"baseline": "own"})
    fail_at(when, 1)
    with pytest.warns(UserWarning, match="is gone|is back"):
        storage.enqueue_once(study._study_id, template, "baseline", 0)
    (waiting,) = study.get_trials(deepcopy=False)
    fail_at(when, 1)
    with pytest.warns(UserWarning, match="is gone|is back"):
        assert storage.start(study._study_id, waiting._trial_id) == waiting._trial_id
    (trial,) = study.get_trials(deepcopy=False)
    assert (trial.state, trial.user_attrs[WORKER]) == (TrialState.RUNNING, this_worker())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_measured_value_is_kept_until_it_is_written(
    when: str, study: optuna.Study, storage: SqlStorage, started: int, fail_at: Callable[[str, int], list[int]]
) -> None:
    fail_at(when, 3)
    with pytest.warns(UserWarning, match="is gone|is back"):
        assert storage.set_trial_state_values(started, TrialState.COMPLETE, [2.5])
    (trial,) = study.get_trials(deepcopy=False)
    assert (trial.state, trial.values) == (TrialState.COMPLETE, [2.5])
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_state_values(started, TrialState.COMPLETE, [3.5])


def finish_with_score(storage: SqlStorage, trial_id: int) -> None:
    with storage.together():
        storage.set_trial_user_attr(trial_id, SCORE, {"images": 9})
        assert storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [2.5])
        assert SCORE not in storage.get_trial(trial_id).user_attrs


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_trials_score_and_its_last_state_are_one_transaction(
    when: str, study: optuna.Study, storage: SqlStorage, started: int, fail_at: Callable[[str, int], list[int]]
) -> None:
    count = fail_at(when, 1)
    with pytest.warns(UserWarning, match="is gone|is back"):
        finish_with_score(storage, started)
    assert count == [2]
    (trial,) = study.get_trials(deepcopy=False)
    assert (trial.state, trial.values, trial.user_attrs[SCORE]) == (TrialState.COMPLETE, [2.5], {"images": 9})


def test_what_is_written_of_a_trial_that_another_worker_finished_is_refused_whole(
    study: optuna.Study, storage: SqlStorage, started: int, fail_at: Callable[[str, int], list[int]]
) -> None:
    storage.set_trial_state_values(started, TrialState.FAIL)
    fail_at("before", 1)  # the second attempt knows that the first may have been written
    with pytest.warns(UserWarning, match="is gone"), pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        finish_with_score(storage, started)
    (trial,) = study.get_trials(deepcopy=False)
    assert (trial.state, trial.values, SCORE in trial.user_attrs) == (TrialState.FAIL, None, False)


def test_patience_ends(study: optuna.Study, storage: SqlStorage, fail_at: Callable[[str, int], list[int]]) -> None:
    fail_at("before", 1000)
    storage.patience = 0.05
    with pytest.warns(UserWarning, match="up to 0 s"), pytest.raises(UserError, match="database is locked; waited 0 s"):
        storage.start(study._study_id, None)


def test_a_database_that_is_waited_for_at_the_start_is_told_of_once(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    def refused(url: str) -> SqlStorage:
        attempts.append(1)
        if len(attempts) < 4:
            raise lost("database is locked")
        return SqlStorage(url)

    monkeypatch.setattr(opening, "SqlStorage", refused)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.warns(UserWarning, match="cannot be opened: database is locked. Waiting for it, up to 60 s") as told:
        open_storage(f"sqlite:///{file}", patience=60.0)
    assert (len(told), len(attempts)) == (1, 4)


def test_a_heartbeat_that_cannot_be_written_is_left_out(
    study: optuna.Study, storage: SqlStorage, started: int, fail_at: Callable[[str, int], list[int]]
) -> None:
    count = fail_at("before", 1)
    storage.record_heartbeat(started)
    assert count == [1]


def test_a_read_only_database_is_told(study: optuna.Study, storage: SqlStorage) -> None:
    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def on_connect(connection: Any, _: object) -> None:
        connection.execute("PRAGMA query_only = 1")  # as of a file that may not be written, also for root

    storage.engine.dispose()
    with pytest.raises(UserError, match=r"can only be read\. Make it writable and run the study again"):
        storage.start(study._study_id, None)


def test_a_file_that_may_not_be_written_can_be_read(
    study: optuna.Study, storage: SqlStorage, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.start(study._study_id, None)
    storage.close()
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    reading = open_storage(f"sqlite:///{file}", create=False)

    @sqlalchemy.event.listens_for(reading.engine, "connect")
    def on_connect(connection: Any, _: object) -> None:
        connection.execute("PRAGMA query_only = 1")

    reading.engine.dispose()
    assert len(reading.get_all_trials(study._study_id)) == 1


def test_a_full_disk_is_told_and_the_study_goes_on_when_there_is_room(study: optuna.Study, storage: SqlStorage) -> None:
    pages: list[str] = []

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def on_connect(connection: Any, _: object) -> None:
        used = connection.execute("PRAGMA page_count").fetchone()[0]
        pages.append(connection.execute(f"PRAGMA max_page_count = {used if not pages else 10**6}").fetchone()[0])

    storage.engine.dispose()
    with pytest.raises(UserError, match=r"its disk is full\. Make room and run the study again: it goes on"):
        storage.set_study_user_attr(study._study_id, "key", "x" * 100_000)
    storage.engine.dispose()
    started = storage.start(study._study_id, None)
    assert [trial._trial_id for trial in study.get_trials(deepcopy=False)] == [started]


def test_a_file_that_is_deleted_or_replaced_is_not_written_to(
    study: optuna.Study, storage: SqlStorage, file: Path, tmp_path: Path
) -> None:
    storage.close()
    shutil.copy(file, tmp_path / "copy.db")
    (tmp_path / "copy.db").rename(file)
    with pytest.raises(UserError, match="was replaced by another while it was open"):
        storage.start(study._study_id, None)
    file.unlink()
    with pytest.raises(UserError, match="was deleted while it was open"):
        storage.start(study._study_id, None)
    storage.close()
    assert not file.exists()


def test_the_log_of_a_file_that_was_replaced_does_not_damage_the_other(
    study: optuna.Study, storage: SqlStorage, file: Path, tmp_path: Path
) -> None:
    other = open_storage(f"sqlite:///{tmp_path}/other.db")
    create_study(other, "of the other file", {"value": MINIMIZE})
    other.close()
    for number in range(50):
        storage.set_study_user_attr(study._study_id, f"key {number}", "x" * 500)
    moved = file.rename(tmp_path / "moved.db")
    (tmp_path / "other.db").rename(file)
    with pytest.raises(UserError, match="was replaced by another while it was open"):
        storage.start(study._study_id, None)
    storage.close()
    reopened = open_storage(f"sqlite:///{file}")
    assert [each.study_name for each in reopened.get_all_studies()] == ["of the other file"]
    shutil.copy(moved, tmp_path / "alone.db")
    [kept] = open_storage(f"sqlite:///{tmp_path}/alone.db").get_all_studies()
    assert len(kept.user_attrs) == 50


def test_a_damaged_file_is_refused_before_a_study_is_run(study: optuna.Study, storage: SqlStorage, file: Path) -> None:
    for number in range(300):
        storage.set_study_user_attr(study._study_id, f"key {number}", "x" * 500)
    storage.close()
    content = bytearray(file.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 8192] = b"\xff" * 8192
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"studies.db is damaged: .+ Put back a copy"):
        open_storage(f"sqlite:///{file}")


def test_a_transaction_that_a_kill_left_half_done_is_taken_back_by_the_next_run(
    study: optuna.Study, storage: SqlStorage, file: Path, tmp_path: Path
) -> None:
    """As a kill leaves it while tables are made, before there is a write-ahead log."""
    storage.close()
    killed = tmp_path / "killed.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA cache_size = 1")  # so that pages are written before the transaction ends
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE half (done TEXT)")
        connection.executemany("INSERT INTO half VALUES (?)", [["x" * 2000]] * 50)
        for end in ("", "-journal"):
            shutil.copy(f"{file}{end}", f"{killed}{end}")
    opened = open_storage(f"sqlite:///{killed}")
    assert [each.study_name for each in opened.get_all_studies()] == ["s"]
    with closing(sqlite3.connect(killed)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'half'")
        assert tables.fetchall() == []


def test_the_file_alone_holds_all_after_closing(study: optuna.Study, storage: SqlStorage, file: Path) -> None:
    storage.start(study._study_id, None)
    assert Path(f"{file}-wal").stat().st_size > 0
    close_all()
    assert not Path(f"{file}-wal").exists()
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT COUNT(*) FROM trials").fetchone() == (1,)
    connection.close()
    storage.start(study._study_id, None)  # and it can be used again
    assert len(study.get_trials(deepcopy=False)) == 2


def test_network_file_systems_are_known(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nhost:/x {tmp_path}/far\\040away nfs4 rw 0 0\n")
    assert database.file_system(tmp_path / "near", mounts) == "ext4"
    assert database.file_system(tmp_path / "far away" / "studies.db", mounts) == "nfs4"
    assert database.file_system(tmp_path, tmp_path / "nothing") == ""


def test_a_network_file_system_is_warned_of(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "file_system", lambda path: "fuse.sshfs")
    with pytest.warns(UserWarning, match=r"network file system \(fuse.sshfs\).*use PostgreSQL"):
        open_storage(f"sqlite:///{file}")


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (lost(), True),
        (lost("disk I/O error"), False),
        (sqlalchemy.exc.IntegrityError("INSERT", {}, Exception("UNIQUE")), False),
        (optuna.exceptions.StorageInternalError("no cause"), False),
    ],
)
def test_what_may_pass_on_a_file(error: Exception, passes: bool) -> None:
    assert database.may_pass(error, "sqlite:///studies.db") is passes


def test_a_server_that_is_gone_may_be_back() -> None:
    error = sqlalchemy.exc.OperationalError("SELECT", {}, Exception("server closed the connection unexpectedly"))
    assert database.may_pass(error, "postgresql://host/name")
    wrapped = optuna.exceptions.StorageInternalError("commit")
    wrapped.__cause__ = error
    assert database.may_pass(wrapped, "postgresql://host/name")
    assert database.first_line(wrapped) == "server closed the connection unexpectedly"
