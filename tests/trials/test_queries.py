"""What SQL is asked gives what all trials give, on studies with trials of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.study import StudyDirection
from trials.random_trials import random_study, shown

from autodiffusion_opt import Candidate
from autodiffusion_opt.report.tables import status_rows
from autodiffusion_opt.study.results import StoredStudy
from autodiffusion_opt.trials.attributes import CANDIDATE, CONSTRAINTS
from autodiffusion_opt.trials.history import dominates, undominated
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.queries import Queries, SqlQueries, TrialQueries, every_study, queries_of
from autodiffusion_opt.trials.studies import create_study

QUESTIONS: dict[str, Callable[[Queries], Any]] = {
    "states": lambda queries: queries.states(),
    "proposed by": lambda queries: list(queries.proposed_by().items()),
    "last stage": lambda queries: queries.last_stage(),
    "last activity": lambda queries: queries.last_activity(),
    "images": lambda queries: queries.images(),
    "calls": lambda queries: sorted(queries.calls()),
    "best": lambda queries: [list(map(shown, queries.best(count))) for count in (1, 3, 1000)],
    "nearest": lambda queries: shown(queries.nearest()),
    "front": lambda queries: list(map(shown, queries.front())),
    "baselines": lambda queries: list(map(shown, queries.baselines())),
    "trial": lambda queries: [shown(queries.trial(number)) for number in (0, 7, -1, 1000)],
}


@pytest.mark.parametrize("values", [1, 2, 3])
def test_answers_of_sql_are_those_of_all_trials(values: int, url: str) -> None:
    for seed, is_bounded in ((0, False), (1, True)):
        study = random_study(url, seed, values, is_bounded=is_bounded)
        in_sql, of_all = SqlQueries(study), TrialQueries(study)
        assert 0 not in in_sql.states().values()
        assert in_sql.best(1)
        assert in_sql.baselines()
        for name, ask in QUESTIONS.items():
            assert ask(in_sql) == ask(of_all), (name, seed)


def test_answers_of_sql_are_of_their_own_study_only(url: str) -> None:
    study = random_study(url, 0, 1)
    before = {name: ask(SqlQueries(study)) for name, ask in QUESTIONS.items()}
    random_study(url, 1, 1, trials=20)
    assert {name: ask(SqlQueries(study)) for name, ask in QUESTIONS.items()} == before


def test_of_an_empty_study_nothing_is_known(url: str) -> None:
    study = create_study(open_storage(url), "empty", {"value": StudyDirection.MINIMIZE})
    for name, ask in QUESTIONS.items():
        assert ask(SqlQueries(study)) == ask(TrialQueries(study)), name
    assert SqlQueries(study).nearest() is None
    assert SqlQueries(study).last_activity() is None


def test_where_no_trial_keeps_to_its_bounds_the_least_excess_is_nearest(url: str) -> None:
    study = create_study(open_storage(url), "beyond", {"value": StudyDirection.MINIMIZE})
    for value, excess in ((1.0, [0.5, 0.25]), (3.0, [-9, 0.5]), (2.0, [0.5, 0]), (0.0, [float("inf"), 0])):
        named = {f"{CONSTRAINTS}:{index} <= 1": number for index, number in enumerate(excess)}
        candidate = {CANDIDATE: Candidate.from_time_steps([5]).to_json()}
        study.add_trial(optuna.trial.create_trial(value=value, user_attrs=candidate, system_attrs=named))
    nearest = SqlQueries(study).nearest()
    assert nearest is not None
    assert nearest.number == 2
    assert SqlQueries(study).best(1) == []
    assert shown(nearest) == shown(TrialQueries(study).nearest())


def test_storages_that_are_no_databases_answer_from_all_trials(url: str) -> None:
    study = random_study(url, 0, 1, trials=10)
    in_memory = optuna.create_study(directions=study.directions)
    in_memory.add_trials([trial for trial in study.get_trials() if trial.state.is_finished()])
    assert isinstance(queries_of(in_memory), TrialQueries)
    assert isinstance(queries_of(study), SqlQueries)
    assert [trial.value for trial in queries_of(in_memory).best(3)] == [
        trial.value for trial in queries_of(study).best(3)
    ]


def test_studies_come_by_name(url: str) -> None:
    storage = open_storage(url)
    for name in ("b", "a"):
        create_study(storage, name, {"value": StudyDirection.MINIMIZE})
    assert [study.study_name for study in every_study(storage)] == ["a", "b"]


def test_status_and_best_read_no_trials_that_they_do_not_show(url: str) -> None:
    study = random_study(url, 0, 1)
    read: list[list[int]] = []

    @sqlalchemy.event.listens_for(study._storage.engine, "after_cursor_execute")
    def on_execute(connection: Any, cursor: Any, statement: str, parameters: Any, *more: Any) -> None:
        if "FROM trial_params" in statement:
            values = list(parameters.values() if isinstance(parameters, dict) else parameters)  # psycopg names them
            read.append(values[3:])  # after the study and the bounds of ids: the trials

    stored = StoredStudy(study)
    shown = {result.trial for result in stored.top(2)}
    assert len(shown) == 2
    assert sum(map(len, read)) == len(shown)
    status_rows(study._storage)
    assert sum(map(len, read)) == len(shown) + 1 + len(SqlQueries(study).baselines())


def test_undominated_losses_are_those_that_no_others_dominate() -> None:
    rng = np.random.default_rng(0)
    for count in (0, 1, 40):
        losses = sorted(map(tuple, rng.integers(0, 9, (count, 3)).tolist()))
        expected = {loss for loss in losses if not any(dominates(rival, loss) for rival in losses)}
        chosen = [losses[index] for index in undominated(losses)]
        assert len(chosen) == len(expected)
        assert set(chosen) == expected
