"""Optuna's trials read from its tables without its object mapper, which takes most of the time of reading many."""

from __future__ import annotations

import gc
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy import ColumnElement, Connection, Table, or_, select

TRIALS: Table = models.TrialModel.__table__
VALUES: Table = models.TrialValueModel.__table__
REPORTED: Table = models.TrialIntermediateValueModel.__table__
PARAMETERS: Table = models.TrialParamModel.__table__
USER_ATTRIBUTES: Table = models.TrialUserAttributeModel.__table__
SYSTEM_ATTRIBUTES: Table = models.TrialSystemAttributeModel.__table__
# More ids than these are not named in a statement: the whole study is read.
MOST_NAMED = 5000

_distribution = lru_cache(maxsize=4096)(json_to_distribution)


@contextmanager
def collection_paused() -> Iterator[None]:
    """Python's search for cycles waits: trials have none, and it takes a quarter of the time of reading 10,000."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_trials(connection: Connection, study_id: int, ids: set[int], last_id: int) -> list[FrozenTrial]:
    """The trials of a study whose ids are among ``ids`` or above ``last_id``, in the order of their ids.

    Args:
        connection: in a transaction.
        study_id: of the study.
        ids: of trials, at or below ``last_id``.
        last_id: -1 for all trials.
    """
    which = TRIALS.c.study_id == study_id
    if last_id > -1 and len(ids) <= MOST_NAMED:
        which &= TRIALS.c.trial_id >= min(ids | {last_id + 1})  # so that the index is used, and not all rows are read
        which &= or_(TRIALS.c.trial_id > last_id, TRIALS.c.trial_id.in_(ids))
    return _read(connection, which, lambda trial_id: trial_id > last_id or trial_id in ids)


def read_trial(connection: Connection, trial_id: int) -> FrozenTrial | None:
    """A single trial; None where there is none of that id."""
    return next(iter(_read(connection, TRIALS.c.trial_id == trial_id)), None)


def _read(
    connection: Connection, which: ColumnElement[bool], is_wanted: Callable[[int], bool] = lambda _: True
) -> list[FrozenTrial]:
    rows = connection.execute(select(TRIALS).where(which).order_by(TRIALS.c.trial_id)).all()
    rows = [row for row in rows if is_wanted(row.trial_id)]
    if not rows:
        return []
    parts = {
        table: _by_trial(connection, table, which)
        for table in (VALUES, REPORTED, PARAMETERS, USER_ATTRIBUTES, SYSTEM_ATTRIBUTES)
    }
    return [
        FrozenTrial(
            number=row.number,
            state=row.state,
            value=None,
            values=_values(parts[VALUES].get(row.trial_id, ())),
            datetime_start=_local(row.datetime_start),
            datetime_complete=_local(row.datetime_complete),
            **_parameters(parts[PARAMETERS].get(row.trial_id, ())),
            user_attrs=_attributes(parts[USER_ATTRIBUTES].get(row.trial_id, ())),
            system_attrs=_attributes(parts[SYSTEM_ATTRIBUTES].get(row.trial_id, ())),
            intermediate_values=_reported(parts[REPORTED].get(row.trial_id, ())),
            trial_id=row.trial_id,
        )
        for row in rows
    ]


def _by_trial(connection: Connection, table: Table, which: ColumnElement[bool]) -> dict[int, list[Any]]:
    """The rows of a table that belong to trials, by the trial's id, in the order in which they were written."""
    key = next(iter(table.primary_key))
    rows = connection.execute(select(table).join(TRIALS).where(which).order_by(key))
    of_trials: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        of_trials[row.trial_id].append(row)
    return of_trials


def _values(rows: Iterable[Any]) -> list[float] | None:
    to_value = models.TrialValueModel.stored_repr_to_value
    by_objective = {row.objective: to_value(row.value, row.value_type) for row in rows}
    return [by_objective[objective] for objective in sorted(by_objective)] or None


def _reported(rows: Iterable[Any]) -> dict[int, float]:
    to_value = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    return {row.step: to_value(row.intermediate_value, row.intermediate_value_type) for row in rows}


def _parameters(rows: Iterable[Any]) -> dict[str, Any]:
    distributions: dict[str, BaseDistribution] = {row.param_name: _distribution(row.distribution_json) for row in rows}
    params = {row.param_name: distributions[row.param_name].to_external_repr(row.param_value) for row in rows}
    return {"params": params, "distributions": distributions}


def _attributes(rows: Iterable[Any]) -> dict[str, Any]:
    return {row.key: json.loads(row.value_json) for row in rows}


def _local(time: datetime | None) -> datetime | None:
    """SQL holds UTC without a time zone; Optuna's trials have local time, also without."""
    return None if time is None else time.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
