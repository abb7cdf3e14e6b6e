"""Trials with whatever a trial may have, for what must hold of any study."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt import Candidate
from autodiffusion_opt.trials.attributes import (
    BASELINE,
    CANDIDATE,
    CONSTRAINTS,
    OPTIMIZER,
    REUSED_FROM,
    SCORE,
    STAGE,
    WORKER,
)
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.studies import create_study

STATES = (*[TrialState.COMPLETE] * 6, TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING)
VALUES = (math.inf, -math.inf, 0.0, -0.0, 1.5)
EXCESSES = (*[-1.0, 0.0, -0.0, 0] * 3, 1e-320, 0.25, 2, math.inf, -math.inf)


def random_study(url: str, seed: int, values: int, *, is_bounded: bool = False, trials: int = 80) -> optuna.Study:
    """A study of random trials; several have equal values, candidates and excesses."""
    rng = np.random.default_rng(seed)
    directions = [(StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)[rng.integers(2)] for _ in range(values)]
    named = {f"value {index}": direction for index, direction in enumerate(directions)}
    study = create_study(open_storage(url), f"random {seed}", named)
    storage: Any = study._storage
    with storage.scoped_session() as session:
        for number in range(trials):
            session.add(_model(study._study_id, number, random_trial(rng, values, is_bounded)))
        session.commit()
    return study


def _model(study_id: int, number: int, trial: FrozenTrial) -> models.TrialModel:
    """The rows of a trial: written together, they take a hundredth of the time that Optuna takes."""
    stored, reported = models.TrialValueModel, models.TrialIntermediateValueModel
    values = [stored.value_to_stored_repr(value) for value in trial.values or ()]
    steps = {step: reported.intermediate_value_to_stored_repr(v) for step, v in trial.intermediate_values.items()}
    return models.TrialModel(
        study_id=study_id,
        number=number,
        state=trial.state,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        values=[stored(objective=i, value=value, value_type=kind) for i, (value, kind) in enumerate(values)],
        params=[
            models.TrialParamModel(
                param_name=name,
                param_value=distribution.to_internal_repr(trial.params[name]),
                distribution_json=distribution_to_json(distribution),
            )
            for name, distribution in trial.distributions.items()
        ],
        user_attributes=_attribute_models(models.TrialUserAttributeModel, trial.user_attrs),
        system_attributes=_attribute_models(models.TrialSystemAttributeModel, trial.system_attrs),
        intermediate_values=[
            reported(step=step, intermediate_value=value, intermediate_value_type=kind)
            for step, (value, kind) in steps.items()
        ],
    )


def _attribute_models(model: Any, attributes: dict[str, Any]) -> list[Any]:
    return [model(key=key, value_json=json.dumps(value)) for key, value in attributes.items()]


def random_trial(rng: np.random.Generator, values: int, is_bounded: bool) -> FrozenTrial:
    """A trial in a random state."""
    state = STATES[rng.integers(len(STATES))]
    started = datetime(2026, 1, 1) + timedelta(seconds=float(rng.uniform(0, 1e6)))
    system = _constraints(rng) if is_bounded and state.is_finished() else {}
    if state == TrialState.WAITING:
        system["fixed_params"] = {"x": 0.5}
    return FrozenTrial(
        number=0,
        trial_id=0,
        state=state,
        value=None,
        values=[_value(rng) for _ in range(values)] if state == TrialState.COMPLETE else None,
        datetime_start=None if state == TrialState.WAITING else started,
        datetime_complete=started + timedelta(seconds=float(rng.uniform(0, 1e5))) if state.is_finished() else None,
        params={"x": float(rng.random()), "n": int(rng.integers(1, 9)), "c": "é"},
        distributions={
            "x": FloatDistribution(0, 1),
            "n": IntDistribution(1, 9, log=True),
            "c": CategoricalDistribution(("a", "é", None)),
        },
        user_attrs=_attributes(rng, state),
        system_attrs=system,
        intermediate_values={int(step): (1.5, math.nan, math.inf)[step % 3] for step in rng.integers(1, 50, 2)},
    )


def _value(rng: np.random.Generator) -> float:
    return VALUES[rng.integers(len(VALUES))] if rng.random() < 0.3 else round(float(rng.normal()), 1)


def _constraints(rng: np.random.Generator) -> dict[str, Any]:
    excess = {name: EXCESSES[rng.integers(len(EXCESSES))] for name in ("first <= 3", "100 %_done", "0.5")}
    return {CONSTRAINTS: list(excess.values())} | {f"{CONSTRAINTS}:{name}": value for name, value in excess.items()}


def _attributes(rng: np.random.Generator, state: TrialState) -> dict[str, Any]:
    candidate = Candidate.from_time_steps([int(rng.integers(1, 30))])
    attributes: dict[str, Any] = {CANDIDATE: candidate.to_json(), WORKER: "elsewhere:1:1", "another's": ["é", None]}
    given = {STAGE: ("times", "layers")[rng.integers(2)], BASELINE: f"b{rng.integers(4)}", REUSED_FROM: 0}
    attributes |= {key: value for key, value in given.items() if rng.random() < 0.15}
    if rng.random() < 0.5:
        attributes[OPTIMIZER] = ("evolution", "optuna:tpe", 'a "name"')[rng.integers(3)]
    if state.is_finished() and (state != TrialState.FAIL or rng.random() < 0.3):
        nfe = (None, 3, 4, 5)[rng.integers(4)]
        values = {"v": math.nan, '}, "images": 7': math.inf}
        attributes[SCORE] = {"values": values, "images": int(rng.integers(1, 9)), "seconds": 1.0, "nfe": nfe}
    return attributes


def shown(trial: FrozenTrial | None) -> str | None:
    """All that a trial holds but its id, as text: NaN is equal to itself there.

    Databases order attributes as they like, and SQLite keeps no sign of 0.0.
    """
    if trial is None:
        return None
    parts = (trial.user_attrs, trial.system_attrs, trial.intermediate_values)
    values = [value + 0.0 for value in trial.values or ()]
    whole = (trial.number, trial.state, values, trial.datetime_start, trial.datetime_complete)
    return repr((*whole, trial.params, trial.distributions, *(sorted(part.items()) for part in parts)))
