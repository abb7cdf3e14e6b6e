"""optuna-dashboard, asked over HTTP, about studies with parameters that decoding ignores, and with bounds."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest

import autodiffusion_opt as ado
from autodiffusion_opt.report.dashboard import server
from autodiffusion_opt.space import SPACES
from autodiffusion_opt.trials.opening import open_storage

# A path, a body and a method (GET without a body) -> the answer.
Ask = Callable[..., Any]
INFO = ado.ModelInfo(train_steps=1000, layers=4, removable=(0, 1, 2, 3), ranking=((0, 1, 2, 3),) * 3)


@contextmanager
def asking(url: str) -> Iterator[Ask]:
    """A dashboard that runs, to be asked."""
    with server(url, "127.0.0.1", 0) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()

        def ask(path: str, body: object = None, method: str | None = None) -> Any:
            data = None if body is None else json.dumps(body).encode()
            address = f"http://127.0.0.1:{listening.server_port}/{path}"
            request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
            with urllib.request.urlopen(request) as answer:
                content = answer.read()
            return json.loads(content) if content else None

        try:
            yield ask
        finally:
            listening.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The database of ``joint``: one to six steps, of which only the last time matters; and of ``bounded``."""
    url = f"sqlite:///{tmp_path_factory.mktemp('dashboard')}/studies.db"
    ado.Study(
        "joint",
        space={"kind": "joint", "n_max": 24, "steps_max": 6, "layers": "ranked"},
        objective=ado.CandidateMetric(lambda candidate: candidate.times[-1], identity="last-1"),
        optimizer="random",
        trials=60,
        storage=url,
        model_info=INFO,
    ).run()
    ado.Study(
        "bounded",
        space={"kind": "time-steps", "steps": 2},
        objective=ado.CandidateMetric(
            lambda candidate: {"first": -candidate.times[0], "gap": candidate.times[0] - candidate.times[-1]},
            identity="first-1",
            minimise=["first"],
            at_most={"gap": 300},
        ),
        optimizer="random",
        trials=40,
        storage=url,
        model_info=INFO,
    ).run()
    return url


@pytest.fixture(scope="module")
def ask(url: str) -> Iterator[Ask]:
    """Asks a dashboard of both."""
    with asking(url) as ask:
        yield ask


def stored_trials(url: str, name: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=url).get_trials(deepcopy=False)


def test_a_trial_shows_no_parameter_that_decoding_ignores(url: str, ask: Ask) -> None:
    shown = ask("api/studies/1")["trials"]
    stored = stored_trials(url, "joint")
    assert len(shown) == len(stored)
    for trial, full in zip(shown, stored, strict=True):
        assert len(full.params) >= 9
        assert {p["name"] for p in trial["params"]} == set(full.params) - SPACES["joint"].ignored(full.params)
    assert len({len(trial["params"]) for trial in shown}) > 1


def test_importances_take_ignored_parameters_for_conditional_ones(url: str, ask: Ask) -> None:
    (importances,) = ask("api/studies/1/param_importances")["param_importances"]
    by_name = {each["name"]: each["importance"] for each in importances}
    stored = optuna.load_study(study_name="joint", storage=url)
    assert set(by_name) == set(stored.trials[0].params)  # what few trials ignore is not lost
    counting = optuna.create_study()
    ignored = SPACES["joint"].ignored
    for trial in stored.trials:
        names = set(trial.params) - ignored(trial.params)
        counting.add_trial(
            optuna.create_trial(
                params={name: trial.params[name] for name in names},
                distributions={name: trial.distributions[name] for name in names},
                value=trial.value,
            )
        )
    assert by_name == pytest.approx(optuna.importance.get_param_importances(counting))
    assert by_name != pytest.approx(optuna.importance.get_param_importances(stored))


def test_the_best_trial_keeps_to_its_bounds(url: str, ask: Ask) -> None:
    (best,) = ask("api/studies/2")["best_trials"]
    study = optuna.load_study(study_name="bounded", storage=url)
    assert best["number"] == study.best_trial.number
    assert best["values"][0] > min(trial.value for trial in study.trials if trial.value is not None)


def test_what_the_dashboard_writes_is_stored(url: str, ask: Ask) -> None:
    trial = stored_trials(url, "joint")[3]
    ask(f"api/studies/1/{trial._trial_id}/note", {"version": 1, "body": "of a trial"}, "PUT")
    assert ask("api/studies/1")["trials"][3]["note"]["body"] == "of a trial"
    picture = {"file": "data:image/png;base64,iVBORw0KGgo=", "filename": "x.png"}
    ask("api/artifacts/1", picture, "POST")
    assert ask("api/studies/1")["artifacts"][0]["filename"] == "x.png"


def test_a_study_that_the_dashboard_renames_keeps_all_parameters(url: str, tmp_path: Path) -> None:
    from autodiffusion_opt.study.housekeeping import copy

    other = f"sqlite:///{tmp_path}/other.db"
    copy("joint", open_storage(url), other)
    with asking(other) as ask:
        ask("api/studies/1/rename", {"study_name": "renamed"}, "POST")
    before, after = stored_trials(url, "joint"), stored_trials(other, "renamed")
    assert [trial.params for trial in after] == [trial.params for trial in before]
    assert [trial.distributions for trial in after] == [trial.distributions for trial in before]


def test_a_study_of_another_program_is_shown_as_it_is(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/others.db"
    study = optuna.create_study(storage=url, study_name="others")
    study.optimize(lambda trial: trial.suggest_int("steps", 1, 3) + trial.suggest_float("t9", 0, 1), n_trials=5)
    with asking(url) as ask:
        shown = ask("api/studies/1")
    assert [sorted(p["name"] for p in trial["params"]) for trial in shown["trials"]] == [["steps", "t9"]] * 5
    assert shown["best_trials"][0]["number"] == study.best_trial.number
