"""Nevergrad's optimizers in a study: refused names, the record of each ask, and what happens where it does not fit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState
from trials.test_workers import dead_worker

import autodiffusion_opt as ado
from autodiffusion_opt import testing
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.optimizer.nevergrad_names import RECOMMENDED, REFUSALS, check_not_refused
from autodiffusion_opt.study.config import build_optimizer
from autodiffusion_opt.trials.attributes import NEVERGRAD, WORKER, candidate_of
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.studies import need_study
from autodiffusion_opt.trials.turns import wait_for_turn


def study_of(url: str, name: str = "OnePlusOne", objective: Any = None, trials: int = 12, **keys: Any) -> ado.Study:
    return ado.Study(
        "s",
        space={"kind": "time-steps", "steps": 4},
        objective=objective or ado.CandidateMetric(testing.cost, identity="cost"),
        optimizer={"kind": f"nevergrad:{name}", **keys},
        trials=trials,
        storage=url,
        model_info=testing.INFO,
    )


def history_of(study: ado.Study) -> History:
    return History(need_study(study.storage, "s")).refresh()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Cobyla", r"keeps a process from exiting"),
        ("LognormalDiscreteOnePlusOne", r"no seed determines"),
        ("EDA", r"takes no points that it did not ask for"),
        ("BO", r"use optuna:gp"),
        ("TwoPointDE", r"Did you mean 'TwoPointsDE'\?"),
    ],
)
def test_names_that_cannot_be_used_are_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_optimizer({"kind": f"nevergrad:{name}"}, "here")


@pytest.mark.parametrize("name", ["NGOpt", "MetaModel"])
def test_names_that_fail_with_new_numpy_alone_are_refused_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "__version__", "2.3.5")
    check_not_refused(name)
    monkeypatch.setattr(np, "__version__", "2.4.0")
    with pytest.raises(ValueError, match=r"fails with NumPy .* use NgIohTuned"):
        check_not_refused(name)


def test_no_recommended_name_is_refused() -> None:
    assert not [name for name in RECOMMENDED if any(re.search(refusal.pattern, name) for refusal in REFUSALS)]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("num_workers", 1, "greater than or equal to 2"), ("popsize", 3, "popsize is unknown"), ("seed", 3, "seed is")],
)
def test_wrong_keys_are_refused(key: str, value: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_optimizer({"kind": "nevergrad:CMA", key: value}, "here")


def test_nevergrad_is_not_imported_before_a_table_names_it() -> None:
    code = "import sys, autodiffusion_opt.study.run, autodiffusion_opt.cli; sys.exit('nevergrad' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_a_process_that_used_it_prints_nothing_and_exits_by_itself(url: str) -> None:
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import sys, autodiffusion_opt as ado; from autodiffusion_opt import testing\n"
        "ado.Study('s', space={'kind': 'time-steps', 'steps': 4}, model_info=testing.INFO, trials=12,\n"
        "  objective=ado.CandidateMetric(testing.cost, identity='cost'), optimizer='nevergrad:NgIohTuned',\n"
        "  storage=sys.argv[1]).run(progress=False)"
    )
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_ask_keeps_what_was_told_before_it_and_each_position_is_told_once(url: str) -> None:
    study = study_of(url)
    study.run(progress=False)
    history = history_of(study)
    told: list[int] = []
    for trial in history.trials.values():
        if NEVERGRAD in trial.user_attrs:
            record = trial.user_attrs[NEVERGRAD]
            told += [position for position, _ in record["told"]]
            for position, loss in record["told"]:
                assert history.at(position)[0].value == loss
            assert set(record["versions"]) == {"nevergrad", "numpy"}
            assert not record["assumed"]
    assert told == list(range(11))  # of 12, the last one is told to nobody


def test_a_failed_or_stopped_trial_is_told_the_worst_loss_known(url: str) -> None:
    study = study_of(url, objective=testing.Troubled(), trials=20)
    study.run(progress=False)
    history = history_of(study)
    worst, assumed = -np.inf, []
    for trial in history.trials.values():
        record = trial.user_attrs.get(NEVERGRAD, {"told": [], "assumed": []})
        worst = max([worst, *(loss for _, loss in record["told"])])
        assert all(loss == worst for _, loss in record["assumed"])
        assumed += [position for position, _ in record["assumed"]]
    states = {history.at(position)[0].state for position in assumed}
    assert states == {TrialState.FAIL, TrialState.PRUNED}


def test_a_point_that_other_versions_proposed_is_told_with_a_warning_and_the_search_goes_on(url: str) -> None:
    study = study_of(url)
    study.run(9, progress=False)
    last = study.trials()[-1]
    changed = last.user_attrs[NEVERGRAD] | {"point": [0.25] * 4, "versions": {"nevergrad": "0.9", "numpy": "1.0"}}
    with study.storage.engine.begin() as connection:
        connection.execute(
            sqlalchemy.text("UPDATE trial_user_attributes SET value_json = :v WHERE trial_id = :t AND key = :k"),
            {"v": json.dumps(changed), "t": last._trial_id, "k": NEVERGRAD},
        )
    with pytest.warns(UserWarning, match=r"trial 8, with nevergrad 0.9 and numpy 1.0; here: nevergrad") as caught:
        study_of(url).run(12, progress=False)
    assert len(caught) == 1
    assert len(study.best().candidate.times) == 4
    assert len(study.trials()) == 12


def test_a_trial_that_died_after_its_ask_keeps_its_point(url: str) -> None:
    """The ask is in SQL, the candidate is not: the retry does not ask again."""
    whole = study_of(url.replace("studies.db", "whole.db"))
    whole.run(progress=False)
    study = study_of(url)
    study.run(9, progress=False)
    optuna_study = need_study(study.storage, "s")
    lost = study.storage.start(optuna_study._study_id, None)
    assert lost is not None
    record = whole.trials()[9].user_attrs[NEVERGRAD]
    study.storage.set_trial_user_attr(lost, NEVERGRAD, record)
    study.storage.set_trial_user_attr(lost, WORKER, dead_worker())
    study_of(url).run(12, progress=False)
    history = history_of(study)
    complete = [trial for trial in history.trials.values() if trial.state == TrialState.COMPLETE]
    proposed = {history.position(trial.number): candidate_of(trial) for trial in complete}
    assert [proposed[position] for position in range(12)] == [candidate_of(trial) for trial in whole.trials()]


def test_a_dead_worker_loses_its_turn_and_cannot_publish_later(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autodiffusion_opt.trials.turns.ALIVE_SECONDS", 0.05)
    study = study_of(url)
    study.run(6, progress=False)
    optuna_study = need_study(study.storage, "s")
    dead, alive = study.storage.start(optuna_study._study_id, None), study.storage.start(optuna_study._study_id, None)
    assert dead is not None
    assert alive is not None
    study.storage.set_trial_user_attr(dead, WORKER, dead_worker())
    assert wait_for_turn(History(optuna_study), 7, NEVERGRAD) > 0
    assert study.storage.get_trial(dead).state == TrialState.FAIL
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        study.storage.set_trial_user_attr(dead, NEVERGRAD, {})


def test_points_drawn_at_once_go_on_beyond_the_budget(url: str) -> None:
    study = study_of(url, "ScrHammersleySearch", budget=5, trials=18)
    study.run(progress=False)
    assert len({trial.user_attrs["candidate"] for trial in study.trials()}) > 15


@pytest.mark.slow
def test_it_beats_random_search(tmp_path_factory: pytest.TempPathFactory) -> None:
    best: dict[str, list[float]] = {"OnePlusOne": [], "RandomSearch": []}
    for name, values in best.items():
        for seed in range(2):
            url = f"sqlite:///{tmp_path_factory.mktemp('search')}/s.db"
            study = study_of(url, name, trials=40)
            study.config = study.config.with_seed(seed)
            study.run(progress=False)
            values.append(study.best().value)
    assert np.mean(best["OnePlusOne"]) < 0.8 * np.mean(best["RandomSearch"])
