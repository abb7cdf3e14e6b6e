"""What ``status`` and ``best`` show of a study, asked of SQL: they do not read trials that they do not show.

:class:`SqlQueries` works on Optuna's tables in SQLite, PostgreSQL and MySQL. :class:`TrialQueries` gives the same
answers from all trials, for a storage that is no SQL database.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, Select, case, exists, func, select
from sqlalchemy.orm import aliased

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.trials.attributes import (
    BASELINE,
    CANDIDATE,
    CONSTRAINTS,
    OPTIMIZER,
    REUSED_FROM,
    SCORE,
    STAGE,
    candidate_of,
    excess_of,
    parse_candidate,
)
from autodiffusion_opt.trials.history import MEASURED, best_first, cost_of, front, losses_of, undominated
from autodiffusion_opt.trials.sql import SqlStorage

Trial = models.TrialModel
Attribute = models.TrialUserAttributeModel
SystemAttribute = models.TrialSystemAttributeModel
Value = models.TrialValueModel
Intermediate = models.TrialIntermediateValueModel
FINISHED = tuple(state for state in TrialState if state.is_finished())
# JSON of a constraint that is kept and has no minus sign; NaN is never greater than 0.
KEPT = ("0", "0.0", "false", "NaN")
# Trials that are read with all that belongs to them in one statement; SQLite takes a limited number of parameters.
AT_ONCE = 500
# Above every trial's id.
LAST_ID = 2**31 - 1


class Queries(ABC):
    """Questions about the trials of a study."""

    @abstractmethod
    def states(self) -> dict[str, int]:
        """How many trials there are in each state, retried ones (failed) included."""

    @abstractmethod
    def proposed_by(self) -> dict[str, int]:
        """How many trials each optimizer proposed, in the order in which they began."""

    @abstractmethod
    def last_stage(self) -> str | None:
        """The stage of the newest trial that has a stage."""

    @abstractmethod
    def last_activity(self) -> datetime | None:
        """When a trial last began or ended, in local time."""

    @abstractmethod
    def images(self) -> float:
        """The images that finished trials generated."""

    @abstractmethod
    def calls(self) -> list[int]:
        """The NFE of each measured trial where it is known."""

    @abstractmethod
    def best(self, count: int) -> list[FrozenTrial]:
        """The ``count`` best complete trials of different candidates that keep to their bounds, best first."""

    @abstractmethod
    def nearest(self) -> FrozenTrial | None:
        """The best of all complete trials, which is least beyond its bounds; None where no trial is complete."""

    @abstractmethod
    def front(self) -> list[FrozenTrial]:
        """:func:`~autodiffusion_opt.trials.history.front`."""

    @abstractmethod
    def baselines(self) -> list[FrozenTrial]:
        """The complete baselines, best first."""

    @abstractmethod
    def trial(self, number: int) -> FrozenTrial | None:
        """The trial of a number, if there is one."""


def queries_of(study: optuna.Study) -> Queries:
    """The queries that fit the storage of a study."""
    return SqlQueries(study) if isinstance(study._storage, SqlStorage) else TrialQueries(study)


def every_study(storage: BaseStorage) -> list[optuna.Study]:
    """The studies of a storage, by name; their trials are read without Optuna's cache."""
    studies = []
    for name in sorted(frozen.study_name for frozen in storage.get_all_studies()):
        study = optuna.load_study(study_name=name, storage=storage)
        study._storage = storage
        studies.append(study)
    return studies


class TrialQueries(Queries):
    """The answers from all trials of a study, each read once."""

    def __init__(self, study: optuna.Study) -> None:
        self._trials = study.get_trials(deepcopy=False)
        self._directions = study.directions

    def states(self) -> dict[str, int]:
        return {state.name.lower(): sum(trial.state == state for trial in self._trials) for state in TrialState}

    def proposed_by(self) -> dict[str, int]:
        return dict(Counter(trial.user_attrs[OPTIMIZER] for trial in self._trials if OPTIMIZER in trial.user_attrs))

    def last_stage(self) -> str | None:
        stages = [trial.user_attrs[STAGE] for trial in self._trials if STAGE in trial.user_attrs]
        return str(stages[-1]) if stages else None

    def last_activity(self) -> datetime | None:
        times = [time for trial in self._trials for time in (trial.datetime_start, trial.datetime_complete) if time]
        return max(times, default=None)

    def images(self) -> float:
        return sum(cost_of(trial)[0] for trial in self._trials if trial.state.is_finished())

    def calls(self) -> list[int]:
        scores = (trial.user_attrs.get(SCORE, {}) for trial in self._trials if trial.state in MEASURED)
        return [score["nfe"] for score in scores if score.get("nfe")]

    def best(self, count: int) -> list[FrozenTrial]:
        chosen: dict[Candidate | None, FrozenTrial] = {}
        for trial in best_first(self._trials, self._directions):
            if len(chosen) < count and not excess_of(trial):
                chosen.setdefault(candidate_of(trial), trial)
        return list(chosen.values())

    def nearest(self) -> FrozenTrial | None:
        return next(iter(best_first(self._trials, self._directions)), None)

    def front(self) -> list[FrozenTrial]:
        return front(self._trials, self._directions)

    def baselines(self) -> list[FrozenTrial]:
        return best_first((trial for trial in self._trials if BASELINE in trial.user_attrs), self._directions)

    def trial(self, number: int) -> FrozenTrial | None:
        return next((trial for trial in self._trials if trial.number == number), None)


class SqlQueries(Queries):
    """The answers of an SQL database; a few statements each, of which none reads a whole trial that is not shown."""

    def __init__(self, study: optuna.Study) -> None:
        storage = study._storage
        assert isinstance(storage, SqlStorage)
        self._storage: SqlStorage = storage
        self._id = study._study_id
        self._directions: Sequence[StudyDirection] = study.directions

    def states(self) -> dict[str, int]:
        counts = dict(self._rows(self._select(Trial.state, func.count()).group_by(Trial.state)))
        return {state.name.lower(): counts.get(state, 0) for state in TrialState}

    def proposed_by(self) -> dict[str, int]:
        text = Attribute.value_json
        query = self._with(OPTIMIZER, text, func.count()).group_by(text).order_by(func.min(Trial.trial_id))
        return {json.loads(kind): count for kind, count in self._rows(query)}

    def last_stage(self) -> str | None:
        newest = self._with(STAGE, Attribute.value_json).order_by(Trial.trial_id.desc()).limit(1)
        return next((str(json.loads(text)) for (text,) in self._rows(newest)), None)

    def last_activity(self) -> datetime | None:
        columns = Trial.__table__.c  # the class has properties of these names
        ((start, complete),) = self._rows(
            self._select(func.max(columns.datetime_start), func.max(columns.datetime_complete))
        )
        times = [time for time in (start, complete) if time is not None]
        # SQL holds UTC without a time zone; Optuna's trials have local time, also without.
        return max(times).replace(tzinfo=UTC).astimezone().replace(tzinfo=None) if times else None

    def images(self) -> float:
        is_new = Trial.state.in_(FINISHED) & ~_has(REUSED_FROM)
        # Read as text and parsed here: scores hold NaN and Infinity, which the databases' JSON functions refuse.
        scores = self._rows(self._with(SCORE, Attribute.value_json).where(is_new))
        # A trial that ended without a score has reported values of rungs at their numbers of images.
        last = self._select(func.max(Intermediate.step).label("images")).join(Intermediate).where(is_new, ~_has(SCORE))
        rungs = last.group_by(Trial.trial_id).subquery()
        ((reported,),) = self._rows(select(func.sum(rungs.c.images)))
        return sum(float(json.loads(text)["images"]) for (text,) in scores) + float(reported or 0)

    def calls(self) -> list[int]:
        texts = self._rows(self._with(SCORE, Attribute.value_json).where(Trial.state.in_(tuple(MEASURED))))
        return [score["nfe"] for score in (json.loads(text) for (text,) in texts) if score.get("nfe")]

    def best(self, count: int) -> list[FrozenTrial]:
        query, _ = self._complete(Trial.trial_id, Attribute.value_json)
        with_candidate = (Attribute.trial_id == Trial.trial_id) & (Attribute.key == CANDIDATE)
        query = query.outerjoin(Attribute, with_candidate).where(~_is_beyond())
        chosen: dict[Candidate | None, int] = {}
        for trial_id, text in self._stream(query):
            chosen.setdefault(None if text is None else parse_candidate(json.loads(text)), trial_id)
            if len(chosen) == count:
                break
        return self._read(list(chosen.values()))

    def nearest(self) -> FrozenTrial | None:
        query, _ = self._complete(Trial.trial_id)
        beyond = self._select(Trial.trial_id, SystemAttribute.value_json).join(SystemAttribute).where(_is_excess())
        excess: Counter[int] = Counter()
        for trial_id, text in self._rows(beyond):
            excess[trial_id] += json.loads(text)
        ids = [trial_id for (trial_id,) in self._rows(query)]
        return next(iter(self._read([min(ids, key=excess.__getitem__)])), None) if ids else None

    def front(self) -> list[FrozenTrial]:
        query, values = self._complete(Trial.trial_id)
        finite = (each.value_type == Value.TrialValueType.FINITE for each in values)
        query = query.add_columns(*(each.value for each in values)).where(~_is_beyond(), *finite)
        rows = self._rows(query)
        chosen = undominated([losses_of(numbers, self._directions) for _, *numbers in rows])
        return self._read([rows[index][0] for index in chosen])

    def baselines(self) -> list[FrozenTrial]:
        complete = self._with(BASELINE, Trial.trial_id).where(Trial.state == TrialState.COMPLETE)
        return best_first(self._read([trial_id for (trial_id,) in self._rows(complete)]), self._directions)

    def trial(self, number: int) -> FrozenTrial | None:
        ids = self._rows(self._select(Trial.trial_id).where(Trial.number == number))
        return next(iter(self._read([trial_id for (trial_id,) in ids])), None)

    def _select(self, *columns: Any) -> Select[Any]:
        """Columns of this study's trials."""
        return select(*columns).select_from(Trial).where(Trial.study_id == self._id)

    def _with(self, key: str, *columns: Any) -> Select[Any]:
        """Columns of this study's trials that have a user attribute, in the order in which they began."""
        return self._select(*columns).join(Attribute).where(Attribute.key == key)

    def _complete(self, *columns: Any) -> tuple[Select[Any], list[Any]]:
        """Columns of the complete trials, the best by value first, without regard to bounds; and their values."""
        query = self._select(*columns).where(Trial.state == TrialState.COMPLETE)
        values = []
        for objective, direction in enumerate(self._directions):
            value: Any = aliased(Value)
            query = query.join(value, (value.trial_id == Trial.trial_id) & (value.objective == objective))
            kinds = Value.TrialValueType
            infinite = case((value.value_type == kinds.INF_NEG, -1), (value.value_type == kinds.INF_POS, 1), else_=0)
            is_most = direction == StudyDirection.MAXIMIZE
            query = query.order_by(*(column.desc() if is_most else column.asc() for column in (infinite, value.value)))
            values.append(value)
        return query.order_by(Trial.number), values

    def _rows(self, query: Select[Any]) -> Sequence[Any]:
        return self._storage.rows(query)

    def _stream(self, query: Select[Any]) -> Iterator[Any]:
        """The rows of a statement, of which few more are fetched than are taken."""
        start = 0
        while rows := self._rows(query.limit(AT_ONCE).offset(start)):
            yield from rows
            start += AT_ONCE

    def _read(self, ids: Sequence[int]) -> list[FrozenTrial]:
        """The trials of these ids, in this order."""
        trials: dict[int, FrozenTrial] = {}
        for start in range(0, len(ids), AT_ONCE):
            wanted = set(ids[start : start + AT_ONCE])
            for trial in self._storage._get_trials(self._id, None, wanted, LAST_ID):
                trials[trial._trial_id] = trial
        return [trials[trial_id] for trial_id in ids]


def _has(key: str) -> ColumnElement[bool]:
    """Whether a trial has a user attribute."""
    attribute: Any = aliased(Attribute)
    return exists().where(attribute.trial_id == Trial.trial_id, attribute.key == key)


def _is_excess() -> ColumnElement[bool]:
    """Whether a system attribute is a constraint whose JSON is a number greater than 0."""
    text = SystemAttribute.value_json
    is_constraint = SystemAttribute.key.startswith(f"{CONSTRAINTS}:", autoescape=True)
    return sqlalchemy.and_(is_constraint, text.not_like("-%"), text.not_in(KEPT))


def _is_beyond() -> ColumnElement[bool]:
    """Whether a trial is beyond one of its bounds."""
    return exists().where(SystemAttribute.trial_id == Trial.trial_id, _is_excess())
