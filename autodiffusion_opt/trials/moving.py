"""Whole studies deleted, renamed, and copied to another database, each in a single transaction.

Optuna renames no study, deletes one row by row, and copies one trial by trial, with other dates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection, Table, delete, insert, select, update

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.trials.database import without_password
from autodiffusion_opt.trials.sql import SqlStorage

STUDIES: Table = models.StudyModel.__table__
TRIALS: Table = models.TrialModel.__table__
HEARTBEATS: Table = models.TrialHeartbeatModel.__table__
# What belongs to a study, and what belongs to a trial.
OF_STUDY: tuple[Table, ...] = tuple(
    model.__table__
    for model in (models.StudyDirectionModel, models.StudyUserAttributeModel, models.StudySystemAttributeModel)
)
OF_TRIAL: tuple[Table, ...] = tuple(
    model.__table__
    for model in (
        models.TrialValueModel,
        models.TrialIntermediateValueModel,
        models.TrialParamModel,
        models.TrialUserAttributeModel,
        models.TrialSystemAttributeModel,
    )
)
# Rows that are written at once.
AT_ONCE = 1000
# The heartbeat of a copied trial that runs: its worker is dead, and two databases' clocks may differ by hours.
LONG_PAST = datetime(2000, 1, 1)

Rows = Sequence[sqlalchemy.RowMapping]


@dataclass(frozen=True)
class StudyRows:
    """All that a database holds of a study, as its tables have it.

    Attributes:
        trials: in the order in which they began.
        of_study: rows of the tables in ``OF_STUDY``, in their order.
        of_trials: rows of the tables in ``OF_TRIAL``, in their order.
    """

    trials: Rows
    of_study: Mapping[Table, Rows]
    of_trials: Mapping[Table, Rows]


def read_rows(study: optuna.Study) -> StudyRows:
    """All rows of a study, as they are at one moment."""
    engine, study_id = _engine(study._storage), study._study_id
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":  # the others' transactions are so by themselves
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        trials = _read(connection, TRIALS, TRIALS.c.study_id == study_id)
        of_study = {table: _read(connection, table, table.c.study_id == study_id) for table in OF_STUDY}
        of_trials = {table: _read(connection, table, table.c.trial_id.in_(_trial_ids(study_id))) for table in OF_TRIAL}
    return StudyRows(trials, of_study, of_trials)


def copy_study(study: optuna.Study, target: BaseStorage, name: str) -> int:
    """Copy a study into another database, or the same; how many trials it has.

    An error, or an interruption, leaves nothing of the copy there.

    Args:
        study: has no worker that lives.
        target: the database.
        name: of the copy.

    Raises:
        UserError: where the target has a study of that name, cannot be written, or is no SQL database.
    """
    rows = read_rows(study)
    try:
        with _engine(target).begin() as connection:
            _write(connection, rows, name)
    except sqlalchemy.exc.IntegrityError:
        raise _has_name(target, name) from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{study.study_name!r} cannot be copied to {_shown(target)}, where nothing was changed: {reason}"
        ) from None
    return len(rows.trials)


def rename_study(study: optuna.Study, name: str) -> None:
    """Give a study another name. Raises UserError where another study has it, or the storage is no SQL database."""
    storage: Any = study._storage
    query = update(STUDIES).where(STUDIES.c.study_id == study._study_id).values(study_name=name)
    engine = _engine(storage)

    def rename(_: bool) -> None:
        try:
            with engine.begin() as connection:
                connection.execute(query)
        except sqlalchemy.exc.IntegrityError:
            raise _has_name(storage, name) from None

    storage.patiently(rename)


def delete_study(study: optuna.Study) -> None:
    """Delete a study and all its trials. Raises UserError where the storage is no SQL database."""
    storage: Any = study._storage
    engine, study_id = _engine(storage), study._study_id

    def remove(_: bool) -> None:
        with engine.begin() as connection:
            for table in (*OF_TRIAL, HEARTBEATS):
                connection.execute(delete(table).where(table.c.trial_id.in_(_trial_ids(study_id))))
            for table in (TRIALS, *OF_STUDY, STUDIES):
                connection.execute(delete(table).where(table.c.study_id == study_id))

    storage.patiently(remove)


def attributes_in_use(storage: BaseStorage, keys: Iterable[str]) -> set[str]:
    """Those of some system attributes of trials that any trial of the database has."""
    column = models.TrialSystemAttributeModel.__table__.c.key
    with _engine(storage).connect() as connection:
        return set(connection.scalars(select(column).where(column.in_(list(keys)))))


def _engine(storage: Any) -> sqlalchemy.Engine:
    if not isinstance(storage, SqlStorage):
        raise UserError(
            f"rm, rename and copy must be given SQL databases; got {type(storage).__name__}: name the database that is "
            "behind it"
        )
    engine: sqlalchemy.Engine = storage.engine
    return engine


def _shown(storage: Any) -> str:
    return without_password(str(storage.url))


def _has_name(storage: BaseStorage, name: str) -> UserError:
    return UserError(f"{_shown(storage)} must have no study {name!r} yet, and has one: give another name")


def _trial_ids(study_id: int) -> sqlalchemy.Select[Any]:
    return select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)


def _read(connection: Connection, table: Table, which: sqlalchemy.ColumnElement[bool]) -> Rows:
    """Rows in the order in which they were written, which is that of parameters and directions."""
    key = next(iter(table.primary_key))
    return connection.execute(select(table).where(which).order_by(key)).mappings().all()


def _write(connection: Connection, rows: StudyRows, name: str) -> None:
    connection.execute(insert(STUDIES).values(study_name=name))
    study_id = connection.scalars(select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)).one()
    for table, of_study in rows.of_study.items():
        _insert(connection, table, ({**row, "study_id": study_id} for row in of_study))
    _insert(connection, TRIALS, ({**row, "study_id": study_id} for row in rows.trials))
    new_ids = connection.scalars(_trial_ids(study_id).order_by(TRIALS.c.trial_id))
    ids = dict(zip((row["trial_id"] for row in rows.trials), new_ids, strict=True))
    for table, of_trials in rows.of_trials.items():
        _insert(connection, table, ({**row, "trial_id": ids[row["trial_id"]]} for row in of_trials))
    running = (row["trial_id"] for row in rows.trials if row["state"] == TrialState.RUNNING)
    _insert(connection, HEARTBEATS, ({"trial_id": ids[trial_id], "heartbeat": LONG_PAST} for trial_id in running))


def _insert(connection: Connection, table: Table, rows: Iterable[Mapping[Any, Any]]) -> None:
    """Insert rows in their order, each with a new primary key."""
    key = next(iter(table.primary_key)).name
    new = [{name: value for name, value in row.items() if name != key} for row in rows]
    for start in range(0, len(new), AT_ONCE):
        connection.execute(insert(table), new[start : start + AT_ONCE])
