"""A study whose trials take as long as is asked for, in processes that are forked: starting one takes no imports."""

from __future__ import annotations

import multiprocessing
import time
import warnings
from typing import Any

import optuna

import autodiffusion_opt as ado
from autodiffusion_opt import testing
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.studies import need_study

FORK = multiprocessing.get_context("fork")


def study_of(url: str, trials: int, seconds: float = 0.0, optimizer: Any = "local", name: str = "s") -> ado.Study:
    """A study of four time steps without a model."""

    def measured(candidate: ado.Candidate) -> float:
        time.sleep(seconds)
        return testing.cost(candidate)

    return ado.Study(
        name,
        space={"kind": "time-steps", "steps": 4},
        objective=ado.CandidateMetric(measured, identity="cost"),
        optimizer=optimizer,
        trials=trials,
        storage=url,
        model_info=testing.INFO,
    )


def work(url: str, trials: int, seconds: float, optimizer: Any, patience: float) -> None:
    """What a worker's process does."""
    warnings.simplefilter("ignore")  # that the database is gone, and that others are at work
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study_of(url, trials, seconds, optimizer).run(progress=False, wait=True, patience=patience)


def start_worker(url: str, trials: int, seconds: float = 0.0, optimizer: Any = "local", patience: float = 60.0) -> Any:
    """A worker's process."""
    process = FORK.Process(target=work, args=(url, trials, seconds, optimizer, patience))
    process.start()
    return process


def history_of(study: ado.Study) -> History:
    """All that SQL holds."""
    return History(need_study(study.storage, study.config.name)).refresh()
