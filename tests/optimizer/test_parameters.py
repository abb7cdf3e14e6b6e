"""Optuna's samplers in a study: run in parts they propose what a single run proposes, and see no retries."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import optuna
import pytest
from marks import slow_but
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from trials.test_workers import dead_worker

import autodiffusion_opt as ado
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.optimizer import ParameterSampler
from autodiffusion_opt.optimizer.optuna_samplers import PREFIX
from autodiffusion_opt.optimizer.optuna_samplers import SAMPLERS as OPTUNA_SAMPLERS
from autodiffusion_opt.optimizer.parameters import _seed, describe_sampler
from autodiffusion_opt.study.config import build_optimizer, build_space
from autodiffusion_opt.trials.attributes import BASELINE, WORKER, candidate_of
from autodiffusion_opt.trials.claims import Claims
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.studies import need_study

INFO = ado.ModelInfo(1000, layers=10, removable=tuple(range(10)), ranking=(tuple(range(10)),) * 3)
# A fresh sampler as a new process makes it: seeds of its own, which must not matter.
SAMPLERS: dict[str, Callable[[], BaseSampler]] = {
    "tpe": lambda: optuna.samplers.TPESampler(n_startup_trials=5),
    "tpe univariate": lambda: optuna.samplers.TPESampler(n_startup_trials=5, multivariate=False),
    "cmaes": lambda: optuna.samplers.CmaEsSampler(n_startup_trials=4),
    "random": optuna.samplers.RandomSampler,
}
every_sampler = pytest.mark.parametrize("name", slow_but(SAMPLERS, "tpe"))
quiet = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def distance(candidate: ado.Candidate) -> float:
    return float(np.abs(np.array(candidate.times) - [930, 500, 210, 30]).sum())


def study_of(sampler: Any, url: str, seed: int = 0, function: Any = distance) -> ado.Study:
    return ado.Study(
        "s",
        space={"kind": "time-steps", "steps": 4},
        objective=ado.CandidateMetric(function, identity="distance"),
        optimizer=sampler,
        trials=24,
        storage=url,
        seed=seed,
        model_info=INFO,
    )


def sequence(study: ado.Study) -> list[Any]:
    """The candidate of each position that completed, in the order of positions."""
    optuna_study = optuna.load_study(study_name="s", storage=study.storage)
    history = History(optuna_study).refresh()
    complete = [trial for trial in history.trials.values() if trial.state == TrialState.COMPLETE]
    at = {history.position(trial.number): candidate_of(trial) for trial in complete}
    assert sorted(at) == list(range(24))
    return [at[position] for position in range(24)]


@pytest.fixture(scope="module")
def single_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Any]]:
    """What a sampler proposes in one run of 24 trials, run once."""

    @cache
    def proposed(name: str) -> list[Any]:
        study = study_of(SAMPLERS[name](), f"sqlite:///{tmp_path_factory.mktemp('single')}/s.db")
        study.run(progress=False)
        return sequence(study)

    return proposed


@quiet
@every_sampler
def test_a_study_run_in_parts_proposes_what_a_single_run_does(
    name: str, url: str, single_run: Callable[[str], list[Any]]
) -> None:
    for wanted in (3, 9, 10, 17, 24):
        study = study_of(SAMPLERS[name](), url)
        study.run(wanted, progress=False)
    assert sequence(study) == single_run(name)


@pytest.mark.slow
@quiet
@every_sampler
def test_two_workers_in_turn_and_a_killed_trial_change_nothing(
    name: str, url: str, single_run: Callable[[str], list[Any]]
) -> None:
    """A trial that was lost is retried by a new trial, with another number: the sampler sees it at its position."""
    dead = dead_worker()
    for wanted in (4, 11, 16, 24):
        study = study_of(SAMPLERS[name](), url)
        study.run(wanted, progress=False)
        if wanted < 24:
            lost = Claims(History(need_study(study.storage, "s")), study.problem.space.encode).take(24)
            assert lost is not None
            study.storage.set_trial_user_attr(lost.trial_id, WORKER, dead)
    assert len(study.trials()) == 24 + 3
    assert sequence(study) == single_run(name)


@pytest.mark.slow
@quiet
def test_another_seed_proposes_others(url: str, single_run: Callable[[str], list[Any]]) -> None:
    study = study_of(optuna.samplers.RandomSampler(), url, seed=1)
    study.run(progress=False)
    baselines = len([trial for trial in study.trials() if BASELINE in trial.user_attrs])
    assert sequence(study)[:baselines] == single_run("random")[:baselines]
    assert not set(sequence(study)[baselines:]) & set(single_run("random")[baselines:])


@pytest.mark.slow
@quiet
def test_tpe_beats_random_search(tmp_path_factory: pytest.TempPathFactory) -> None:
    best: dict[str, list[float]] = {"tpe": [], "random": []}
    for name in best:
        for seed in range(3):
            url = f"sqlite:///{tmp_path_factory.mktemp('search')}/s.db"
            study = study_of(SAMPLERS[name](), url, seed=seed)
            study.run(45, progress=False)
            best[name].append(study.best().value)
    assert np.mean(best["tpe"]) < 0.8 * np.mean(best["random"])


@quiet
def test_the_users_sampler_is_not_changed(url: str) -> None:
    sampler = optuna.samplers.TPESampler(seed=3)
    state = sampler._rng.rng.get_state()[1].copy()
    study_of(sampler, url).run(12, progress=False)
    assert (sampler._rng.rng.get_state()[1] == state).all()


class OwnSampler(BaseSampler):
    """A sampler of somebody's, with a generator of its own."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng()

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        assert [t.number for t in study.trials] == list(range(trial.number))
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> int:
        return int(self.rng.integers(distribution.low, distribution.high + 1))


@pytest.mark.slow
def test_a_sampler_of_ones_own_with_a_numpy_generator_is_seeded_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    sequences = []
    for parts in ((24,), (9, 24)):
        url = f"sqlite:///{tmp_path_factory.mktemp('own')}/s.db"
        for wanted in parts:
            study = study_of(OwnSampler(), url)
            study.run(wanted, progress=False)
        sequences.append(sequence(study))
    assert sequences[0] == sequences[1]


def test_all_generators_of_a_sampler_are_seeded_each_otherwise() -> None:
    def states(seed: int) -> list[int]:
        sampler = optuna.samplers.TPESampler()
        _seed(sampler, np.random.default_rng(seed))
        return [int(part._rng.rng.randint(2**31)) for part in (sampler, sampler._random_sampler)]

    assert states(1) == states(1)
    assert len({*states(1), *states(2)}) == 4


def test_a_sampler_is_described_by_its_settings_and_not_by_its_seed() -> None:
    described = describe_sampler(optuna.samplers.TPESampler(n_startup_trials=7, seed=1))
    assert described["kind"] == "optuna.samplers._tpe.sampler.TPESampler"
    assert described["n_startup_trials"] == 7
    assert described == describe_sampler(optuna.samplers.TPESampler(n_startup_trials=7, seed=2))
    assert described != describe_sampler(optuna.samplers.TPESampler(n_startup_trials=8))


@quiet
def test_another_sampler_under_the_same_name_is_refused(url: str) -> None:
    study_of(optuna.samplers.TPESampler(), url).run(10, progress=False)
    with pytest.raises(UserError, match=r"optimizer\.n_startup_trials: 10 -> 3"):
        study_of(optuna.samplers.TPESampler(n_startup_trials=3), url).run(progress=False)


@pytest.mark.parametrize("kind", [PREFIX + name for name in OPTUNA_SAMPLERS])
def test_a_table_names_a_sampler_and_its_arguments(kind: str) -> None:
    space = build_space({"kind": "time-steps", "steps": 4}, "here").space(INFO)
    arguments = {"n_startup_trials": 3} if kind in ("optuna:tpe", "optuna:cmaes") else {}
    sampler = build_optimizer({"kind": kind, **arguments}, "here").sampler(space, 0)
    assert isinstance(sampler, ParameterSampler)
    if arguments:
        assert sampler.original._n_startup_trials == 3


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "optuna:tpee"}, "Did you mean 'optuna:tpe'?"),
        ({"kind": "optuna:tpe", "n_startup_trails": 3}, "Did you mean 'n_startup_trials'?"),
        ({"kind": "optuna:tpe", "seed": 3}, "seed is the study's"),
    ],
)
def test_a_wrong_sampler_or_argument_is_refused_at_load(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        build_optimizer(table, "here")
    assert message in str(error.value)
    assert str(error.value).startswith("here: ")


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cmaes", None)
    space = build_space({"kind": "time-steps", "steps": 4}, "here").space(INFO)
    with pytest.raises(UserError, match="needs the package cmaes: pip install cmaes"):
        build_optimizer({"kind": "optuna:cmaes"}, "here").sampler(space, 0)


@pytest.mark.parametrize("optimizer", ["optuna:tpe", optuna.samplers.RandomSampler()])
def test_layers_that_parameters_do_not_tell_are_refused(optimizer: Any, url: str) -> None:
    study = ado.Study(
        "s",
        space={"kind": "joint", "n_max": 40, "layers": "any"},
        objective=ado.CandidateMetric(distance, identity="distance"),
        optimizer=optimizer,
        storage=url,
        model_info=INFO,
    )
    with pytest.raises(UserError, match=r'layers = "ranked".*evolution, random'):
        study.run(progress=False)
    assert study.trials() == []
