"""What a run would do: told as the run then does it, with nothing written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from autodiffusion_opt import Study
from autodiffusion_opt.study.dry_run import _images, _log10_points, dry_run
from autodiffusion_opt.trials.attributes import BASELINE

Call = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]


@pytest.mark.skipif("AUTODIFFUSION_TEST_SERVER" in os.environ, reason="looks at SQLite's file")
def test_nothing_is_written(study_file: Write, url: str, call: Call) -> None:
    path, database = study_file(), Path(url.removeprefix("sqlite:///"))
    code, out, _ = call("run", path, "--storage", url, "--dry-run")
    assert (code, "no trial yet" in out, database.exists()) == (0, True, False)
    database.touch()  # an empty database has no studies either
    assert call("run", path, "--storage", url, "--dry-run")[0] == 0
    assert database.read_bytes() == b""
    assert call("run", path, "--storage", url, "--trials", 3)[0] == 0
    before = database.read_bytes()
    code, out, _ = call("run", path, "--storage", url, "--dry-run", "--json")
    told = json.loads(out)
    assert (code, told["stored"], told["trials_to_run"]) == (0, {"complete": 3, "waiting": 5}, 11)
    assert database.read_bytes() == before


def test_the_run_does_what_was_told(ran: tuple[Path, str], url: str, call: Call) -> None:
    told = json.loads(call("run", ran[0], "--storage", url, "--dry-run", "--json")[1])
    study = Study.load(ran[0], storage=ran[1])
    trials = study.trials()
    measured = [result.costs for result in study.run()]
    assert (told["trials"], told["trials_to_run"]) == (len(trials), len(trials))
    assert told["images"] == [20 * len(trials)] * 2
    assert {costs["nfe"] for costs in measured} == set(told["nfe"])
    assert {costs["flops"] for costs in measured} == set(told["flops"])
    assert {costs["layer_runs"] for costs in measured} == set(told["layer_runs"])
    assert told["networks"] == [4.0, 4.0]
    names = [trial.user_attrs[BASELINE] for trial in trials if BASELINE in trial.user_attrs]
    assert [label.partition(" = ")[0] for label in told["baselines"]] == names
    assert (told["parameters"], told["log10_points"]) == (4, pytest.approx(12))
    assert told["seconds"][0] == pytest.approx(20 * len(trials) * sum(told["seconds_of"].values()))
    again = json.loads(call("run", ran[0], "--storage", ran[1], "--dry-run", "--json")[1])
    assert (again["trials_to_run"], again["images"], again["seconds"]) == (0, [0, 0], [0, 0])


def test_what_is_sampled_before_the_first_trial_is_told(study_file: Write, url: str, call: Call) -> None:
    words = ["--set", "optimizer.kind=local", "--set", 'objective={kind="psnr", images=[10, 40], teacher_steps=7}']
    path = study_file()
    path.write_text(path.read_text().partition("[optimizer]")[0])
    planned = dry_run(Study.load(path, storage=url, overrides=tuple(words[1::2])))
    assert {(each.name, each.images, each.nfe) for each in planned.preparations} == {
        ("teacher of 7 steps", 40, 7),
        ("warm start dp", 64, 46),
    }
    assert planned.start_from == ("dp",)
    # Eight baselines whole; six others are stopped after ten images, or are not.
    assert planned.images == (8 * 40 + 6 * 10, 14 * 40)
    calls = planned.seconds_of["sampling"] / 4 * (40 * 7 + 64 * 46)
    assert planned.seconds[1] == pytest.approx(calls + 14 * 40 * sum(planned.seconds_of.values()))
    code, out, _ = call("run", path, "--storage", url, "--dry-run", *words)
    assert code == 0
    for part in ("teacher of 7 steps: 40 images of 7 calls", "380 to 560 in the trials", "MFLOP", "10^12.0", "own = "):
        assert part in out


def test_a_ranking_is_told_and_not_made(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("autodiffusion_opt.sampling.ranking.rank_layers", never)
    planned = dry_run(Study.load("digits-joint-ranked", storage=url), trials=9)
    assert "layer ranking" in [each.name for each in planned.preparations]
    assert (planned.trials, planned.trials_to_run) == (9, 9)


def test_what_a_run_would_refuse_is_told(ran: tuple[Path, str], url: str, call: Call) -> None:
    path = ran[0].with_name("other") / "small.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(ran[0].read_text().replace("steps = 4", "steps = 3"))
    code, out, _ = call("run", path, "--storage", ran[1], "--dry-run", "--json")
    assert (code, json.loads(out)["changes"]) == (0, ["space.steps: 4 -> 3"])
    assert (
        "the definition there is another: space.steps: 4 -> 3" in call("run", path, "--storage", ran[1], "--dry-run")[1]
    )
    code, out, err = call("run", "digits-joint", "--storage", url, "--dry-run", "--optimizer", "optuna:tpe")
    assert (code, out, "optuna:tpe" in err) == (2, "", True)
    assert call("run", path, "--storage", "garbage", "--dry-run")[0] == 2


def test_of_several_studies_each_is_told(ran: tuple[Path, str], url: str, call: Call) -> None:
    words = ("--storage", url, "--dry-run", "--quiet", "--json", "--optimizer", "random,optuna:tpe")
    code, out, err = call("run", ran[0], *words)
    assert (code, err) == (0, "")
    assert [each["optimizer"] for each in json.loads(out)] == ["random", "optuna:tpe"]


@pytest.mark.parametrize(
    ("distributions", "points"),
    [
        ([IntDistribution(0, 999)] * 4, 1000**4),
        ([IntDistribution(0, 999), CategoricalDistribution(["a", "b", "c"])], 3000),
        ([FloatDistribution(0, 1, step=0.25)], 5),
        ([IntDistribution(1, 7, step=3)], 3),
    ],
)
def test_points_are_counted(distributions: list[Any], points: int) -> None:
    logarithm = _log10_points(distributions)
    assert logarithm is not None
    assert logarithm == pytest.approx(math.log10(points))
    assert _log10_points([*distributions, FloatDistribution(0, 1)]) is None


def test_fewer_trials_than_baselines_are_all_measured_whole() -> None:
    assert _images(3, 8, (10, 40), True) == (120, 120)
    assert _images(10, 8, (10, 40), True) == (8 * 40 + 2 * 10, 400)
    assert _images(10, 8, (10, 40), False) == (400, 400)
    assert _images(0, 8, (10, 40), True) == (0, 0)
