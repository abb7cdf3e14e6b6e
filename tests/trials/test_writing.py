"""What is set of a trial in few statements is what Optuna's own storage writes in many."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

import optuna
import pytest
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.trials.attributes import CANDIDATE
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.reading import USER_ATTRIBUTES
from autodiffusion_opt.trials.sql import SqlStorage
from autodiffusion_opt.trials.writing import insert_or_replace

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "x": FloatDistribution(0.0, 1.0),
    "n": IntDistribution(1, 9),
    "c": CategoricalDistribution(("a", "b")),
}


@pytest.fixture
def storage(url: str) -> SqlStorage:
    opened = open_storage(url)
    assert isinstance(opened, SqlStorage)
    return opened


def written(storage: BaseStorage, *, state: TrialState, values: list[float] | None) -> FrozenTrial:
    """A trial with everything set, some of it twice."""
    study_id = storage.create_new_study([StudyDirection.MINIMIZE] * max(1, len(values or ())), "written")
    for _ in range(2):  # the second has parameters that the first had too
        trial_id = storage.create_new_trial(study_id)
        for name, distribution in DISTRIBUTIONS.items():
            storage.set_trial_param(trial_id, name, 1.0, distribution)
        for value in ({"a": [1, "é"]}, None, "last"):
            storage.set_trial_user_attr(trial_id, "key", value)
            storage.set_trial_system_attr(trial_id, "key", [value])
        storage.set_trial_user_attr(trial_id, "another", 0.1 + 0.2)
        assert storage.set_trial_state_values(trial_id, state, values)
    return storage.get_trial(trial_id)


@pytest.mark.parametrize(
    ("state", "values"),
    [
        (TrialState.COMPLETE, [0.1 + 0.2]),
        (TrialState.COMPLETE, [math.inf, -math.inf, 1e-300]),
        (TrialState.PRUNED, [3.0]),
        (TrialState.FAIL, None),
    ],
)
@pytest.mark.parametrize("is_together", [True, False])
def test_rows_are_those_of_optunas_own_storage(
    is_together: bool, state: TrialState, values: list[float] | None, storage: SqlStorage
) -> None:
    expected = written(RDBStorage("sqlite://"), state=state, values=values)
    if is_together:
        study_id = storage.create_new_study([StudyDirection.MINIMIZE] * max(1, len(values or ())), "together")
        trial_id = storage.create_new_trial(study_id)
        with storage.together():
            for name, distribution in DISTRIBUTIONS.items():
                storage.set_trial_param(trial_id, name, 1.0, distribution)
            for value in ("first", "last"):
                storage.set_trial_user_attr(trial_id, "key", value)
                storage.set_trial_system_attr(trial_id, "key", [value])
            storage.set_trial_user_attr(trial_id, "another", 0.1 + 0.2)
            assert storage.set_trial_state_values(trial_id, state, values)
        trial = storage.get_trial(trial_id)
    else:
        trial = written(storage, state=state, values=values)
    for part in ("state", "values", "params", "distributions", "user_attrs", "system_attrs"):
        assert getattr(trial, part) == getattr(expected, part), part
    assert trial.datetime_complete is not None
    assert abs(trial.datetime_complete - datetime.now()) < timedelta(minutes=1)


def test_a_parameter_of_another_kind_than_before_is_refused_as_optuna_refuses_it(storage: SqlStorage) -> None:
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "s")
    first, second = storage.create_new_trial(study_id), storage.create_new_trial(study_id)
    storage.set_trial_param(first, "x", 0.5, DISTRIBUTIONS["x"])
    storage.set_trial_param(second, "x", 0.5, FloatDistribution(0.0, 2.0))  # another range goes together
    with pytest.raises(ValueError, match="different distribution kind"):
        storage.set_trial_param(second, "x", 1.0, IntDistribution(0, 3))
    assert storage.get_trial(second).params == {"x": 0.5}


def test_running_trials_of_which_there_is_something_new(storage: SqlStorage) -> None:
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "s")
    trials = [storage.create_new_trial(study_id) for _ in range(5)]
    measuring, ended, proposing, proposed, failed = trials
    for trial_id in (measuring, ended, proposed):
        storage.set_trial_user_attr(trial_id, CANDIDATE, "{}")
    storage.set_trial_state_values(ended, TrialState.COMPLETE, [1.0])
    storage.set_trial_state_values(failed, TrialState.FAIL)
    assert storage.changed(study_id, {measuring, ended}, {proposing, proposed, failed}) == {ended, proposed, failed}
    assert storage.changed(study_id, {measuring}, {proposing}) == set()
    assert storage.changed(study_id, set(), set()) == set()


def test_trials_that_are_not_there_or_have_finished_are_refused(storage: SqlStorage) -> None:
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "s")
    with pytest.raises(KeyError, match="no trial of the id 77"):
        storage.set_trial_user_attr(77, "key", 1)
    with pytest.raises(KeyError, match="no trial of the id 77"):
        storage.get_trial(77)
    trial_id = storage.create_new_trial(study_id)
    storage.set_trial_state_values(trial_id, TrialState.FAIL)
    for refused in (
        lambda: storage.set_trial_user_attr(trial_id, "key", 1),
        lambda: storage.set_trial_system_attr(trial_id, "key", 1),
        lambda: storage.set_trial_param(trial_id, "x", 0.5, DISTRIBUTIONS["x"]),
        lambda: storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0]),
    ):
        with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
            refused()
    assert storage.get_trial(trial_id).state == TrialState.FAIL


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///x", "DO UPDATE SET value_json = excluded.value_json"),
        ("postgresql+psycopg://me@host/x", "DO UPDATE SET value_json = excluded.value_json"),
        ("mysql+pymysql://me@host/x", "ON DUPLICATE KEY UPDATE"),
        ("mariadb+pymysql://me@host/x", "ON DUPLICATE KEY UPDATE"),
    ],
)
def test_each_kind_of_database_is_written_in_its_own_words(url: str, expected: str) -> None:
    dialect = sqlalchemy.make_url(url).get_dialect()()
    statement = insert_or_replace(USER_ATTRIBUTES, ("trial_id", "key"), ("value_json",), dialect.name)
    assert expected in str(statement.compile(dialect=dialect))


@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_mysql_has_room_for_more_than_64_kilobytes(kind: str) -> None:
    dialect = sqlalchemy.make_url(f"{kind}+pymysql://me@host/x").get_dialect()()
    assert "value_json LONGTEXT" in str(sqlalchemy.schema.CreateTable(USER_ATTRIBUTES).compile(dialect=dialect))


def test_an_attribute_may_be_long(storage: SqlStorage) -> None:
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "s")
    trial_id = storage.create_new_trial(study_id)
    storage.set_study_user_attr(study_id, "key", "é" * 100_000)
    storage.set_trial_user_attr(trial_id, "key", ["x" * 1000] * 200)
    assert storage.get_study_user_attrs(study_id) == {"key": "é" * 100_000}
    assert storage.get_trial(trial_id).user_attrs == {"key": ["x" * 1000] * 200}
