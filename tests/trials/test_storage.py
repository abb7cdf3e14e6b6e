"""SQL: what cannot be opened, and workers that died."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from autodiffusion_opt import Candidate, UserError
from autodiffusion_opt import storage as storage_room
from autodiffusion_opt.trials.storage import (
    Storage,
    is_live,
    open_storage,
    recover,
    storage_url,
    this_worker,
    worker_died,
)
from autodiffusion_opt.trials.history import CANDIDATE, ERROR, RETRY_OF, WORKER

# Trials are asked for one by one here; Optuna expects its own loop.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed:UserWarning")


def encode(candidate: Candidate) -> dict[str, float]:
    return {"t1": candidate.times[0]}


def study_of(url: str) -> optuna.Study:
    return optuna.create_study(storage=open_storage(url), study_name="s", load_if_exists=True)


def test_which_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTODIFFUSION_STORAGE", "sqlite:///from-variable.db")
    assert storage_url("sqlite:///given.db") == "sqlite:///given.db"
    assert storage_url() == "sqlite:///from-variable.db"
    monkeypatch.delenv("AUTODIFFUSION_STORAGE")
    assert storage_url() == "sqlite:///studies/studies.db"


def test_the_file_and_its_folder_are_created(tmp_path: Path) -> None:
    open_storage(f"sqlite:///{tmp_path}/new/deep/studies.db")
    assert (tmp_path / "new/deep/studies.db").is_file()


def refused(url: str, tmp_path: Path) -> str:
    (tmp_path / "text.db").write_text("this is no database, but it is long enough to be looked at. " * 20)
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(UserError) as error:
        open_storage(url.format(tmp_path))
    return str(error.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("garbage", "storage must be a URL such as sqlite:///"),
        ("", "storage must be a URL such as sqlite:///"),
        ("nosuch://host/name", "nosuch"),
        ("sqlite:///{0}/text.db", "file is not a database"),
        ("sqlite:///{0}/folder.db", "unable to open"),
        ("sqlite:///{0}/text.db/below/studies.db", "cannot be created"),
        ("sqlite:////proc/nothing/studies.db", "cannot be created"),
        ("postgresql://user:secret@127.0.0.1:1/name", "cannot be opened"),
    ],
)
def test_a_url_that_cannot_be_opened(url: str, message: str, tmp_path: Path) -> None:
    text = refused(url, tmp_path)
    assert message in text
    assert "secret" not in text


def test_a_database_that_is_only_read_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; run a study first"):
        open_storage(f"sqlite:///{tmp_path}/none/studies.db", create=False)
    assert not (tmp_path / "none").exists()


def test_a_running_trial_carries_its_worker(url: str) -> None:
    study = study_of(url)
    assert study.ask().user_attrs[WORKER] == this_worker()
    study.enqueue_trial({"t1": 3})
    waited = study.ask().number
    assert study.trials[waited].user_attrs[WORKER] == this_worker()


def test_transactions_begin_with_the_lock(url: str) -> None:
    storage = open_storage(url)
    with storage.engine.begin() as connection:
        other = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def dead_worker(script: str = "") -> str:
    """The worker's name of a process that has ended."""
    code = "from autodiffusion_opt.trials.storage import this_worker; print(this_worker())" + script
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_who_died() -> None:
    host, process, start = this_worker().rsplit(":", 2)
    assert not worker_died(this_worker())
    assert worker_died(f"{host}:{process}:{int(start) - 1}")  # the number was given to another process
    assert worker_died(dead_worker())
    assert not worker_died(f"elsewhere:{process}:{int(start) - 1}")  # nobody here can tell


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_process_that_nobody_waited_for_is_dead() -> None:
    """A killed worker stays in the table of processes until its parent asks for its exit code."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    name = f"{this_worker().rsplit(':', 2)[0]}:{child.pid}:{start}"
    try:
        assert not worker_died(name)
        os.kill(child.pid, 9)
        for _ in range(200):
            if worker_died(name):
                break
            time.sleep(0.02)
        assert worker_died(name)
    finally:
        child.kill()
        child.wait()
        assert child.stdin is not None
        child.stdin.close()


def test_a_dead_workers_trial_is_retried_once(url: str) -> None:
    study, storage = study_of(url), open_storage(url)
    lost, alive = study.ask(), study.ask()
    storage.set_trial_user_attr(lost._trial_id, CANDIDATE, Candidate.from_time_steps([7]).to_json())
    storage.set_trial_user_attr(lost._trial_id, WORKER, dead_worker())
    assert not is_live(study, storage, study.trials[0])
    assert is_live(study, storage, study.trials[1])
    assert [recover(study, storage, encode) for _ in range(3)] == [1, 0, 0]
    failed, running, retry = study.trials
    assert (failed.state, running.state, retry.state) == (TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING)
    assert failed.user_attrs[ERROR] == "its worker died"
    assert retry.user_attrs[RETRY_OF] == 0
    assert retry.user_attrs[CANDIDATE] == failed.user_attrs[CANDIDATE]
    assert retry.system_attrs["fixed_params"] == {"t1": 7.0}
    assert running.number == alive.number


def test_one_that_died_before_it_had_a_candidate(url: str) -> None:
    study, storage = study_of(url), open_storage(url)
    storage.set_trial_user_attr(study.ask()._trial_id, WORKER, dead_worker())
    assert recover(study, storage, encode) == 1
    assert study.trials[1].user_attrs == {RETRY_OF: 0}


def test_a_worker_elsewhere_is_dead_without_a_heartbeat(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study, storage = study_of(url), open_storage(url)
    trial = study.ask()
    storage.set_trial_user_attr(trial._trial_id, WORKER, "elsewhere:1:1")
    storage.record_heartbeat(trial._trial_id)
    assert recover(study, storage, encode) == 0
    monkeypatch.setattr(storage, "grace_period", -1)  # as if two minutes had passed
    assert recover(study, storage, encode) == 1


def test_tables_that_another_process_makes_at_the_same_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PostgreSQL says it, when several workers open an empty database."""
    raced, opened = iter(range(2)), storage_room.Storage

    def late(given: str) -> Storage:
        if next(raced, None) is not None:
            raise sqlalchemy.exc.ProgrammingError("CREATE TABLE", {}, Exception('relation "studies" already exists'))
        return opened(given)

    monkeypatch.setattr(storage_room, "Storage", late)
    assert isinstance(open_storage(url), opened)
