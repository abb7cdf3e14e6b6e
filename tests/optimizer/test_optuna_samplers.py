"""Optuna's samplers by name: what a table may say, and what is particular to gp, qmc, grid and catcma."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

import autodiffusion_opt as ado
from autodiffusion_opt import testing
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.optimizer import ParameterSampler
from autodiffusion_opt.optimizer.catcma import CatCmaSampler
from autodiffusion_opt.optimizer.parameters import _with_modelled_values
from autodiffusion_opt.optimizer.unit_box import decode, encode
from autodiffusion_opt.study.config import build_optimizer, build_space
from autodiffusion_opt.trials.attributes import BASELINE, candidate_of

SPACE: Any = build_space(testing.SPACES["time steps"], "here").space(testing.INFO)
MIXED: Mapping[str, BaseDistribution] = {
    "real": FloatDistribution(-2.0, 3.0),
    "log": FloatDistribution(1e-4, 1.0, log=True),
    "step": FloatDistribution(0.0, 1.0, step=0.25),
    "whole": IntDistribution(3, 40),
    "two": IntDistribution(0, 1),
    "log whole": IntDistribution(1, 100, log=True),
    "choice": CategoricalDistribution(("a", "b", "c")),
}


def study_of(optimizer: Any, url: str, trials: int, function: Any = testing.cost) -> ado.Study:
    return ado.Study(
        "s",
        space=dict(testing.SPACES["time steps"]),
        objective=ado.CandidateMetric(function, identity="cost"),
        optimizer=optimizer,
        trials=trials,
        storage=url,
        model_info=testing.INFO,
    )


def proposed(study: ado.Study) -> list[Any]:
    return [candidate_of(trial) for trial in study.trials() if BASELINE not in trial.user_attrs]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "optuna:tpe", "gamma": 3}, "gamma of TPESampler takes objects of Python"),
        ({"kind": "optuna:gp", "n_startup_trials": "ten"}, "n_startup_trials of GPSampler must be int; got 'ten'"),
        ({"kind": "optuna:nsga2", "population_size": 2.5}, "must be int; got 2.5"),
        ({"kind": "optuna:grid", "points": 1}, "greater than or equal to 2"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_at_load(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_optimizer(table, "here")


def test_a_value_that_the_class_refuses_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"optimizer optuna:qmc: .*halton"):
        build_optimizer({"kind": "optuna:qmc", "qmc_type": "sobel"}, "here").sampler(SPACE, 0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_a_point_of_the_unit_cube_decodes_into_the_box_and_back(share: float) -> None:
    parameters = decode(MIXED, [share] * len(MIXED))
    for name, distribution in MIXED.items():
        assert distribution._contains(distribution.to_internal_repr(parameters[name]))
    again = decode(MIXED, encode(MIXED, parameters))
    for name, value in parameters.items():
        assert again[name] == (pytest.approx(value) if isinstance(value, float) else value)


def test_the_ends_of_the_unit_cube_are_the_ends_of_the_box() -> None:
    low, high = decode(MIXED, [0.0] * 7), decode(MIXED, [1.0] * 7)
    assert low.pop("log") == pytest.approx(1e-4)
    assert low == {"real": -2, "step": 0, "whole": 3, "two": 0, "log whole": 1, "choice": "a"}
    assert high == {"real": 3, "log": 1, "step": 1, "whole": 40, "two": 1, "log whole": 100, "choice": "c"}


def trials_of(*values: tuple[float, ...]) -> list[optuna.trial.FrozenTrial]:
    trials = [create_trial(values=list(each)) for each in values]
    for number, trial in enumerate(trials):
        trial.number = number
    return trials


def test_a_model_sees_logarithms_of_values_that_are_all_positive_and_no_infinite_ones() -> None:
    trials = [*trials_of((22.0, -1.0), (1000.0, 2.0), (math.inf, 3.0)), create_trial(state=TrialState.FAIL)]
    seen = _with_modelled_values(trials)
    first, second = zip(*(trial.values for trial in seen[:3]), strict=True)
    assert first == pytest.approx((math.log(22), math.log(1000), math.log(1000)))
    assert second == (-1.0, 2.0, 3.0)
    assert [trial.values for trial in trials[:3]] == [[22.0, -1.0], [1000.0, 2.0], [math.inf, 3.0]]  # as they were
    assert seen[3].state == TrialState.FAIL


@pytest.mark.slow
def test_gp_searches_within_bounds(url: str) -> None:
    def values(candidate: ado.Candidate) -> dict[str, float]:
        return {"value": testing.cost(candidate), "first": candidate.times[0]}

    study = ado.Study(
        "s",
        space=dict(testing.SPACES["time steps"]),
        objective=ado.CandidateMetric(values, identity="values", at_most={"first": 900.0}),
        optimizer={"kind": "optuna:gp", "n_startup_trials": 4},
        trials=12,
        storage=url,
        model_info=testing.INFO,
    )
    study.run(progress=False)
    assert study.best().candidate.times[0] <= 900


def test_qmc_takes_the_element_of_its_position(url: str) -> None:
    from scipy.stats import qmc

    study = study_of("optuna:qmc", url, 16)
    study.run(progress=False)
    sequence = qmc.Sobol(3, scramble=False).random(16)
    for trial in study.trials():
        if BASELINE not in trial.user_attrs:
            shares = [(trial.params[name] + 0.5) / 1000 for name in ("t1", "t2", "t3")]
            assert shares == pytest.approx(list(sequence[trial.number]), abs=1e-3)


@pytest.mark.slow
def test_a_grid_proposes_each_different_candidate_once_and_then_repeats_at_no_cost(url: str) -> None:
    measured: list[ado.Candidate] = []

    def count(candidate: ado.Candidate) -> float:
        measured.append(candidate)
        return testing.cost(candidate)

    study = study_of({"kind": "optuna:grid", "points": 2}, url, 30, count)
    with pytest.warns(UserWarning, match="candidates were all proposed: further trials repeat them"):
        study.run(progress=False)
    assert len(study.trials()) == 30
    assert len(measured) == len(set(measured))
    assert len(set(proposed(study))) == 4  # 2 x 2 x 2 combinations of which the order does not matter


def test_too_large_a_grid_is_refused() -> None:
    with pytest.raises(UserError, match=r"at most 50,000 combinations; points = 100 makes 1,000,000 of 3 parameters"):
        build_optimizer({"kind": "optuna:grid", "points": 100}, "here").sampler(SPACE, 0)


@pytest.mark.slow
def test_catcma_finds_the_optimum_of_a_mixed_box() -> None:
    def loss(trial: optuna.Trial) -> float:
        value = {name: trial._suggest(name, distribution) for name, distribution in MIXED.items()}
        error = abs(value["real"] - 1) + abs(math.log10(value["log"]) + 2) + abs(value["whole"] - 10) / 10
        error += abs(value["step"] - 0.75) + value["two"] + abs(math.log(value["log whole"] / 20))
        return float(error + (value["choice"] != "b"))

    best = {}
    for name, sampler in {"catcma": CatCmaSampler(MIXED), "random": optuna.samplers.RandomSampler()}.items():
        study = optuna.create_study(sampler=ParameterSampler(sampler, 0))
        study.optimize(loss, n_trials=150)
        best[name] = study.best_value
    assert best["catcma"] < 0.5 * best["random"]


def test_catcma_counts_no_trial_in_a_generation_whose_parameters_were_given(url: str) -> None:
    study = study_of({"kind": "optuna:catcma", "population": 4}, url, 14)
    study.run(progress=False)
    searched = [trial for trial in study.trials() if BASELINE not in trial.user_attrs]
    generations = [trial.user_attrs["catcma"]["generation"] for trial in searched]
    assert generations == [index // 4 for index in range(len(generations))]
