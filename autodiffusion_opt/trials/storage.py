"""Opens SQL databases: SQLite (the default), PostgreSQL or MySQL, always through Optuna's RDBStorage.

The only room that touches names which Optuna keeps private. Two things are added to its storage. SQLite transactions
begin with a write lock, since deferred ones hand one waiting trial to two workers. And a running trial carries its
worker, so that a trial whose process died on this machine is known to be dead at once; on other machines, the heartbeat
tells.
"""

from __future__ import annotations

import os
import random
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.errors import UserError, reason_of, unknown, unknown_text
from autodiffusion_opt.text import HIDDEN, quoted
from autodiffusion_opt.trials.attributes import CONSTRAINTS, ERROR, WORKER
from autodiffusion_opt.trials.workers import GRACE_SECONDS, HEARTBEAT_SECONDS, this_worker

DEFAULT_URL = "sqlite:///studies/studies.db"
VARIABLE = "AUTODIFFUSION_STORAGE"
KINDS = ("sqlite", "postgresql", "mysql+pymysql")
# What opening a database raises beside SQLAlchemy's own errors: of drivers, of arguments after ``?``, of paths.
UNOPENED = (ImportError, RuntimeError, ValueError, TypeError, AttributeError, KeyError, OSError)
DRIVERS = "For postgresql:// that is: pip install 'psycopg[binary]'; for mysql+pymysql://: pip install pymysql"


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
        if template_trial is None:
            template_trial = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={WORKER: this_worker()})
        return super()._create_new_trial(study_id, template_trial)

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
        UserError: for text that is no URL, or a database that cannot be opened.
    """
    parsed = checked_url(url)
    if parsed.get_backend_name() == "sqlite":
        _prepare_file(url, Path(str(parsed.database)), create)
    last: Exception | None = None
    for _ in range(20):  # the first use of an empty database by several processes is a race
        try:
            return Storage(url)
        except (
            sqlalchemy.exc.SQLAlchemyError,
            optuna.exceptions.StorageInternalError,
            *UNOPENED,
        ) as error:
            last = error
            text = str(error).lower()
            if not any(part in text for part in ("already exists", "locked", "unique", "duplicate")):
                break
            time.sleep(random.random() * 0.2)
    hint = f" {DRIVERS}" if "DB access module" in str(last) else ""
    assert last is not None
    raise UserError(f"storage {without_password(url)} cannot be opened: {reason_of(last)}{hint}") from None


def checked_url(url: str) -> sqlalchemy.URL:
    """The parts of a storage's URL. Raises UserError for text that is none, or that no database can be opened by."""
    try:
        parsed = sqlalchemy.engine.make_url(url)
        parsed.get_dialect()
    except sqlalchemy.exc.NoSuchModuleError:
        kind = url.partition(":")[0]
        raise UserError(f"storage: {unknown_text('the kind of database', kind, KINDS)}") from None
    except (sqlalchemy.exc.ArgumentError, *UNOPENED):
        given = quoted(without_password(url))
        raise UserError(
            f"storage must be a URL such as {DEFAULT_URL} or postgresql://user@host/name; got {given}"
        ) from None
    if HIDDEN.search(url):
        raise UserError(
            f"storage: a URL must not hold characters that are not printed; got {quoted(without_password(url))}"
        )
    is_memory = parsed.database in (None, "", ":memory:") or "memory" in (
        parsed.query.get("mode"),
        parsed.query.get("vfs"),
    )
    if parsed.get_backend_name() == "sqlite" and is_memory:
        raise UserError(
            f"storage: SQLite in memory forgets a study when its run ends; name a file, as {DEFAULT_URL} does"
        )
    return parsed


def without_password(url: str) -> str:
    """The URL with ``***`` where a password is, or would be if it were a URL."""
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return re.sub(r"(//[^:/@]*:).*@", r"\1***@", url)


def _prepare_file(url: str, path: Path, create: bool) -> None:
    try:
        if path.is_file():
            return
        if not create:
            raise UserError(f"storage {url} does not exist; run a study first, or name another with --storage")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"storage {url} cannot be created: {reason_of(error)}: {path.parent}") from None


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


def new_trials(study: optuna.Study, unfinished: set[int], last_id: int) -> list[FrozenTrial]:
    """The trials whose ids are above ``last_id`` or among ``unfinished``; all of them where it is no SQL storage."""
    if not isinstance(study._storage, Storage):
        return study._storage.get_all_trials(study._study_id, deepcopy=False)
    return study._storage._get_trials(
        study._study_id, states=None, included_trial_ids=unfinished, trial_id_greater_than=last_id
    )


def start_trial(study: optuna.Study, waiting: FrozenTrial | None) -> int | None:
    """Start a waiting trial, or a new one; its id, or None where another worker was faster."""
    if waiting is None:
        return study._storage.create_new_trial(study._study_id)
    try:
        started = study._storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)
    except optuna.exceptions.UpdateFinishedTrialError:
        return None
    return waiting._trial_id if started else None


def set_attributes(study: optuna.Study, trial: FrozenTrial, attributes: dict[str, Any]) -> None:
    """Write user attributes of a running trial, in their order; the pruner sees them in ``trial`` itself."""
    for key, value in attributes.items():
        study._storage.set_trial_user_attr(trial._trial_id, key, value)
        trial.user_attrs[key] = value


def set_constraints(study: optuna.Study, trial: optuna.Trial, constraints: Mapping[str, float]) -> None:
    """Tell Optuna of a running trial's constraints, each kept where it is 0 or less; and the dashboard, as a list.

    Args:
        study: of the trial.
        trial: is running.
        constraints: by name; not NaN.
    """
    if constraints:
        study._storage.set_trial_system_attr(trial._trial_id, CONSTRAINTS, list(constraints.values()))
        for name, value in constraints.items():
            trial.set_constraint(name, value)


def fail(study: optuna.Study, trial_id: int, reason: str) -> None:
    """Mark a trial as failed, with the reason; nothing happens to a trial that is finished."""
    try:
        study._storage.set_trial_user_attr(trial_id, ERROR, reason)
        study._storage.set_trial_state_values(trial_id, state=TrialState.FAIL)
    except optuna.exceptions.UpdateFinishedTrialError:
        return


def stale_trial_ids(study: optuna.Study) -> set[int]:
    """Running trials whose heartbeat stopped; by the database's own clock."""
    storage: Any = study._storage
    return set(storage._get_stale_trial_ids(study._study_id))


def record_heartbeat(study: optuna.Study, trial_id: int) -> None:
    """Tell SQL that the trial is being worked at."""
    storage: Any = study._storage
    storage.record_heartbeat(trial_id)


def create_study(storage: Storage, name: str, directions: dict[str, StudyDirection]) -> optuna.Study:
    """The Optuna study of a name, created if need be; several processes may do so at once.

    Args:
        storage: the database.
        name: of the study.
        directions: of each named value.
    """
    for attempt in range(10):
        try:
            study = optuna.create_study(
                storage=storage, study_name=name, directions=list(directions.values()), load_if_exists=True
            )
            return _without_cache(study, storage)
        except (optuna.exceptions.StorageInternalError, optuna.exceptions.DuplicatedStudyError):
            if attempt == 9:
                raise
            time.sleep(0.1)
    raise AssertionError("not reached")


def set_value_names(study: optuna.Study, names: Sequence[str]) -> None:
    """Name the study's values, as the dashboard's axes show them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(names))


def value_names(study: optuna.Study) -> list[str]:
    """The names of the study's values; ``value`` for one of another program."""
    names = study.metric_names
    if names:
        return list(names)
    count = len(study.directions)
    return ["value"] if count == 1 else [f"value {index + 1}" for index in range(count)]


def find_study(storage: Storage, name: str) -> optuna.Study | None:
    """The Optuna study of a name, if it is there."""
    if name not in optuna.get_all_study_names(storage):
        return None
    return _without_cache(optuna.load_study(study_name=name, storage=storage), storage)


def _without_cache(study: optuna.Study, storage: Storage) -> optuna.Study:
    """Optuna puts a cache before the storage, which sorts all trials whenever it is asked; History is read instead."""
    study._storage = storage
    return study


def need_study(storage: Storage, name: str) -> optuna.Study:
    """The Optuna study of a name. Raises UserError, listing those there are."""
    study = find_study(storage, name)
    if study is None:
        where = without_password(str(storage.url))
        raise UserError(f"{unknown(f'a study in {where}', name, optuna.get_all_study_names(storage))} Run it first.")
    return study


def begin_trial(study: optuna.Study, trial_id: int, distributions: dict[str, BaseDistribution]) -> optuna.Trial:
    """A running trial with all its parameters: what ``study.ask`` does once it has a trial."""
    study._thread_local.cached_all_trials = None  # what samplers read is read anew for each trial
    trial = optuna.trial.Trial(study, trial_id)
    for name, distribution in distributions.items():
        trial._suggest(name, distribution)
    return trial
