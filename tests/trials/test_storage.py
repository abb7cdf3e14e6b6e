"""SQL: what cannot be opened, locks, names of values."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from autodiffusion_opt import UserError
from autodiffusion_opt.trials import opening
from autodiffusion_opt.trials.attributes import WORKER
from autodiffusion_opt.trials.database import storage_url, without_password
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.sql import SqlStorage
from autodiffusion_opt.trials.studies import create_study, find_study, need_study, set_value_names, value_names
from autodiffusion_opt.trials.workers import this_worker

MINIMIZE = optuna.study.StudyDirection.MINIMIZE
MAXIMIZE = optuna.study.StudyDirection.MAXIMIZE


def test_the_url_given_comes_before_the_variable_and_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTODIFFUSION_STORAGE", "sqlite:///from-variable.db")
    assert storage_url("sqlite:///given.db") == "sqlite:///given.db"
    assert storage_url() == "sqlite:///from-variable.db"
    monkeypatch.delenv("AUTODIFFUSION_STORAGE")
    assert storage_url() == "sqlite:///studies/studies.db"


def test_the_file_and_its_folder_are_created(tmp_path: Path) -> None:
    open_storage(f"sqlite:///{tmp_path}/new/deep/studies.db")
    assert (tmp_path / "new/deep/studies.db").is_file()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("garbage", "storage must be a URL such as sqlite:///"),
        ("", "storage must be a URL such as sqlite:///"),
        ("nosuch://host/name", "nosuch"),
        ("postgresql://[::1", "storage must be a URL such as sqlite:///"),
        ("postgresql://host:port/name", "storage must be a URL such as sqlite:///"),
        ("sqlite:///{0}/text.db", "is damaged: file is not a database"),
        ("sqlite:///{0}/folder.db", "unable to open"),
        ("sqlite:///{0}/text.db/below/studies.db", "cannot be created"),
        ("sqlite:////proc/nothing/studies.db", "cannot be created"),
        ("postgresql://user:secret@127.0.0.1:1/name", "cannot be opened"),
    ],
)
def test_a_url_that_cannot_be_opened_is_refused_without_its_password(url: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, but it is long enough to be looked at. " * 20)
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(UserError) as error:
        open_storage(url.format(tmp_path))
    assert message in str(error.value)
    assert "secret" not in str(error.value)


def test_passwords_are_not_shown() -> None:
    assert without_password("postgresql://me:secret@host/name") == "postgresql://me:***@host/name"


def test_a_database_that_is_only_read_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; run a study first"):
        open_storage(f"sqlite:///{tmp_path}/none/studies.db", create=False)
    assert not (tmp_path / "none").exists()


def test_transactions_begin_with_the_lock(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/studies.db")
    with storage.engine.begin() as connection:
        second = sqlite3.connect(tmp_path / "studies.db", timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            second.execute("BEGIN IMMEDIATE")
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_reading_takes_no_lock(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/studies.db")
    study = create_study(storage, "s", {"value": MINIMIZE})
    with sqlite3.connect(tmp_path / "studies.db", timeout=0, isolation_level=None) as second:
        second.execute("BEGIN IMMEDIATE")
        assert storage.get_all_trials(study._study_id) == []
        assert storage.get_study_user_attrs(study._study_id) == {}
        second.execute("ROLLBACK")
    second.close()


def test_what_is_set_together_is_one_transaction(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/studies.db")
    study = create_study(storage, "s", {"value": MINIMIZE})
    trial = storage.start(study._study_id, None)
    assert trial is not None

    def stopped() -> None:
        with storage.together():
            storage.set_trial_user_attr(trial, "lost", 1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    commits: list[object] = []
    sqlalchemy.event.listen(storage.engine, "commit", commits.append)
    with storage.together():
        storage.set_trial_param(trial, "t", 0.5, optuna.distributions.FloatDistribution(0, 1))
        storage.set_trial_user_attr(trial, "a", [1])
        storage.set_trial_system_attr(trial, "b", 2)
        assert commits == []
    assert len(commits) == 1
    stored = storage.get_trial(trial)
    assert stored.params == {"t": 0.5}
    assert (stored.user_attrs, stored.system_attrs) == ({WORKER: this_worker(), "a": [1]}, {"b": 2})


def test_tables_that_another_process_makes_at_the_same_time_are_waited_for(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PostgreSQL says it, when several workers open an empty database."""
    raced, opened = iter(range(2)), opening.SqlStorage

    def late(given: str) -> SqlStorage:
        if next(raced, None) is not None:
            raise sqlalchemy.exc.ProgrammingError("CREATE TABLE", {}, Exception('relation "studies" already exists'))
        return opened(given)

    monkeypatch.setattr(opening, "SqlStorage", late)
    assert isinstance(open_storage(url), opened)


def test_a_study_is_created_once_and_refused_by_name_where_it_is_not(url: str) -> None:
    storage = open_storage(url)
    assert find_study(storage, "small") is None
    first = create_study(storage, "small", {"fid": MINIMIZE})
    assert create_study(storage, "small", {"fid": MINIMIZE})._study_id == first._study_id
    assert need_study(storage, "small").study_name == "small"
    with pytest.raises(UserError, match=r"got 'smal'\. Did you mean 'small'\? Run it first"):
        need_study(storage, "smal")


def test_values_have_names_and_directions(url: str) -> None:
    storage = open_storage(url)
    study = create_study(storage, "s", {"fid": MINIMIZE, "clip": MAXIMIZE})
    assert study.directions == [MINIMIZE, MAXIMIZE]
    assert value_names(study) == ["value 1", "value 2"]
    set_value_names(study, ["fid", "clip"])
    assert value_names(study) == ["fid", "clip"]
    assert value_names(create_study(storage, "t", {"x": MINIMIZE})) == ["value"]
