"""What is set of running trials, written to Optuna's tables in few statements.

Each of Optuna's own calls reads the trial again, while SQLite is locked for all other workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Table, select, update
from sqlalchemy.dialects import mysql, postgresql, sqlite

from autodiffusion_opt.trials.reading import PARAMETERS, TRIALS, VALUES


@dataclass(frozen=True)
class Attribute:
    """A user or system attribute, whose table it is; a later one of the same key takes its place."""

    table: Table
    trial_id: int
    key: str
    value: Any


@dataclass(frozen=True)
class Parameter:
    """A parameter's value, in the distribution's internal representation."""

    trial_id: int
    name: str
    value: float
    distribution: BaseDistribution


@dataclass(frozen=True)
class Finish:
    """A trial's last state, and its values."""

    trial_id: int
    state: TrialState
    values: tuple[float, ...] | None


Write = Attribute | Parameter | Finish


def write(session: Any, writes: Sequence[Write]) -> None:
    """Write all within the session's transaction. What is there already is written again.

    Raises:
        KeyError: where there is no such trial.
        UpdateFinishedTrialError: where a trial has finished.
        ValueError: for a parameter whose distribution does not go together with that of trials before.
    """
    studies = _studies_of(session, {each.trial_id for each in writes})
    parameters = [each for each in writes if isinstance(each, Parameter)]
    _check_distributions(session, {(studies[each.trial_id], each.name): each.distribution for each in parameters})
    _put(
        session,
        PARAMETERS,
        ("trial_id", "param_name"),
        [
            {
                "trial_id": each.trial_id,
                "param_name": each.name,
                "param_value": each.value,
                "distribution_json": distribution_to_json(each.distribution),
            }
            for each in parameters
        ],
    )
    attributes = [each for each in writes if isinstance(each, Attribute)]
    for table in dict.fromkeys(each.table for each in attributes):
        latest = {(each.trial_id, each.key): json.dumps(each.value) for each in attributes if each.table is table}
        rows = [{"trial_id": trial_id, "key": key, "value_json": text} for (trial_id, key), text in latest.items()]
        _put(session, table, ("trial_id", "key"), rows)
    for finish in writes:
        if isinstance(finish, Finish):
            _finish(session, finish)


def _studies_of(session: Any, trial_ids: Iterable[int]) -> dict[int, int]:
    """The study of each trial, which must be there and unfinished; the trials are locked where the database can."""
    studies = {}
    for trial_id in sorted(trial_ids):
        columns = (TRIALS.c.study_id, TRIALS.c.number, TRIALS.c.state)
        row = session.execute(select(*columns).where(TRIALS.c.trial_id == trial_id).with_for_update()).one_or_none()
        if row is None:
            raise KeyError(f"there is no trial of the id {trial_id}")
        if row.state.is_finished():
            raise UpdateFinishedTrialError(f"trial {row.number} has finished and cannot be changed")
        studies[trial_id] = row.study_id
    return studies


def _check_distributions(session: Any, distributions: dict[tuple[int, str], BaseDistribution]) -> None:
    """That trials before have compatible ones, as Optuna asks for."""
    for (study_id, name), distribution in distributions.items():
        of_study = (TRIALS.c.study_id == study_id) & (PARAMETERS.c.param_name == name)
        query = select(PARAMETERS.c.distribution_json).join(TRIALS).where(of_study).limit(1)
        before = session.execute(query).scalar()
        if before is not None and before != distribution_to_json(distribution):
            check_distribution_compatibility(json_to_distribution(before), distribution)


def _finish(session: Any, finish: Finish) -> None:
    values = [models.TrialValueModel.value_to_stored_repr(value) for value in finish.values or ()]
    _put(
        session,
        VALUES,
        ("trial_id", "objective"),
        [
            {"trial_id": finish.trial_id, "objective": index, "value": value, "value_type": kind}
            for index, (value, kind) in enumerate(values)
        ],
    )
    now = datetime.now(UTC).replace(tzinfo=None)  # as Optuna keeps times
    last = {"state": finish.state, "datetime_complete": now}
    session.execute(update(TRIALS).where(TRIALS.c.trial_id == finish.trial_id).values(last))


def _put(session: Any, table: Table, keys: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """Insert rows, each of which takes the place of that with the same keys."""
    if rows:
        columns = [name for name in rows[0] if name not in keys]
        session.execute(insert_or_replace(table, keys, columns, session.get_bind().dialect.name), rows)


def insert_or_replace(table: Table, keys: Sequence[str], columns: Sequence[str], dialect: str) -> Any:
    """A statement that inserts a row, or sets its columns where a row with its keys is there.

    Args:
        table: of the rows.
        keys: whose values no two rows share.
        columns: the others that are set.
        dialect: the name of the database's kind, as SQLAlchemy has it.
    """
    statement: Any
    if dialect in ("mysql", "mariadb"):
        statement = mysql.insert(table)
        return statement.on_duplicate_key_update({name: statement.inserted[name] for name in columns})
    statement = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    new = {name: statement.excluded[name] for name in columns}
    return statement.on_conflict_do_update(index_elements=list(keys), set_=new)
