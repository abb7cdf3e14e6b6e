"""What every optimizer in the registry must do; an optimizer that is added is tested here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import autodiffusion_opt as ado
from autodiffusion_opt.optimizer import OPTIMIZERS, OptimizerConfig
from autodiffusion_opt.study.config import build_optimizer, build_space

INFO = ado.ModelInfo(1000, layers=10, removable=tuple(range(10)), ranking=(tuple(range(10)),) * 3)
SPACES = {
    "time steps": {"kind": "time-steps", "steps": 3},
    "joint ranked": {"kind": "joint", "n_max": 40, "steps_min": 3, "steps_max": 5, "layers": "ranked"},
    "joint any": {"kind": "joint", "n_max": 40, "steps_min": 3, "steps_max": 5, "layers": "any"},
}
every_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)
quiet = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def cost(candidate: ado.Candidate) -> float:
    return float(np.mean(candidate.times))


def study_of(kind: str, space: str, url: str) -> ado.Study:
    return ado.Study(
        "s",
        space=SPACES[space],
        objective=ado.CandidateMetric(cost, identity="cost"),
        optimizer=kind,
        trials=18,
        storage=url,
        model_info=INFO,
    )


@quiet
@every_optimizer
@pytest.mark.parametrize("space", SPACES)
def test_candidates_are_in_the_space_and_the_parameters_are_theirs(kind: str, space: str, url: str) -> None:
    if space == "joint any" and not OPTIMIZERS[kind].proposes_candidates:
        pytest.skip("parameters do not tell which layers; the refusal is tested elsewhere")
    study = study_of(kind, space, url)
    study.run(progress=False)
    assert len(study.trials()) == 18
    for trial in study.trials():
        candidate = ado.Candidate.from_json(trial.user_attrs["candidate"])
        study.problem.space.check(candidate)
        assert set(trial.params) == set(study.problem.space.distributions())
        if study.problem.space.fully_parametric:
            assert study.problem.space.decode(trial.params) == candidate


@quiet
@every_optimizer
def test_the_same_seed_proposes_the_same_in_parts_and_another_proposes_others(kind: str, url: str) -> None:
    whole = study_of(kind, "time steps", url)
    whole.run(progress=False)
    parts_url = url.replace("studies.db", "parts.db")
    for wanted in (9, 13, 18):
        parts = study_of(kind, "time steps", parts_url)
        parts.run(wanted, progress=False)
    texts = [[trial.user_attrs["candidate"] for trial in study.trials()] for study in (whole, parts)]
    assert texts[0] == texts[1]


@every_optimizer
def test_a_kind_is_a_documented_table_whose_kind_is_its_name(kind: str) -> None:
    table = OPTIMIZERS[kind]
    assert issubclass(table, OptimizerConfig)
    assert table.__doc__
    assert build_optimizer({"kind": kind}, "here").kind == kind


@quiet
@every_optimizer
def test_the_sampler_is_another_one_for_each_kind(kind: str) -> None:
    """A kind wired to another kind's sampler would pass all else."""
    wanted = {
        "evolution": "Evolution",
        "random": "RandomSearch",
        "optuna:tpe": "TPESampler",
        "optuna:cmaes": "CmaEsSampler",
        "optuna:nsga2": "NSGAIISampler",
        "optuna:random": "RandomSampler",
        "optuna:gp": "GPSampler",
        "optuna:qmc": "PositionalQMC",
        "optuna:nsga3": "NSGAIIISampler",
        "optuna:grid": "GridSearch",
        "optuna:catcma": "CatCmaSampler",
    }
    space: Any = build_space(SPACES["time steps"], "here").space(INFO)
    sampler = build_optimizer({"kind": kind}, "here").sampler(space, 0)
    assert type(getattr(sampler, "original", sampler)).__name__ == wanted[kind]
