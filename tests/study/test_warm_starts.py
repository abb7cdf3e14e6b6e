"""Candidates that a search begins with: where they come from, what they cost, and that they are measured once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from marks import slow_but
from optuna.trial import TrialState

import autodiffusion_opt as ado
from autodiffusion_opt import Candidate, Study, UserError
from autodiffusion_opt.sampling.load import load_pipeline
from autodiffusion_opt.study.curves import images_of
from autodiffusion_opt.study.results import open_study
from autodiffusion_opt.trials.attributes import BASELINE, CANDIDATE, ERROR, OPTIMIZER, ORIGIN, SPENT, START
from autodiffusion_opt.trials.claims import NOT_WANTED
from autodiffusion_opt.trials.history import History

pytestmark = pytest.mark.usefixtures("cache")


def study_of(digits: Any, url: str, *, name: str = "s", optimizer: Any = "local", steps: int = 3, **more: Any) -> Study:
    given: dict[str, Any] = {
        "pipeline": {"model": digits, "batch_size": 20, "micro_batch": 20},
        "space": {"kind": "time-steps", "steps": steps},
        "objective": {"kind": "fid", "images": [20, 40], "features": "pixels", "reference": "digits"},
        "trials": 14,
    }
    return Study(name, optimizer=optimizer, storage=url, **given | more)


def starts(study: Study) -> dict[str, Candidate]:
    return {
        trial.user_attrs[START]: Candidate.from_json(trial.user_attrs[CANDIDATE])
        for trial in study.trials()
        if START in trial.user_attrs
    }


def spent(study: Study) -> list[dict[str, Any]]:
    attributes = optuna.load_study(study_name=study.config.name, storage=study.storage).user_attrs
    return list(attributes.get(SPENT, []))


def test_dynamic_programming_comes_after_the_baselines_and_its_images_count(digits: Any, url: str) -> None:
    study = study_of(digits, url)
    study.run(progress=False)
    kinds = [next((key for key in (BASELINE, START) if key in trial.user_attrs), None) for trial in study.trials()]
    first = kinds.index(START)
    assert kinds == [BASELINE] * first + [START] + [None] * (len(kinds) - first - 1)
    assert study.trials()[first].user_attrs[ORIGIN] == "start dp"
    (entry,) = spent(study)
    assert {key: entry[key] for key in ("name", "images", "nfe")} == {"name": "dp", "images": 64, "nfe": 46}
    images = sum(max(trial.intermediate_values) for trial in study.trials())
    assert images_of(open_study("s", url)) == images + 64 * 46 / 3
    values = {trial.user_attrs.get(BASELINE, START): trial.value for trial in study.trials()[: first + 1]}
    assert values[START] == min(value for value in values.values() if value is not None)


@pytest.mark.slow
def test_a_search_of_the_number_of_steps_begins_with_dynamic_programming_of_the_fewest_too(url: str) -> None:
    study = Study.load("dit-engine", storage=url, overrides=["objective.images=[10, 20]", "trials=1"])
    study.run(progress=False)
    least, greatest = study.problem.space.steps  # type: ignore[attr-defined]
    assert {name: len(start.steps) for name, start in starts(study).items()} == {
        "dp": greatest,
        f"dp of {least} steps": least,
    }
    assert [entry["name"] for entry in spent(study)] == ["dp"]


@pytest.mark.parametrize("max_flops", slow_but([3.2, 3.0], 3.0))
def test_a_search_of_partial_steps_begins_with_some_in_the_widest_gaps(max_flops: float, digits: Any, url: str) -> None:
    table = {"kind": "cached-steps", "max_flops": max_flops, "steps_max": 8}
    study = study_of(digits, url, space=table, trials=20)
    study.run(progress=False)
    filled = "dp" if max_flops == 3.2 else "dp of 2 steps"  # three full steps leave nothing
    made = starts(study)
    widest = [*study.problem.space.partial_steps_more(made[filled]).items()][:2]  # type: ignore[attr-defined]
    assert len(widest) == 2
    expected = {"dp": 3} | {filled: len(made[filled].steps)}
    assert {
        name: len(start.steps)
        for name, start in made.items()
        if not any(branch is not None for branch in start.branches)
    } == expected
    assert {name: start for name, start in made.items() if name not in expected} == {
        f"{filled}, {added}": start for added, start in widest
    }
    study_of(digits, url, space=table, trials=20).run(21, progress=False)
    assert starts(study) == made


@pytest.mark.slow
def test_a_resumed_study_neither_computes_nor_measures_it_again(digits: Any, url: str, monkeypatch: Any) -> None:
    whole = study_of(digits, url, name="whole")
    whole.run(progress=False)
    study_of(digits, url).run(10, progress=False)
    monkeypatch.setattr("autodiffusion_opt.sampling.trajectory.local_errors", None)
    parts = study_of(digits, url)
    parts.run(progress=False)
    assert [trial.values for trial in parts.trials()] == [trial.values for trial in whole.trials()]
    assert len(spent(parts)) == 1


@pytest.mark.slow
def test_what_it_cost_is_kept_once_where_a_run_ended_before_it_was_enqueued(digits: Any, url: str) -> None:
    study = study_of(digits, url)
    study.run(1, progress=False)
    loaded = optuna.load_study(study_name="s", storage=study.storage)
    other = {"name": "earlier", "images": 5, "nfe": 2, "seconds": 0.1}
    loaded.set_user_attr(SPENT, [other, *spent(study)])
    for trial in loaded.get_trials():
        if START in trial.user_attrs:  # as if it had not come to that
            study.storage.set_trial_user_attr(trial._trial_id, START, "other")
    study_of(digits, url).run(2, progress=False)
    assert [entry["name"] for entry in spent(study)] == ["earlier", "dp"]


@pytest.mark.slow
def test_as_many_steps_as_the_trajectory_has_points_are_chosen_from_twice_as_many(digits: Any, url: str) -> None:
    study = study_of(digits, url, steps=50, trials=1)
    study.run(progress=False)
    assert len(starts(study)["dp"].steps) == 50
    assert [entry["nfe"] for entry in spent(study)] == [100]


@pytest.mark.parametrize("optimizer", slow_but(["evolution", "random", "optuna:tpe"]))
def test_every_optimizer_may_start_from_it(optimizer: str, digits: Any, url: str) -> None:
    study = study_of(digits, url, optimizer={"kind": optimizer, "start_from": ["dp", "own"]}, trials=11)
    study.run(progress=False)
    assert list(starts(study)) == ["dp"]
    assert {trial.user_attrs.get(OPTIMIZER) for trial in study.trials()} == {None, optimizer}


def test_none_is_started_from_where_none_is_named(digits: Any, url: str) -> None:
    study = study_of(digits, url, optimizer={"kind": "local", "start_from": []}, trials=9)
    study.run(progress=False)
    assert starts(study) == {}
    assert spent(study) == []


@pytest.mark.slow
def test_it_starts_from_a_file_and_from_another_studys_winner_respaced(digits: Any, url: str, tmp_path: Path) -> None:
    three = study_of(digits, url, name="three", optimizer="random", trials=10)
    three.run(progress=False)
    path = tmp_path / "good.json"
    path.write_text(Candidate.from_time_steps([900, 400, 200, 50]).to_json())
    table = {"kind": "local", "start_from": ["three", str(path)]}
    four = study_of(digits, url, name="four", steps=4, optimizer=table, trials=12)
    four.run(progress=False)
    given = starts(four)
    assert list(given) == ["three", str(path)]
    assert given[str(path)].times == (900, 400, 200, 50)
    best = three.best().candidate
    assert given["three"] == four.problem.space.nearest(best)
    assert len(given["three"].steps) == 4
    assert given["three"].times[0] > best.times[0]
    assert given["three"].times[-1] <= best.times[-1]
    assert spent(four) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dpp"], "start_from: a warm start must be one of: dp, there; got 'dpp'. Did you mean 'dp'"),
        (["none.json"], "start_from: there is no file none.json"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(names: list[str], message: str, digits: Any, url: str) -> None:
    study_of(digits, url, name="there", optimizer="random", trials=1).run(progress=False)
    with pytest.raises(UserError, match=message):
        study_of(digits, url, optimizer={"kind": "local", "start_from": names}).run(progress=False)


def plain(url: str, name: str = "plain", **table: Any) -> Study:
    return Study(
        name,
        space={"kind": "time-steps", "steps": 3},
        objective=ado.CandidateMetric(lambda candidate: candidate.times[0], identity="first"),
        optimizer={"kind": "local"} | table,
        trials=12,
        storage=url,
        model_info=ado.ModelInfo(1000),
    )


def test_without_a_pipeline_there_is_none_unless_it_was_asked_for(url: str) -> None:
    study = plain(url)
    study.run(progress=False)
    assert starts(study) == {}
    with pytest.raises(UserError, match="start_from: dp needs a pipeline to sample with"):
        plain(url, name="asked", start_from=["dp"]).run(progress=False)


@pytest.mark.slow
def test_a_distilled_model_goes_without_it_and_says_so(url: str) -> None:
    digits = load_pipeline("digits", scheduler="lcm", device="cpu")
    with pytest.warns(UserWarning, match="there is no warm start 'dp': .* LCMScheduler is distilled to few"):
        study_of(digits, url, trials=9).run(progress=False)
    with pytest.raises(UserError, match=r"start_from: dp: .* LCMScheduler is distilled to few"):
        study_of(digits, url, name="asked", optimizer={"kind": "local", "start_from": ["dp"]}).run(progress=False)


@pytest.mark.slow
def test_a_study_goes_on_with_other_optimizers_and_status_says_who_proposed_what(url: str, call: Any) -> None:
    study = plain(url)
    study.run(9, progress=False)
    before = [(trial.user_attrs[CANDIDATE], trial.values) for trial in study.trials()]
    plain(url).run(11, progress=False, optimizer="optuna:tpe")
    plain(url).run(
        13, progress=False, optimizer={"kind": "evolution", "population": 4, "mutations": 2, "crossovers": 1}
    )
    plain(url).run(15, progress=False, optimizer=optuna.samplers.RandomSampler())
    after = plain(url).trials()
    assert [(trial.user_attrs[CANDIDATE], trial.values) for trial in after][:9] == before
    kinds = [trial.user_attrs.get(OPTIMIZER) for trial in after]
    baselines = kinds.count(None)
    assert (
        kinds[baselines:]
        == ["local"] * (9 - baselines) + ["optuna:tpe"] * 2 + ["evolution"] * 2 + ["RandomSampler"] * 2
    )
    code, text, _ = call("status", "--json", "--storage", url)
    (row,) = json.loads(text)
    assert code == 0
    assert row["proposed"] == {"local": 9 - baselines, "optuna:tpe": 2, "evolution": 2, "RandomSampler": 2}
    # The study's own goes on from what the others found.
    plain(url).run(16, progress=False)
    assert plain(url).trials()[-1].user_attrs[OPTIMIZER] == "local"


def test_another_optimizer_that_is_none_is_refused_and_leaves_the_study_alone(url: str) -> None:
    plain(url).run(9, progress=False)
    with pytest.raises(UserError, match=r"optimizer: .*'evolutoin'\. Did you mean 'evolution'"):
        plain(url).run(optimizer="evolutoin", progress=False)
    assert len(plain(url).trials()) == 9


# Nobody begins before all have imported what they need, and a trial takes long enough for all to have some.
THREE = """
import sys
import time
from pathlib import Path
import nevergrad, optuna
import autodiffusion_opt as ado

def cost(candidate):
    time.sleep(0.05)
    return abs(candidate.times[0] - 700)

url, optimizer, folder = sys.argv[1:]
study = ado.Study(
    "shared",
    space={"kind": "time-steps", "steps": 3},
    objective=ado.CandidateMetric(cost, identity="first"),
    trials=60,
    storage=url,
    model_info=ado.ModelInfo(1000),
)
Path(folder, optimizer.replace(":", "-")).touch()
while len(list(Path(folder).iterdir())) < 3:
    time.sleep(0.01)
study.run(progress=False, optimizer=optimizer)
"""


@pytest.mark.slow
def test_three_processes_with_three_optimizers_share_one_history(url: str, tmp_path: Path) -> None:
    kinds = ("local", "optuna:tpe", "nevergrad:CMA")
    ready = tmp_path / "ready"
    ready.mkdir()
    processes = [subprocess.Popen([sys.executable, "-c", THREE, url, kind, str(ready)]) for kind in kinds]
    assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    stored = open_study("shared", url)
    ran = [trial for trial in stored.trials if trial.state == TrialState.COMPLETE]
    # What is not complete was never begun: all three enqueued the baselines, or began a trial too many.
    reasons = {trial.user_attrs[ERROR] for trial in stored.trials if trial.state != TrialState.COMPLETE}
    assert reasons <= {NOT_WANTED, "another worker enqueued it first"}
    history = History(stored.study).refresh()
    assert sorted(history.position(trial.number) for trial in ran) == list(range(60))
    proposed = Counter(trial.user_attrs[OPTIMIZER] for trial in ran if OPTIMIZER in trial.user_attrs)
    assert set(proposed) == set(kinds)
    baselines = sum(BASELINE in trial.user_attrs for trial in ran)
    assert sum(proposed.values()) == 60 - baselines
