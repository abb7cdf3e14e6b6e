"""A study and its trials, in terms of Optuna's storage."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.errors import UserError, unknown
from autodiffusion_opt.trials.attributes import CONSTRAINTS, ERROR
from autodiffusion_opt.trials.database import without_password
from autodiffusion_opt.trials.storage import Storage


def set_attributes(study: optuna.Study, trial: FrozenTrial, attributes: dict[str, Any]) -> None:
    """Write user attributes of a running trial; the pruner sees them in ``trial`` itself."""
    with study._storage.together() if isinstance(study._storage, Storage) else contextlib.nullcontext():
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
        except optuna.exceptions.DuplicatedStudyError:
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
    try:
        return _without_cache(optuna.load_study(study_name=name, storage=storage), storage)
    except KeyError:
        return None


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


def as_stored(storage: BaseStorage, trial: FrozenTrial) -> FrozenTrial:
    """A trial that was read from a storage and changed since, as the storage has it."""
    return storage.get_trial(trial._trial_id)


def begin_trial(study: optuna.Study, trial_id: int) -> optuna.Trial:
    """A running trial, for which the sampler has been asked: what ``study.ask`` does once it has a trial."""
    study._thread_local.cached_all_trials = None  # what samplers read is read anew for each trial
    return optuna.trial.Trial(study, trial_id)


def set_parameters(trial: optuna.Trial, distributions: dict[str, BaseDistribution]) -> None:
    """Give a trial the value of each parameter that its sampler has chosen, or that it was enqueued with."""
    for name, distribution in distributions.items():
        trial._suggest(name, distribution)
