"""What every optimizer in the registry must do; an optimizer that is added is tested here."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from marks import slow_but

from autodiffusion_opt import testing
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.optimizer import OPTIMIZERS, OptimizerConfig
from autodiffusion_opt.optimizer.nevergrad_names import RECOMMENDED
from autodiffusion_opt.study.config import build_optimizer, build_space

# Where the default would not leave the random start within the few trials of a check.
TABLES: dict[str, Any] = {
    "evolution": {"kind": "evolution", "population": 5, "parents": 3, "mutations": 2, "crossovers": 2},
    "optuna:tpe": {"kind": "optuna:tpe", "n_startup_trials": 5},
    "optuna:gp": {"kind": "optuna:gp", "n_startup_trials": 10},
    "optuna:nsga2": {"kind": "optuna:nsga2", "population_size": 4},
    "optuna:nsga3": {"kind": "optuna:nsga3", "population_size": 4},
    "optuna:catcma": {"kind": "optuna:catcma", "population": 4},
    **{f"nevergrad:{name}": {"kind": f"nevergrad:{name}", "budget": 16} for name in RECOMMENDED},
}
# One of each nature proposes in every space: models of the values, populations, points drawn at once. A few of these
# have all checks; the others, and whatever takes seconds an ask, have them with -m slow.
QUICK = (
    "local",
    "evolution",
    "random",
    "optuna:tpe",
    "optuna:grid",
    "optuna:catcma",
    "nevergrad:CMA",
)
EVERY = [*OPTIMIZERS, *(f"nevergrad:{name}" for name in RECOMMENDED)]
every_optimizer = pytest.mark.parametrize("kind", slow_but(EVERY, *QUICK))
every_optimizer_slowly = pytest.mark.parametrize("kind", slow_but(EVERY, "local"))


@every_optimizer
@pytest.mark.parametrize("space", slow_but(testing.SPACES, "joint any", "cached any"))
def test_candidates_are_in_the_space_and_the_parameters_are_theirs(kind: str, space: str) -> None:
    if not testing.claims(kind, space):
        pytest.skip("parameters do not tell which layers; the refusal is tested elsewhere")
    testing.check_candidates(TABLES.get(kind, kind), space)


@every_optimizer_slowly
def test_a_study_run_in_parts_with_a_dead_worker_equals_a_single_run(kind: str) -> None:
    testing.check_resumed(TABLES.get(kind, kind), "time steps")


@every_optimizer_slowly
def test_two_workers_measure_each_position_once(kind: str) -> None:
    testing.check_two_workers(TABLES.get(kind, kind), "time steps")


@pytest.mark.slow
@every_optimizer_slowly
def test_failed_and_stopped_trials_do_not_stop_a_study(kind: str) -> None:
    testing.check_failures(TABLES.get(kind, kind), "time steps")


@pytest.mark.slow
def test_every_check_is_run_for_a_sampler_of_optunas() -> None:
    testing.check_optimizer(optuna.samplers.RandomSampler, trials=16)


class Restarts(optuna.samplers.RandomSampler):
    """Its random numbers start anew in every process, where the study cannot reach them."""

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return optuna.samplers.RandomSampler().sample_independent(study, trial, param_name, param_distribution)


class Stuck(optuna.samplers.RandomSampler):
    """Proposes the same for ever."""

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return param_distribution.low


@pytest.mark.parametrize(
    ("sampler", "check", "message"),
    [(Restarts, testing.check_resumed, "position .* must be"), (Stuck, testing.check_candidates, "may be repeats")],
)
def test_a_check_tells_an_optimizer_that_does_not_conform(sampler: Any, check: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(sampler, "time steps", 10)


@every_optimizer
def test_a_kind_is_a_documented_table_whose_kind_is_its_name(kind: str) -> None:
    table = OPTIMIZERS[kind]
    assert issubclass(table, OptimizerConfig)
    assert table.__doc__
    assert build_optimizer({"kind": kind}, "here").kind == kind


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_sampler_is_another_one_for_each_kind(kind: str) -> None:
    """A kind wired to another kind's sampler would pass all else."""
    wanted = {
        "local": "LocalSearch",
        "evolution": "Evolution",
        "random": "RandomSearch",
        "optuna:tpe": "TPESampler",
        "optuna:cmaes": "CmaEsSampler",
        "optuna:gp": "GPSampler",
        "optuna:qmc": "PositionalQMC",
        "optuna:random": "RandomSampler",
        "optuna:nsga2": "NSGAIISampler",
        "optuna:nsga3": "NSGAIIISampler",
        "optuna:grid": "GridSearch",
        "optuna:catcma": "CatCmaSampler",
    }
    space: Any = build_space(testing.SPACES["time steps"], "here").space(testing.INFO)
    sampler = build_optimizer({"kind": kind}, "here").sampler(space, 0)
    assert type(getattr(sampler, "original", sampler)).__name__ == wanted[kind]


def test_an_unknown_kind_lists_a_family_once() -> None:
    with pytest.raises(UserError, match=r"nevergrad:NAME, optuna:catcma.*Did you mean 'optuna:tpe'\?"):
        build_optimizer({"kind": "optuna:tpee"}, "here")
    assert "nevergrad:CMA" in OPTIMIZERS
    assert not any(kind.startswith("nevergrad") for kind in OPTIMIZERS)
