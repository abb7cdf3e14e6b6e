"""A storage as the dashboard is to see it: trials without the parameters that decoding ignores, and the best in bounds.

In SQL a trial has all parameters, since many optimizers need a box of fixed length. optuna-dashboard would count those
that a candidate does not depend on: in its importances, slices and parallel coordinates. Optuna's importances
(PED-ANOVA) take a parameter that only some trials have for a conditional one. All is written as ever.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Container, Mapping
from typing import Any

from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.config import kind_in
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import SPACES
from autodiffusion_opt.trials.attributes import DEFINITION
from autodiffusion_opt.trials.history import best_first
from autodiffusion_opt.trials.studies import as_stored

# The parameters of a trial -> the names of those that its candidate does not depend on.
Ignored = Callable[[Mapping[str, Any]], Container[str]]


class DashboardView(BaseStorage):
    """A storage whose trials are shown without the parameters that decoding ignores.

    Args:
        storage: where they are; what the dashboard writes is written there.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All trials of a study, as they are shown."""
        ignored = _ignored_in(self._storage.get_study_user_attrs(study_id))
        return [_without_ignored(trial, ignored) for trial in self._storage.get_all_trials(study_id, deepcopy, states)]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best trial of those that keep to their bounds; where none does, the nearest to them."""
        directions: list[StudyDirection] = self._storage.get_study_directions(study_id)
        ranked = best_first(self.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,)), directions)
        return ranked[0] if ranked else self._storage.get_best_trial(study_id)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """A copy of a trial, when the dashboard renames a study, has all that is stored."""
        if template_trial is not None:
            template_trial = as_stored(self._storage, template_trial)
        return self._storage.create_new_trial(study_id, template_trial)


def _ignored_in(attributes: Mapping[str, Any]) -> Ignored:
    """By the kind of space of a study with these user attributes; of another program's, and of Python's, none are."""
    try:
        ignored: Ignored = kind_in(attributes.get(DEFINITION, {}).get("space"), SPACES, "").ignored
    except UserError:
        return lambda parameters: ()
    return ignored


def _without_ignored(trial: FrozenTrial, ignored: Ignored) -> FrozenTrial:
    if not trial.params:  # it has not been proposed yet, or is being
        return trial
    try:
        names = ignored(trial.params)
    except KeyError:  # it is being proposed
        return trial
    shown = copy.copy(trial)
    shown.params = {name: value for name, value in trial.params.items() if name not in names}
    shown.distributions = {name: box for name, box in trial.distributions.items() if name not in names}
    return shown


def _delegated(name: str) -> Callable[..., Any]:
    def call(self: DashboardView, *arguments: Any, **keywords: Any) -> Any:
        return getattr(self._storage, name)(*arguments, **keywords)

    return call


for _name in BaseStorage.__abstractmethods__ - vars(DashboardView).keys():
    setattr(DashboardView, _name, _delegated(_name))
abc.update_abstractmethods(DashboardView)  # type: ignore[type-abstract]
