"""Opens SQL databases: SQLite (the default), PostgreSQL or MySQL, always through Optuna's RDBStorage.

Two things are added. SQLite transactions begin with a write lock, since deferred ones hand one waiting trial to two
workers. And a running trial carries its worker, so that one whose process died on this machine is known to be dead at
once; on other machines, the heartbeat tells.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.trials.history import (
    CANDIDATE,
    ERROR,
    RETRY_OF,
    WORKER,
    open_positions,
    parse_candidate,
    positions,
)

DEFAULT_URL = "sqlite:///studies/studies.db"
VARIABLE = "AUTODIFFUSION_STORAGE"
DRIVERS = "For postgresql:// that is: pip install 'psycopg[binary]'; for mysql+pymysql://: pip install pymysql"
HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 120
# Attributes that a retry takes over from the trial that died.
INHERITED = (CANDIDATE, "baseline", "origin", "stage")


class Storage(RDBStorage):
    """Optuna's SQL storage, whose running trials carry their worker."""

    def __init__(self, url: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # heartbeats are marked experimental
            super().__init__(
                url,
                engine_kwargs=_engine_arguments(url),
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
            )
        if url.startswith("sqlite"):
            _lock_early(self.engine)

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """A trial that starts to run is written with its worker in the same transaction."""
        return super()._create_new_trial(study_id, template_trial or _running_template())

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """A waiting trial that starts to run gets its worker."""
        changed = super().set_trial_state_values(trial_id, state, values)
        if changed and state == TrialState.RUNNING:
            self.set_trial_user_attr(trial_id, WORKER, this_worker())
        return changed


def storage_url(given: str | None = None) -> str:
    """The URL given, else ``$AUTODIFFUSION_STORAGE``, else SQLite below the working folder."""
    return given or os.environ.get(VARIABLE) or DEFAULT_URL


def open_storage(url: str, *, create: bool = True) -> Storage:
    """The database of a URL.

    Args:
        url: ``sqlite:///path``, ``postgresql://user@host/name`` ...
        create: whether an SQLite file that is not there is created.

    Raises:
        UserError: for a URL that is none, or a database that cannot be opened.
    """
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise UserError(
            f"storage must be a URL such as {DEFAULT_URL} or postgresql://user@host/name; got {url!r}"
        ) from None
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        _prepare_file(url, Path(str(parsed.database)), create)
    last: Exception | None = None
    for _ in range(20):  # the first use of an empty database by several processes is a race
        try:
            return Storage(url)
        except (
            sqlalchemy.exc.SQLAlchemyError,
            optuna.exceptions.StorageInternalError,
            ImportError,
            RuntimeError,
        ) as error:
            last = error
            if not _may_pass(error):
                break
            time.sleep(random.random() * 0.2)
    hint = f" {DRIVERS}" if "DB access module" in str(last) else ""
    raise UserError(
        f"storage {without_password(url)} cannot be opened: {str(last).strip().splitlines()[0]}{hint}"
    ) from None


def _may_pass(error: Exception) -> bool:
    text = str(error).lower()
    return any(part in text for part in ("already exists", "locked", "unique", "duplicate"))


def without_password(url: str) -> str:
    """The URL with ``***`` where a password is."""
    return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)


def _prepare_file(url: str, path: Path, create: bool) -> None:
    if path.is_file():
        return
    if not create:
        raise UserError(f"storage {url} does not exist; run a study first, or name another with --storage")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"storage {url} cannot be created: {error.strerror}: {path.parent}") from None


def _engine_arguments(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": 60}}
    return {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 4}


def _lock_early(engine: sqlalchemy.Engine) -> None:
    """WAL, and BEGIN IMMEDIATE: no two workers read before one writes."""

    @sqlalchemy.event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @sqlalchemy.event.listens_for(engine, "begin")
    def on_begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections that were opened before the events


def this_worker() -> str:
    """host:process:start, the start so that a process number used again is not taken for the same worker."""
    return f"{socket.gethostname()}:{os.getpid()}:{_process_start(os.getpid())}"


def worker_died(worker: str) -> bool:
    """Whether a worker of this machine is gone; False where it is on another machine: nobody here can tell."""
    host, process, start = worker.rsplit(":", 2)
    return host == socket.gethostname() and _process_start(int(process)) != start


def _process_start(process: int) -> str:
    """Start time of a process in clock ticks (Linux); "alive" or "" elsewhere."""
    try:
        # Fields after the command's closing bracket; the 20th of these is the start time (proc(5)).
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        # Z, X: it ended, but its parent has not asked for the exit code yet.
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "alive"
    return "alive"


def _running_template() -> FrozenTrial:
    """A running trial with nothing but its worker."""
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=datetime.now(),
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={WORKER: this_worker()},
        system_attrs={},
        intermediate_values={},
    )


@contextmanager
def heartbeat(storage: Storage, trial_id: int) -> Iterator[None]:
    """Tell SQL, every half minute, that the trial is being worked at."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            storage.record_heartbeat(trial_id)

    storage.record_heartbeat(trial_id)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


Encode = Callable[[Candidate], dict[str, Any]]


def recover(study: optuna.Study, storage: Storage, encode: Encode, wanted: int | None = None) -> int:
    """Fail the trials whose worker died, and enqueue each position below ``wanted`` again; how many there were.

    A trial that is already finished is left alone, and one whose failure another process noticed first is retried by
    that one.
    """
    lost = [trial for trial in _running(study) if _is_dead(study, storage, trial)]
    for trial in lost:
        fail(study, trial._trial_id, "its worker died")
    retry_open(study, encode, wanted)
    return len(lost)


def fail(study: optuna.Study, trial_id: int, reason: str) -> None:
    """Mark a trial as failed, with the reason; nothing happens to one that is finished."""
    try:
        study._storage.set_trial_user_attr(trial_id, ERROR, reason)
        study._storage.set_trial_state_values(trial_id, state=TrialState.FAIL)
    except optuna.exceptions.UpdateFinishedTrialError:
        return


def retry_open(study: optuna.Study, encode: Encode, wanted: int | None = None) -> None:
    """Enqueue every position (below ``wanted``) whose trials all died, with the candidate it had, if it had one."""
    trials = study.get_trials(deepcopy=False)
    placed = positions(trials)
    for position in open_positions(trials):
        if wanted is not None and position >= wanted:
            break  # ascending; they are for a run that wants more
        tried = [trial for trial in trials if placed[trial.number] == position]
        inherited: dict[str, Any] = {RETRY_OF: position}
        for trial in tried:
            inherited |= {key: trial.user_attrs[key] for key in INHERITED if key in trial.user_attrs}
        known = CANDIDATE in inherited
        parameters = encode(parse_candidate(inherited[CANDIDATE])) if known else {}
        study.enqueue_trial(parameters, user_attrs=inherited)


def _running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _is_dead(study: optuna.Study, storage: Storage, trial: FrozenTrial) -> bool:
    worker = trial.user_attrs.get(WORKER)
    if worker is not None and worker_died(str(worker)):
        return True
    if trial._trial_id in storage._get_stale_trial_ids(study._study_id):
        return True
    started = trial.datetime_start
    return worker is None and started is not None and (datetime.now() - started).total_seconds() > GRACE_SECONDS


def is_live(study: optuna.Study, storage: Storage, trial: FrozenTrial) -> bool:
    """Whether a running trial's worker is alive, as far as can be told."""
    return trial.state == TrialState.RUNNING and not _is_dead(study, storage, trial)
