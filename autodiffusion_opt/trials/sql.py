"""SQL: SQLite (the default), PostgreSQL or MySQL, always through Optuna's RDBStorage.

The only room that touches names which Optuna keeps private. Three things are added to its storage. What must not come
apart is one transaction: a trial starts together with its worker's name and first heartbeat, and a trial is enqueued
only if nobody has enqueued it meanwhile. A database that is gone is waited for. And its file is left whole.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sqlite3
import threading
import warnings
import weakref
from collections.abc import Callable, Container, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import mysql

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.trials import database
from autodiffusion_opt.trials.attributes import CANDIDATE, WORKER
from autodiffusion_opt.trials.reading import SYSTEM_ATTRIBUTES, USER_ATTRIBUTES, read_trial, read_trials
from autodiffusion_opt.trials.storage import Storage, patient
from autodiffusion_opt.trials.workers import GRACE_SECONDS, HEARTBEAT_SECONDS, this_worker
from autodiffusion_opt.trials.writing import Attribute, Finish, Parameter, Write, write

# A TEXT of MySQL holds 65,535 bytes: less than many prompts in a definition, or a number for each of 10,000 images.
for _column in (column for table in models.BaseModel.metadata.tables.values() for column in table.columns):
    if isinstance(_column.type, sqlalchemy.Text):
        _column.type = _column.type.with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


class SqlStorage(Storage, RDBStorage):
    """Optuna's SQL storage, which waits for a database that is gone, and is left whole."""

    errors = database.ERRORS

    def __init__(self, url: str) -> None:
        self._together: list[Write] | None = None  # what is held back to be written in one transaction
        self._now = threading.local()  # whether this thread only reads
        parsed = sqlalchemy.engine.make_url(url)
        self._file = Path(str(parsed.database)) if database.is_sqlite(parsed) else None
        # What it logs of a server that is gone is said here, in a line.
        logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # heartbeats are marked experimental
            super().__init__(
                url,
                engine_kwargs=database.engine_arguments(url),
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
            )
        if self._file is not None and os.access(self._file, os.W_OK):  # else it is only read
            database.lock_early(self.engine, lambda: getattr(self._now, "reads", False))
        self._identity = None if self._file is None else database.identity(self._file)
        weakref.finalize(self, self.engine.dispose)

    def _reach(self) -> None:
        """Raise UserError where the file is not the one that was opened: what is written would be lost."""
        if self._file is None:
            return
        now = database.identity(self._file)
        if now != self._identity:
            self._merge_opened()
            what = "was deleted" if now is None else "was replaced by another"
            raise UserError(
                f"storage {self.url} {what} while it was open. Put the file back and run the study again, or start "
                "another"
            )

    def _merge_opened(self) -> None:
        """Put the write-ahead log into the file that was opened, wherever that is now.

        SQLite finds a log by its name: it would take it for that of a file that is put in the place of the one that
        was opened, which damages that file ("Unlinking or renaming a database file while in use", in
        sqlite.org/howtocorrupt.html).
        """
        pool: Any = self.engine.pool
        if pool.checkedin():  # a connection that is opened from now on is of the other file
            connection = self.engine.raw_connection()
            with contextlib.closing(connection), contextlib.suppress(sqlite3.Error):
                connection.cursor().execute("PRAGMA busy_timeout=1000")
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _let_go(self) -> None:
        self.engine.dispose()  # of connections to a server that was stopped

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """In one transaction, that of the outermost block; nothing where an error ends it."""
        if self._together is not None:
            yield
            return
        self._together = []
        try:
            yield
            writes = self._together
        finally:
            self._together = None
        self._write(*writes)

    def _write(self, *writes: Write) -> None:
        if self._together is not None:
            self._together.extend(writes)
            return

        finishes = [write for write in writes if isinstance(write, Finish)]

        def call(may_be_written: bool) -> None:
            try:
                with _create_scoped_session(self.scoped_session) as session:
                    write(session, writes)
            except optuna.exceptions.UpdateFinishedTrialError:
                if not (may_be_written and finishes and all(map(self._is_finished, finishes))):
                    raise

        self.patiently(call)

    def _is_finished(self, finish: Finish) -> bool:
        stored = self.get_trial(finish.trial_id)
        return stored.state == finish.state and stored.values == (finish.values and list(finish.values))

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter of a running trial."""
        self._write(Parameter(trial_id, param_name, param_value_internal, distribution))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a running trial."""
        self._write(Attribute(USER_ATTRIBUTES, trial_id, key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a system attribute of a running trial."""
        self._write(Attribute(SYSTEM_ATTRIBUTES, trial_id, key, value))

    def start(self, study_id: int, trial_id: int | None) -> int | None:
        """In one transaction."""

        def call(may_be_written: bool) -> int | None:
            with _create_scoped_session(self.scoped_session) as session:
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
                if may_be_written and (started := _running_of(study_id, this_worker(), session)) is not None:
                    return int(started)
                if trial_id is None:
                    template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={WORKER: this_worker()})
                    trial = self._get_prepared_new_trial(study_id, template, session)
                else:
                    trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
                    if trial.state != TrialState.WAITING:
                        return None
                    trial.state = TrialState.RUNNING
                    trial.datetime_start = datetime.now()
                    user_attributes = models.TrialUserAttributeModel
                    self._set_trial_attr_without_commit(session, user_attributes, trial_id, WORKER, this_worker())
                session.add(models.TrialHeartbeatModel(trial_id=trial.trial_id))
                return int(trial.trial_id)

        return self.patiently(call)

    def enqueue_once(self, study_id: int, template: FrozenTrial, key: str, known: int) -> bool:
        """In one transaction."""

        def call(_: bool) -> bool:
            with _create_scoped_session(self.scoped_session) as session:
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
                if _count(study_id, key, template.user_attrs[key], session) != known:
                    return False
                self._get_prepared_new_trial(study_id, template, session)
                return True

        return self.patiently(call)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Finish a trial. An attempt whose answer was lost may have been written: that is no error."""
        if not state.is_finished():
            return self.patiently(lambda _: super(SqlStorage, self).set_trial_state_values(trial_id, state, values))
        self._write(Finish(trial_id, state, None if values is None else tuple(values)))
        return True

    def stale_trial_ids(self, study_id: int) -> set[int]:
        """By the database's own clock."""
        return set(self._get_stale_trial_ids(study_id))

    def record_heartbeat(self, trial_id: int) -> None:
        """Without waiting for a database that is gone."""
        with contextlib.suppress(*self.errors):
            RDBStorage.record_heartbeat(self, trial_id)

    def new_trials(self, study_id: int, unfinished: set[int], last_id: int) -> list[FrozenTrial]:
        """Only these are asked for."""
        return self._get_trials(study_id, None, unfinished, last_id)

    def changed(self, study_id: int, measuring: set[int], proposing: set[int]) -> set[int]:
        """In one statement, which names no trial."""
        known = measuring | proposing
        if not known:
            return set()
        trials, attributes = models.TrialModel, models.TrialUserAttributeModel
        of_candidates = (attributes.trial_id == trials.trial_id) & (attributes.key == CANDIDATE)
        query = (
            sqlalchemy.select(trials.trial_id, attributes.trial_id)
            .outerjoin(attributes, of_candidates)
            .where(trials.study_id == study_id, trials.state == TrialState.RUNNING, trials.trial_id >= min(known))
        )
        return known - {each for each, candidate in self.rows(query) if each in measuring or candidate is None}

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """A trial. Raises KeyError where there is none of that id."""

        def call(_: bool) -> FrozenTrial | None:
            with self.engine.connect() as connection:
                return read_trial(connection, trial_id)

        with self.reading():
            trial = self.patiently(call)
        if trial is None:
            raise KeyError(f"there is no trial of the id {trial_id}")
        return trial

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:

        def call(_: bool) -> list[FrozenTrial]:
            with self.engine.connect() as connection:
                return read_trials(connection, study_id, included_trial_ids, trial_id_greater_than)

        with self.reading():
            trials = self.patiently(call)
        return [trial for trial in trials if states is None or trial.state in states]

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Transactions that this thread begins meanwhile only read: on SQLite they take no lock."""
        before = getattr(self._now, "reads", False)
        self._now.reads = True
        try:
            yield
        finally:
            self._now.reads = before

    def rows(self, query: sqlalchemy.Select[Any]) -> Sequence[Any]:
        """All rows of a statement that only reads."""

        def call(_: bool) -> Sequence[Any]:
            with self.engine.connect() as connection:
                return connection.execute(query).all()

        with self.reading():
            return self.patiently(call)

    def close(self) -> None:
        """Let go of the database; of SQLite, the file alone then holds all."""
        self.remove_session()
        self.engine.dispose()
        if self._file is not None and database.identity(self._file) == self._identity:
            with contextlib.suppress(sqlite3.Error):  # another process is writing: it merges when it ends
                database.merge(self._file)


def _running_of(study_id: int, worker: str, session: Any) -> Any:
    """The id of a worker's running trial, or None."""
    attributes, trials = models.TrialUserAttributeModel, models.TrialModel
    ids = (
        session.query(trials.trial_id)
        .join(attributes)
        .filter(trials.study_id == study_id, trials.state == TrialState.RUNNING)
        .filter(attributes.key == WORKER, attributes.value_json == json.dumps(worker))
    )
    return ids.order_by(trials.trial_id.desc()).limit(1).scalar()


def _count(study_id: int, key: str, value: Any, session: Any) -> int:
    """How many trials have a value of a user attribute."""
    attributes, trials = models.TrialUserAttributeModel, models.TrialModel
    same = (
        session.query(sqlalchemy.func.count(trials.trial_id))
        .join(attributes)
        .filter(trials.study_id == study_id)
        .filter(attributes.key == key, attributes.value_json == json.dumps(value))
    )
    return int(same.scalar())


def _made_patient(name: str) -> Callable[..., Any]:
    """A method of Optuna's storage that waits for a database that is gone; those that only read take no lock."""
    call = patient(getattr(RDBStorage, name))
    reads = name.removeprefix("_").startswith("get_")

    @functools.wraps(call)
    def noted(self: SqlStorage, *arguments: Any, **keywords: Any) -> Any:
        with self.reading() if reads else contextlib.nullcontext():
            return call(self, *arguments, **keywords)

    return noted


for _name in {*BaseStorage.__abstractmethods__, "_get_stale_trial_ids"} - set(vars(SqlStorage)):
    setattr(SqlStorage, _name, _made_patient(_name))
