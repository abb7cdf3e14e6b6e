"""Studies with several values or with bounds: fronts, constraints in SQL, what is refused, what commands show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from marks import slow_but
from optuna.trial import TrialState

import autodiffusion_opt as ado
from autodiffusion_opt.report import tables
from autodiffusion_opt.study.results import stored_study
from autodiffusion_opt.study.verify import verified
from autodiffusion_opt.trials.attributes import REUSED_FROM, constraints_of, excess_of
from autodiffusion_opt.trials.opening import open_storage

INFO = ado.ModelInfo(1000)
quiet = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def early_and_even(candidate: ado.Candidate) -> dict[str, float]:
    """Two values that cannot be least together: the mean time, and how far the mean is from 700."""
    mean = sum(candidate.times) / len(candidate.times)
    return {"mean": mean, "distance": abs(mean - 700), "first": candidate.times[0]}


def study_of(
    url: str, *, optimizer: Any = "random", trials: int = 40, name: str = "several", **goals: Any
) -> ado.Study:
    metric = ado.CandidateMetric(early_and_even, identity="early and even", **goals)
    return ado.Study(
        name,
        space={"kind": "time-steps", "steps": 3},
        objective=metric,
        optimizer=optimizer,
        trials=trials,
        storage=url,
        model_info=INFO,
    )


BOUNDED = {"minimise": ("mean",), "at_most": {"first": 900}}
BOTH = {"minimise": ("mean", "distance")}


@quiet
@pytest.mark.parametrize("optimizer", slow_but(["random", "optuna:tpe", "optuna:nsga2"]))
def test_the_front_is_what_optuna_says_and_is_the_same_in_parts(optimizer: str, url: str) -> None:
    table = {"kind": optimizer, "population_size": 10} if optimizer == "optuna:nsga2" else optimizer
    whole = study_of(url, optimizer=table, **BOTH)
    whole.run(progress=False)
    for trials in (7, 23, 40):
        study_of(url, optimizer=table, name="parts", **BOTH).run(trials, progress=False)
    assert [trial.params for trial in study_of(url, name="parts", optimizer=table, **BOTH).trials()] == [
        trial.params for trial in whole.trials()
    ]
    front = whole.top()
    theirs = optuna.load_study(study_name="several", storage=open_storage(url)).best_trials
    assert {tuple(result.values.values()) for result in front} == {tuple(trial.values) for trial in theirs}
    assert len(front) > 2
    means = [result.values["mean"] for result in front]
    assert means == sorted(means)
    assert whole.best() == front[0]
    assert whole.top(2) == front[:2]


def test_bounds_are_optunas_constraints_and_the_dashboards_list(url: str) -> None:
    study = study_of(url, name="bounded", minimise=("distance",), at_most={"mean": 500.0, "first": 900})
    study.run(progress=False)
    for trial in study.trials():
        mean, first = trial.user_attrs["score"]["values"]["mean"], trial.user_attrs["score"]["values"]["first"]
        wanted = {"mean at most": mean / 500 - 1, "first at most": first / 900 - 1}
        assert constraints_of(trial) == pytest.approx(wanted)
        assert trial.system_attrs["constraints"] == pytest.approx(list(wanted.values()))
        assert excess_of(trial) == pytest.approx(sum(max(0.0, each) for each in wanted.values()))
    results = study.run(progress=False)
    kept = [result for result in results if not result.excess]
    assert 0 < len(kept) < len(results)
    assert results[: len(kept)] == kept  # before the others
    assert all(result.measured["mean"] <= 500 and result.measured["first"] <= 900 for result in kept)
    assert study.best() == kept[0]
    assert min(result.value for result in results) < study.best().value
    optunas = optuna.load_study(study_name="bounded", storage=open_storage(url)).best_trial
    assert optunas.values == list(study.best().values.values())


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", slow_but(["evolution", "optuna:tpe"], "evolution"))
def test_optimizers_look_at_bounds(optimizer: str, url: str) -> None:
    """The best by the value alone is far beyond the bound."""
    table = {"kind": "evolution", "population": 10, "parents": 3, "mutations": 5, "crossovers": 3}
    given = table if optimizer == "evolution" else optimizer
    study = study_of(url, optimizer=given, trials=80, minimise=("distance",), at_most={"mean": 450.0})
    results = study.run(progress=False)
    assert min(result.value for result in results) < 100
    assert 435 < study.best().measured["mean"] <= 450


@quiet
@pytest.mark.parametrize(
    ("optimizer", "goals", "message"),
    [
        (
            "local",
            BOTH,
            "optimizer local searches with one value; this study has mean, distance: use evolution, optuna",
        ),
        ("optuna:cmaes", BOTH, "optimizer optuna:cmaes searches with one value"),
        (optuna.samplers.CmaEsSampler(), BOTH, "optimizer CmaEsSampler searches with one value"),
        (
            "optuna:cmaes",
            {"minimise": ("mean",), "at_most": {"first": 900}},
            "does not look at bounds.*first at most 900",
        ),
    ],
)
def test_optimizers_that_cannot_are_refused_by_name(optimizer: Any, goals: Any, message: str, url: str) -> None:
    pytest.importorskip("cmaes")
    study = study_of(url, optimizer=optimizer, **goals)
    with pytest.raises(ado.UserError, match=message):
        study.run(progress=False)
    assert not study.trials()


def test_where_nothing_keeps_to_its_bounds_the_nearest_is_told(url: str) -> None:
    study = study_of(url, trials=12, minimise=("distance",), at_most={"mean": 1.0})
    results = study.run(progress=False)
    assert len(results) == 12
    nearest = min(results, key=lambda result: result.excess)
    with pytest.raises(ado.UserError, match=f"none of the 12 complete trials.*trial {nearest.trial} is nearest"):
        study.best()
    [row] = tables.status_rows(study.storage)
    assert row["best"] is None


def test_a_repeated_candidate_has_the_constraints_of_the_first(url: str) -> None:
    study = study_of(url, trials=12, minimise=("distance",), at_most={"mean": 500.0})
    study.run(progress=False)
    stored = optuna.load_study(study_name="several", storage=open_storage(url))
    stored.enqueue_trial(study.trials()[1].params)
    study.run(13, progress=False)
    again = study.trials()[12]
    assert again.user_attrs[REUSED_FROM] == 1
    assert again.state == TrialState.COMPLETE
    assert constraints_of(again) == constraints_of(study.trials()[1])


def test_a_function_that_leaves_out_a_value_fails_its_trial(url: str) -> None:
    study = study_of(url, trials=2, minimise=("mean", "median"))
    study.run(progress=False)
    assert {trial.state for trial in study.trials()} == {TrialState.FAIL, TrialState.WAITING}
    assert "must give a value named 'median'; got mean, distance, first" in study.trials()[0].user_attrs["error"]


# The whole way, with images: what commands show.

TWO = """
trials = 24
optimizer = "random"
[pipeline]
model = "digits"
scheduler = "ddim"
device = "cpu"
batch_size = 10
micro_batch = 10
[space]
kind = "joint"
layers = "any"
draw = "uniform"
n_max = 54
steps_min = 2
steps_max = 3
[objective]
kind = "fid"
images = 20
features = "digits"
reference = "digits"
minimise = ["fid", "flops"]
report = ["kid"]
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A study of two values that was run, and its storage."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "two.toml").write_text(TWO)
    study = ado.Study.load(folder / "two.toml", storage=f"sqlite:///{folder}/studies.db")
    study.run(progress=False)
    return study


@pytest.mark.slow
def test_tables_show_the_front(two: ado.Study) -> None:
    stored, front = stored_study("two", two.storage), two.top()
    summary = json.loads(json.dumps(tables.run_summary(stored)))
    assert [row["trial"] for row in summary["front"]] == [result.trial for result in front]
    assert summary["front"][0]["values"] == dict(front[0].values)
    assert set(summary["front"][0]["measured"]) == {"fid", "flops", "kid"}
    [row] = tables.status_rows(two.storage)
    assert (row["best"], row["front"]) == (None, len(front))
    shown = tables.run_table(stored)
    assert [str(column.header) for column in shown.columns][1:4] == ["fid", "flops", "kid"]
    assert [cell for cell in map(str, shown.columns[0].cells) if cell.startswith("front")] == [
        f"front {rank}" for rank in range(1, len(front) + 1)
    ]
    frame = two.dataframe().set_index("trial")
    assert frame.loc[front[0].trial, "flops"] == front[0].values["flops"]
    assert {"fid", "kid", "excess", "nfe"} <= set(frame.columns)


@pytest.mark.slow
def test_a_front_is_re_scored_and_those_that_are_dominated_now_are_dropped(two: ado.Study) -> None:
    front = {f"front {rank}": result.candidate for rank, result in enumerate(two.top(), 1)}
    worse = ado.Candidate.from_time_steps([30, 20, 10])  # dearer than any of the front, and bad
    result = verified(two.problem, {**front, "front 99": worse}, None, images=30, repeats=2)
    assert "front 99" not in result.rescored
    assert "front 99" not in result.candidates
    assert any(sentence.startswith("front 99 is dropped: on fresh noise front") for sentence in result.sentences)
    told = json.loads(json.dumps(result.to_dict()))
    assert set(told["front"]) == set(result.candidates)
    assert "best" not in told
    scored = told["front"][result.candidates[0]]
    assert set(scored["further"]) == {"flops", "kid"}
    assert scored["further"]["flops"]["std"] == 0.0
    kept = [result.rescored[name] for name in result.candidates]
    for first in kept:
        assert not any(other.mean < first.mean and other.mean_of("flops") <= first.mean_of("flops") for other in kept)
    assert "own" in map(str, tables.rescored_table(result.rescored).columns[0].cells)


@pytest.mark.slow
def test_commands_pick_from_the_front(two: ado.Study, call: Any, tmp_path: Path) -> None:
    front, where = two.top(), ("--storage", two.url)
    _, out, _ = call("best", "two", *where, "--json", "--pick", 2, "-o", tmp_path / "c.json")
    assert len(json.loads(out)) == len(front)
    assert ado.Candidate.load(tmp_path / "c.json") == front[1].candidate
    code, _, _ = call("export", "two", *where, "--pick", 2, "-o", tmp_path / "out")
    assert code == 0
    assert ado.Candidate.load(tmp_path / "out" / "candidate.json") == front[1].candidate
    assert f"**front 2** (trial {front[1].trial})" in (tmp_path / "out" / "README.md").read_text()
    code, _, err = call("export", "two", *where, "--pick", 99, "-o", tmp_path / "out")
    assert code == 2
    assert f"--pick must be at most {len(front)}, the number in the front of 'two'; got 99" in err
    few = ("--images", 20, "--repeats", 2, "--top", 2)
    _, out, _ = call("verify", "two", *where, *few, "--report", "psnr", "--json")
    told = json.loads(out)
    assert set(told["front"]) <= {"front 1", "front 2"}
    assert all(set(scored["further"]) == {"flops", "kid", "psnr"} for scored in told["front"].values())


@pytest.mark.slow
def test_a_share_of_flops_is_of_the_pipelines_own_schedule(two: ado.Study, tmp_path: Path) -> None:
    text = TWO.replace('minimise = ["fid", "flops"]', "at_most = { flops = 0.5 }").replace("trials = 24", "trials = 12")
    (tmp_path / "half.toml").write_text(text)
    study = ado.Study.load(tmp_path / "half.toml", storage=f"sqlite:///{tmp_path}/studies.db")
    results = study.run(progress=False)
    own = study.problem.baselines["own"]
    [bound] = study.problem.bounds
    assert bound.limit == study.problem.info.flops * len(own.steps) / 2
    for result in results:
        assert bool(result.excess) == (result.measured["flops"] > bound.limit)
    stored = stored_study("half", study.storage)
    labels = list(map(str, tables.run_table(stored).columns[0].cells))
    assert any(label.startswith("own") and label.endswith("beyond a bound") for label in labels)
