"""``show STUDY --trial N``, and what a trial holds of where and how it was measured."""

from __future__ import annotations

import json
import platform
import socket
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState, create_trial

import autodiffusion_opt as ado
from autodiffusion_opt.objective.image_objective import Clock
from autodiffusion_opt.study import provenance as provenance_room
from autodiffusion_opt.study.provenance import versions
from autodiffusion_opt.trials.attributes import CANDIDATE, ERROR, RETRY_OF, SCORE, VERSIONS
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.studies import need_study

Call = Callable[..., tuple[int, str, str]]
INFO = ado.ModelInfo(1000, layers=4, removable=(0, 1, 2, 3))


def whole(call: Call, *words: object) -> dict[str, Any]:
    code, out, err = call("show", *words, "--json")
    assert code == 0, err
    shown: dict[str, Any] = json.loads(out)
    return shown


def test_a_trial_is_shown_whole(ran: tuple[Path, str], call: Call) -> None:
    (best, *_) = json.loads(call("best", "small", "--storage", ran[1], "--json")[1])
    shown = whole(call, ran[0], "--trial", best["trial"], "--storage", ran[1])
    assert (shown["study"], shown["trial"], shown["position"]) == ("small", best["trial"], best["trial"])
    assert (shown["state"], shown["optimizer"], shown["error"]) == ("complete", "evolution", None)
    assert (shown["candidate"], shown["values"], shown["measured"]) == (
        best["candidate"],
        best["values"],
        best["measured"],
    )
    assert (shown["costs"]["images"], shown["costs"]["nfe"]) == (20, 4)
    assert shown["began"] < shown["ended"]
    assert shown["parameters"]
    assert shown["worker"].startswith(f"{socket.gethostname()}:")
    out = call("show", "small", "--trial", best["trial"], "--storage", ran[1])[1]
    for step in best["candidate"]["steps"]:
        assert f"time {step['time']:g}: all layers" in out
    assert "evolution" in out


def test_seconds_by_part_are_those_of_the_trial(ran: tuple[Path, str], call: Call) -> None:
    shown = whole(call, "small", "--trial", 9, "--storage", ran[1])
    parts = shown["seconds_of"]
    assert set(parts) == {"sampling", "features", "metric", "bookkeeping"}
    assert min(parts.values()) > 0
    assert sum(parts.values()) - parts["bookkeeping"] == pytest.approx(shown["costs"]["seconds"])


def test_provenance_says_where_and_with_what_a_trial_was_measured(ran: tuple[Path, str], call: Call) -> None:
    shown = whole(call, "small", "--trial", 9, "--storage", ran[1])["provenance"]
    assert (shown["host"], shown["device"], shown["dtype"]) == (socket.gethostname(), "cpu", "float32")
    assert shown["device_name"]
    assert set(shown["versions"]) == {"python", "autodiffusion-opt", "torch", "diffusers", "optuna", "nevergrad"}
    assert shown["versions"]["torch"] == torch.__version__
    assert shown["versions"]["optuna"] == optuna.__version__
    assert need_study(open_storage(ran[1]), "small").user_attrs[VERSIONS] == shown["versions"]


def test_a_candidate_that_could_not_be_measured_says_where_too(url: str, call: Call) -> None:
    def wrong(candidate: ado.Candidate) -> float:
        raise RuntimeError("no value")

    study = ado.Study(
        "failing",
        space={"kind": "time-steps", "steps": 3},
        objective=ado.CandidateMetric(wrong, identity="wrong"),
        optimizer="random",
        trials=1,
        storage=url,
        model_info=INFO,
    )
    assert study.run(progress=False) == []
    shown = whole(call, "failing", "--trial", 0, "--storage", url)
    assert "no value" in shown["error"]
    assert shown["provenance"] == {"host": socket.gethostname(), "versions": versions()}


def test_versions_of_libraries_that_are_not_imported_or_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance_room, "LIBRARIES", ("no-such-library", "cmaes", "optuna"))
    monkeypatch.delitem(sys.modules, "cmaes", raising=False)
    expected = {"no-such-library": "unknown", "cmaes": metadata.version("cmaes"), "optuna": optuna.__version__}
    assert versions() == {"python": platform.python_version(), **expected}


def study_of(url: str, function: Callable[[ado.Candidate], float], trials: int = 6) -> ado.Study:
    return ado.Study(
        "mine",
        space={"kind": "joint", "n_max": 8, "steps_min": 2, "steps_max": 4, "layers": "any"},
        objective=ado.CandidateMetric(function, identity="mine", at_most={"value": 2}),
        optimizer="random",
        trials=trials,
        storage=url,
        model_info=INFO,
    )


def number_of(candidate: ado.Candidate) -> float:
    return float(len(candidate.steps))


def test_a_study_that_knows_no_versions_is_continued(url: str, call: Call) -> None:
    """As an earlier version left it: neither it nor its trials say where they come from."""
    study = study_of(url, number_of, trials=3)
    study.run(progress=False)
    stored = need_study(study.storage, "mine")
    with study.storage.engine.begin() as connection:
        connection.exec_driver_sql(f"DELETE FROM study_user_attributes WHERE key = '{VERSIONS}'")
        kept = json.dumps({"values": {"value": 3.0}, "images": 0, "seconds": 0.5})
        connection.exec_driver_sql(f"UPDATE trial_user_attributes SET value_json = '{kept}' WHERE key = '{SCORE}'")
    assert len(study_of(url, number_of).run(progress=False)) == 6
    assert VERSIONS not in stored.user_attrs
    old, new = (whole(call, "mine", "--trial", number, "--storage", url) for number in (2, 5))
    assert (old["provenance"], old["seconds_of"]) == (None, {})
    assert new["provenance"]["versions"] == versions()
    assert call("show", "mine", "--trial", 2, "--storage", url)[0] == 0


def test_removed_layers_bounds_and_rungs_are_shown(url: str, call: Call) -> None:
    study = study_of(url, number_of, trials=9)
    study.run(progress=False)
    candidates = [whole(call, "mine", "--trial", number, "--storage", url)["candidate"] for number in range(9)]
    number = next(n for n, candidate in enumerate(candidates) if any(s.get("removed") for s in candidate["steps"]))
    step = next(step for step in candidates[number]["steps"] if step.get("removed"))
    out = call("show", "mine", "--trial", number, "--storage", url)[1]
    layers = ", ".join(map(str, step["removed"]))
    assert f"time {step['time']:g}: without layers {layers}" in out
    shown = whole(call, "mine", "--trial", number, "--storage", url)
    steps = len(candidates[number]["steps"])
    assert steps > 2
    assert shown["constraints"] == {"value at most": (steps - 2) / 2}  # as a share of the bound
    assert set(shown["seconds_of"]) == {"metric", "bookkeeping"}
    assert "device" not in shown["provenance"]


def test_a_trial_that_was_retried_failed_or_reported_rungs_is_shown(url: str, call: Call) -> None:
    study_of(url, number_of, trials=2).run(progress=False)
    stored = need_study(open_storage(url), "mine")
    candidate = ado.Candidate.from_time_steps([700, 30], guidance_scale=3.5, end_time=2.5).to_json()
    attributes = {CANDIDATE: candidate, RETRY_OF: 1, ERROR: "a [bold]word[/bold]\x1b[2J"}
    failed = create_trial(
        state=TrialState.FAIL, user_attrs=attributes, intermediate_values={100: 2.5, 20: float("nan")}
    )
    stored.add_trial(failed)
    number = len(stored.trials) - 1
    shown = whole(call, "mine", "--trial", number, "--storage", url)
    assert (shown["state"], shown["position"], shown["retry_of"]) == ("fail", 1, 1)
    assert list(shown["rungs"].items()) == [("20", None), ("100", 2.5)]
    assert (shown["values"], shown["costs"]["nfe"]) == ({}, None)
    out = call("show", "mine", "--trial", number, "--storage", url)[1]
    for text in ("a [bold]word[/bold]\\x1b[2J", "guidance scale 3.5", "ends at time 2.5", "100 2.5"):
        assert text in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("small", "--trial", 14), "--trial must be a number from 0 to 13, in the study 'small'; got 14"),
        (("smal", "--trial", 0), "Did you mean 'small'?"),
        (("digits-4",), "--storage is for a trial, digits-4 --trial N"),
    ],
)
def test_what_is_not_there_is_told(words: tuple[object, ...], message: str, ran: tuple[Path, str], call: Call) -> None:
    code, out, err = call("show", *words, "--storage", ran[1])
    assert (code, out) == (2, "")
    assert message in err


def test_of_a_study_without_trials_none_is_shown(url: str, call: Call) -> None:
    optuna.create_study(storage=url, study_name="empty")
    code, _, err = call("show", "empty", "--trial", 0, "--storage", url)
    assert code == 2
    assert "there is none yet, in the study 'empty'; got 0" in err


def test_a_clock_adds_up_what_is_between_its_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 11.0, 13.0, 100.0, 104.0])
    monkeypatch.setattr("autodiffusion_opt.objective.image_objective.time.perf_counter", lambda: next(times))
    clock = Clock()
    clock.start()
    clock.stop("sampling")
    clock.stop("features")
    clock.start()
    clock.stop("sampling")
    assert clock.seconds == {"sampling": 5.0, "features": 2.0}
