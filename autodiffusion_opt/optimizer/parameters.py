"""Any Optuna sampler as a study's optimizer, so that a study run in parts proposes what one run would.

A stock sampler starts its random numbers anew in every process, and sees trials by their numbers, retries included.
Here every trial gets a fresh copy of the sampler whose random numbers follow from (study seed, position), and which
sees the trials before it one a position, numbered by position: what an uninterrupted study would show it.

A sampler that models the values sees their logarithms, where all of them are positive: of a FID from 22 to 1,000 a
Gaussian process learns little else than the few worst.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.optimizer.catcma import CatCmaSampler
from autodiffusion_opt.trials.attributes import CANDIDATE, FIXED_PARAMETERS, UNMEASURED
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.studies import set_attributes

# Samplers that take a single value, and look at no bounds.
SINGLE_VALUE = (optuna.samplers.CmaEsSampler, CatCmaSampler)
# Samplers that model the values themselves, and not their order alone.
MODELS_VALUES = (optuna.samplers.GPSampler,)


class ParameterSampler(BaseSampler):
    """Wraps an Optuna sampler; see the module.

    Args:
        sampler: any sampler; is copied, never changed. Its random numbers must come from NumPy generators that it
            holds (all of Optuna's do); others are not derived from the seed.
        seed: the study's.
    """

    def __init__(self, sampler: BaseSampler, seed: int) -> None:
        self.original = sampler
        self.seed = seed
        self.history: History | None = None
        self.several_values = self.keeps_bounds = not isinstance(sampler, SINGLE_VALUE)
        self._sampler = sampler
        self._trial_id: int | None = None  # of the trial that the sampler was made for
        self._settled: list[FrozenTrial] = []  # as the sampler sees them: positions from 0 on that will not change

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """A fresh copy of the sampler for this trial, its random numbers set."""
        self._start(study, trial)
        assert self.history is not None
        is_asked = not (CANDIDATE in trial.user_attrs or trial.system_attrs.get(FIXED_PARAMETERS))
        unmeasured = self.history.observations.before(self.history.position(trial.number)).unmeasured()
        if is_asked and unmeasured:
            set_attributes(study, trial, {UNMEASURED: unmeasured})
        self._sampler.before_trial(*self._seen_at(study, trial))

    def _start(self, study: optuna.Study, trial: FrozenTrial) -> None:
        if self.history is None or self.history.study.study_name != study.study_name:
            self.history, self._settled = History(study), []
        position = self.history.refresh().position(trial.number)
        self._sampler = copy.deepcopy(self.original)
        _seed(self._sampler, np.random.default_rng([self.seed, position]))
        self._trial_id = trial._trial_id

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler has it."""
        return self._sampler.infer_relative_search_space(*self._seen_at(study, trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler has it."""
        return self._sampler.sample_relative(*self._seen_at(study, trial), search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler has it."""
        return self._sampler.sample_independent(*self._seen_at(study, trial), param_name, param_distribution)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """As the sampler has it."""
        self._sampler.after_trial(*self._seen_at(study, trial), state, values)

    def _seen_at(self, study: optuna.Study, trial: FrozenTrial) -> tuple[Any, FrozenTrial]:
        """The study and the trial as the sampler sees them."""
        if self._trial_id != trial._trial_id:  # somebody samples without a trial that was begun
            self._start(study, trial)
        assert self.history is not None
        position = self.history.position(trial.number)
        settled = self.history.settled
        while len(self._settled) < position and len(self._settled) in settled:
            self._settled += self._numbered(self.history.sequence(len(self._settled), len(self._settled) + 1))
        rest = self._numbered(self.history.sequence(len(self._settled), position))
        trials = [*self._settled[:position], *rest]
        if isinstance(self.original, MODELS_VALUES):
            trials = _with_modelled_values(trials)
        return _StudyView(study, trials), _with_number(trial, position)

    def _numbered(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        assert self.history is not None
        return [_with_number(trial, self.history.position(trial.number)) for trial in trials]


def _with_number(trial: FrozenTrial, number: int) -> FrozenTrial:
    if trial.number == number:
        return trial
    renumbered = copy.copy(trial)
    renumbered.number = number
    return renumbered


def _with_modelled_values(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials with values that a model can be fitted to, in the same order from best to worst.

    Each of the study's values is its logarithm where it is positive in every trial, and itself elsewhere. An infinite
    one is the greatest, or least, finite one.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    columns = [_modelled(column) for column in zip(*(trial.values for trial in complete), strict=True)]
    modelled = dict(zip((trial.number for trial in complete), zip(*columns, strict=True), strict=True))
    return [_with_values(trial, modelled[trial.number]) if trial.number in modelled else trial for trial in trials]


def _modelled(values: tuple[float, ...]) -> list[float]:
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    clipped = [min(max(value, min(finite)), max(finite)) for value in values]
    return [math.log(value) for value in clipped] if min(clipped) > 0 else clipped


def _with_values(trial: FrozenTrial, values: tuple[float, ...]) -> FrozenTrial:
    changed = copy.copy(trial)
    changed.values = list(values)
    return changed


class _StudyView:
    """An Optuna study that shows other trials than its own; everything else is the study's."""

    def __init__(self, study: optuna.Study, trials: list[FrozenTrial]) -> None:
        self._study = study
        self._trials = trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.get_trials()

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        chosen = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return self.get_trials(deepcopy, states)  # the name by which Optuna's samplers ask


def _seed(sampler: object, rng: np.random.Generator) -> None:
    """Seed every random generator that a sampler holds, itself or in a part of it, in the order of their names."""
    seen: set[int] = set()

    def visit(part: Any) -> None:
        if id(part) in seen or not hasattr(part, "__dict__"):
            return
        seen.add(id(part))
        for name in sorted(vars(part)):
            value = vars(part)[name]
            state = value if isinstance(value, np.random.RandomState) else _lazy_state(value)
            if state is not None and id(state) not in seen:
                seen.add(id(state))
                state.seed(int(rng.integers(2**32)))
            elif isinstance(value, np.random.Generator):
                vars(part)[name] = np.random.default_rng(int(rng.integers(2**32)))
            elif isinstance(value, BaseSampler) or type(value).__module__.startswith("optuna.samplers"):
                visit(value)

    visit(sampler)


def _lazy_state(value: Any) -> np.random.RandomState | None:
    """The generator inside Optuna's LazyRandomState, which makes it when it is first asked for."""
    state = getattr(value, "rng", None) if type(value).__name__ == "LazyRandomState" else None
    return state if isinstance(state, np.random.RandomState) else None


def describe_sampler(sampler: BaseSampler) -> dict[str, Any]:
    """A sampler's class and its settings that are plain values, as JSON: what a resumed study compares."""
    settings: dict[str, Any] = {}
    for name, value in sorted(vars(sampler).items()):
        key = name.lstrip("_")
        if isinstance(value, BaseSampler):
            settings[key] = describe_sampler(value)
        elif value is None or isinstance(value, bool | int | float | str):
            settings[key] = value
        elif inspect.isroutine(value):
            settings[key] = f"{value.__module__}.{value.__qualname__}"
        elif isinstance(value, Mapping) and all(isinstance(entry, int | float | str) for entry in value.values()):
            settings[key] = dict(value)
    return {"kind": f"{type(sampler).__module__}.{type(sampler).__qualname__}", **settings}
