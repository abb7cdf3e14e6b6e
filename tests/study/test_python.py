"""Python as a way in: a study made of objects, its methods, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState

import autodiffusion_opt as ado
from autodiffusion_opt.study.config import build_space
from autodiffusion_opt.trials.attributes import DEFINITION, ERROR, EVALUATION_FAILED, RETRY_OF, SCORE, WORKER_DIED
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.studies import fail, find_study, need_study

FOUR = {"kind": "time-steps", "steps": 4}
DIGITS = {"model": "digits", "scheduler": "ddim", "device": "cpu", "micro_batch": 10}
INFO = ado.ModelInfo(train_steps=1000)


def brightness(images: torch.Tensor) -> float:
    """The mean of all pixels."""
    assert images.dtype == torch.uint8
    return float(images.float().mean())


def study_of(url: str, **parts: Any) -> ado.Study:
    defaults: dict[str, Any] = {
        "name": "mine",
        "pipeline": DIGITS,
        "space": FOUR,
        "objective": ado.ImageMetric(brightness, images=10, identity="brightness-1"),
        "optimizer": "random",
        "trials": 10,
        "storage": url,
    }
    return ado.Study(**{**defaults, **parts})


def steps_of(candidate: ado.Candidate) -> float:
    return float(np.mean(candidate.times))


def plain(url: str, **parts: Any) -> ado.Study:
    """A study without a pipeline."""
    metric = ado.CandidateMetric(steps_of, identity="mean-time")
    return study_of(url, **{"pipeline": None, "objective": metric, "model_info": INFO, **parts})


def test_a_pipeline_a_function_and_a_sampler_make_a_study(digits: Any, url: str, tmp_path: Path) -> None:
    pipeline = copy.deepcopy(digits)
    state = dict(vars(pipeline.scheduler))
    sampler = optuna.samplers.TPESampler(n_startup_trials=3)
    study = study_of(url, pipeline={"model": pipeline, "micro_batch": 10}, optimizer=sampler, trials=12)
    results = study.run(progress=False)
    assert len(results) == 12
    best = study.best()
    assert best.value == min(result.value for result in results)
    assert best.values == {"value": best.value}
    images = ado.apply(pipeline, best.candidate)(batch_size=2, num_inference_steps=4, output_type="pt").images
    assert images.shape == (2, 1, 8, 8)
    ado.remove(pipeline)
    assert list(vars(pipeline.scheduler)) == list(state)

    frame = study.dataframe()
    assert len(frame) == 12
    assert {"trial", "state", "value", "origin", "baseline", "nfe", "images", "candidate"} <= set(frame.columns)
    assert frame["value"].min() == best.value

    rescored = study.verify(images=20, repeats=2)
    assert rescored["best"].candidate == best.candidate
    assert len(rescored["own"].values) == 2

    written = study.export(tmp_path / "out")
    # No script, since no file says how to load the pipeline.
    assert [path.name for path in written] == ["candidate.json", "README.md", "scheduler_config.json"]
    assert ado.Candidate.load(tmp_path / "out" / "candidate.json") == best.candidate
    assert "brightness-1" in (tmp_path / "out" / "README.md").read_text()


def test_a_bare_pipeline_will_do(digits: Any, url: str) -> None:
    study = study_of(url, pipeline=digits, objective=ado.ImageMetric(brightness, images=2, identity="b"))
    assert len(study.run(1, progress=False)) == 1
    assert study.config.pipeline is not None
    assert study.config.pipeline.model == "python:DDPMPipeline"


def test_the_same_pipeline_object_resumes_and_changed_weights_are_refused(digits: Any, url: str) -> None:
    pipeline = copy.deepcopy(digits)
    study_of(url, pipeline={"model": pipeline, "micro_batch": 10}).run(1, progress=False)
    again = copy.deepcopy(digits)
    assert len(study_of(url, pipeline={"model": again, "micro_batch": 10}).run(2, progress=False)) == 2
    with torch.no_grad():
        again.unet.conv_in.weight[0, 0, 0, 0] += 1
    with pytest.raises(ado.UserError, match=r"fingerprint\.model"):
        study_of(url, pipeline={"model": again, "micro_batch": 10}).run(3, progress=False)


def test_another_identity_is_refused_and_the_same_resumes(url: str) -> None:
    plain(url).run(3, progress=False)
    assert len(plain(url).run(4, progress=False)) == 4
    changed = ado.CandidateMetric(steps_of, identity="mean-time-2")
    with pytest.raises(ado.UserError, match=r"objective\.identity: 'mean-time' -> 'mean-time-2'"):
        plain(url, objective=changed).run(progress=False)


def test_a_metric_of_candidates_needs_no_pipeline(url: str) -> None:
    study = plain(url)
    study.run(progress=False)
    assert study.problem.sampler is None
    assert study.best().value == pytest.approx(steps_of(study.best().candidate))
    assert study.best().costs["nfe"] == 4
    assert study.verify(repeats=1)["best"].mean == study.best().value
    space = build_space(FOUR, "here").space(INFO)
    assert len(plain(url, space=space, model_info=None, name="second").run(2, progress=False)) == 2


def test_a_worker_that_was_taken_for_dead_says_so_and_goes_on(url: str) -> None:
    """Its trial was failed by another worker, on another machine, while it did not answer: a computer that slept."""

    def measured(candidate: ado.Candidate) -> float:
        running = [trial for trial in study.trials() if trial.state == TrialState.RUNNING]
        if len(taken) == 0 and running[0].number == 2:
            taken.append(running[0].number)
            fail(need_study(open_storage(url), "mine"), running[0]._trial_id, WORKER_DIED)
        return steps_of(candidate)

    taken: list[int] = []
    study = plain(url, objective=ado.CandidateMetric(measured, identity="mean-time"))
    with pytest.warns(UserWarning, match="trial 2 does not count: others took this worker for dead"):
        assert len(study.run(progress=False)) == 10
    trials = study.trials()
    assert [trial.number for trial in trials if trial.state == TrialState.FAIL] == [2]
    assert (SCORE in trials[2].user_attrs, trials[2].values) == (False, None)
    assert [trial.state for trial in trials if trial.user_attrs.get(RETRY_OF) == 2] == [TrialState.COMPLETE]


def test_more_is_better_where_the_metric_says_so(url: str) -> None:
    metric = ado.CandidateMetric(lambda c: {"mean": steps_of(c), "spread": 3}, "m", name="mean", direction="maximize")
    study = plain(url, objective=metric)
    results = study.run(progress=False)
    assert study.best().value == max(result.value for result in results)
    stored = find_study(study.storage, "mine")
    assert stored is not None
    assert stored.direction == optuna.study.StudyDirection.MAXIMIZE
    assert set(stored.trials[0].user_attrs["score"]["values"]) == {"mean", "spread"}


@pytest.mark.slow
def test_features_of_ones_own_serve_fid_and_kid(url: str) -> None:
    def pixels(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, ::4].float() / 255

    for kind in ("fid", "kid"):
        table = {
            "kind": kind,
            "images": 20,
            "features": ado.Features(pixels, identity="pixels-16"),
            "reference": "digits",
        }
        study = study_of(url, objective=table)
        study.config = type(study.config)(**{**vars(study.config), "name": kind})
        study.run(2, progress=False)
        assert set(study.best().values) == {kind}
        assert study.config.definition()["objective"]["features"] == {"python": "Features", "identity": "pixels-16"}


class Fails:
    """Fails at the calls of these numbers."""

    def __init__(self, *numbers: int) -> None:
        self.numbers, self.calls = numbers, 0

    def __call__(self, candidate: ado.Candidate) -> float:
        self.calls += 1
        if self.calls - 1 in self.numbers:
            raise RuntimeError(f"no luck at {self.calls - 1}")
        return steps_of(candidate)


def test_a_function_that_raises_is_tried_once_more_and_the_study_goes_on(url: str) -> None:
    fails = Fails(3, 6, 7)
    study = plain(url, objective=ado.CandidateMetric(fails, identity="f"))
    assert len(study.run(progress=False)) == 9
    trials = study.trials()
    assert [trial.number for trial in trials if trial.state == TrialState.FAIL] == [3, 6, 7]
    assert trials[3].user_attrs[ERROR] == "the metric 'f' failed: RuntimeError: no luck at 3"
    assert trials[3].user_attrs[EVALUATION_FAILED] is True
    assert len(trials) == 12
    assert trials[7].user_attrs[RETRY_OF] == 5
    assert len(study.run(progress=False)) == 9  # what failed twice is not tried again
    assert fails.calls == 12


def test_a_function_that_always_raises_stops_the_study_after_five(url: str) -> None:
    study = plain(url, objective=ado.CandidateMetric(Fails(*range(100)), identity="f"))
    message = r"5 candidates in a row failed, all with the metric 'f' failed: RuntimeError; the last: .*no luck at 8"
    with pytest.raises(ado.UserError, match=message):
        study.run(progress=False)
    assert [trial.state.name for trial in study.trials()].count("FAIL") == 9  # but for the last, each twice
    assert "RUNNING" not in {trial.state.name for trial in study.trials()}


def test_after_a_stop_the_failures_are_tried_again(url: str) -> None:
    """The function was put right: the baselines that it failed on are measured."""
    fails = Fails(*range(1, 10))
    study = plain(url, objective=ado.CandidateMetric(fails, identity="f"))
    with pytest.raises(ado.UserError, match="5 candidates in a row failed"):
        study.run(progress=False)
    assert len(study.run(progress=False)) == 10
    assert fails.calls == 1 + 9 + 9
    assert study.dataframe()["baseline"].dropna().iloc[0] == "leading"
    assert len(study.run(progress=False)) == 10


def test_a_definition_that_only_failed_may_be_put_right(url: str) -> None:
    broken = ado.CandidateMetric(Fails(*range(20)), identity="f-1")
    with pytest.raises(ado.UserError, match="5 candidates in a row failed"):
        plain(url, objective=broken).run(progress=False)
    assert len(plain(url, objective=ado.CandidateMetric(steps_of, identity="f-2")).run(progress=False)) == 10


def test_verify_goes_on_where_a_candidate_cannot_be_measured(url: str) -> None:
    study = plain(url)
    study.run(progress=False)
    failing = ado.CandidateMetric(Fails(2), identity="mean-time")
    again = plain(url, objective=failing)
    rescored = again.verify(repeats=1)
    assert [np.isnan(scored.mean) for scored in rescored.values()].count(True) == 1
    assert rescored["best"].mean == study.best().value


def test_failures_that_are_not_in_a_row_do_not_stop_the_study(url: str) -> None:
    fails = Fails(0, 1, 2, 3, 5, 6, 7, 8)
    study = plain(url, objective=ado.CandidateMetric(fails, identity="f"))
    assert len(study.run(progress=False)) == 6
    assert len(study.run(progress=False)) == 6
    assert fails.calls == 10 + 4  # four failed twice, and are not tried again


def test_an_objective_may_be_an_object_with_three_members(url: str) -> None:
    from autodiffusion_opt.objective import Score

    class Mine:
        directions = {"mean": "minimize"}  # noqa: RUF012
        identity = "mine-1"

        def measure(self, candidate: ado.Candidate, **_: Any) -> Any:
            yield Score({"mean": 1e9}, images=1, seconds=0.0)  # an earlier rung
            yield Score({"mean": steps_of(candidate)}, images=2, seconds=0.0)

    study = plain(url, objective=Mine())
    study.run(3, progress=False)
    assert study.best().value == steps_of(study.best().candidate)
    assert study.best().costs["images"] == 2


NO_IDENTITY = "needs an identity, such as"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ado.ImageMetric(brightness, images=3), NO_IDENTITY),
        (lambda: ado.CandidateMetric(steps_of), NO_IDENTITY),
        (lambda: ado.Features(brightness), NO_IDENTITY),
        (lambda: ado.ImageMetric(brightness, identity="b"), "images must be 1 or more"),
        (lambda: ado.CandidateMetric(3, identity="b"), "must be callable; got 3"),  # type: ignore[arg-type]
        (
            lambda: ado.CandidateMetric(steps_of, identity="b", direction="down"),  # type: ignore[arg-type]
            'direction must be "minimize" or "maximize"; got \'down\'',
        ),
        (
            lambda: ado.ImageMetric(brightness, images=3, identity="b", conditions={"kind": "prompt"}),
            "Did you mean 'prompts'?",
        ),
    ],
)
def test_a_wrong_function_is_refused_at_once(make: Any, message: str) -> None:
    with pytest.raises(ado.UserError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"space": {"kind": "time-step"}}, "Did you mean 'time-steps'?"),
        ({"space": 3}, "space must be a name, a table or a Space; got 3"),
        ({"space": "for-steps"}, "Did you mean 'four-steps'?"),
        ({"objective": brightness}, "wrap the function, ado.ImageMetric(f, images=200, identity=...)"),
        ({"objective": "digit-fid"}, "Did you mean 'digits-fid'?"),
        ({"optimizer": "evolutio"}, "Did you mean 'evolution'?"),
        ({"optimizer": 3}, "optimizer must be a name, a table or an Optuna sampler; got 3"),
        ({"trials": 0}, "trials must be a whole number of at least 1; got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0; got -1"),
        ({"pipeline": None}, "pipeline must be given: this objective generates images"),
        ({"pipeline": {"modle": "digits"}}, "Did you mean 'model'?"),
        ({"pipeline": {"model": object(), "dtype": "float16"}}, "only batch_size, call, micro_batch may be set"),
    ],
)
def test_wrong_parts_are_refused_when_the_study_is_made(parts: dict[str, Any], message: str, url: str) -> None:
    with pytest.raises(ado.UserError) as error:
        study_of(url, **parts)
    assert message in str(error.value)
    assert "Study('mine')" in str(error.value) or "must be one of" in str(error.value)


def test_all_wrong_parts_are_told_at_once(url: str) -> None:
    with pytest.raises(ado.UserError) as error:
        study_of(url, space={"kind": "x"}, optimizer={"kind": "y"}, trials=0)
    for part in ("space: ", "optimizer: ", "trials must be"):
        assert part in str(error.value)


def test_an_object_that_is_no_pipeline_is_refused(url: str) -> None:
    with pytest.raises(ado.UserError, match="must have a scheduler and be called to sample"):
        study_of(url, pipeline=object()).run(progress=False)


def test_without_a_pipeline_the_space_needs_the_models_numbers(url: str) -> None:
    with pytest.raises(ado.UserError, match=r"model_info=ado\.ModelInfo\(train_steps=1000\)"):
        plain(url, model_info=None).run(progress=False)


def test_a_study_of_objects_cannot_be_verified_from_sql_and_says_how(url: str) -> None:
    from autodiffusion_opt.study.results import resolve

    plain(url).run(2, progress=False)
    with pytest.raises(ado.UserError, match=r"pipeline, objective of this study came from Python.*ado\.Study"):
        resolve("mine", None, url)


def test_a_study_of_names_and_tables_can_be_verified_from_sql(url: str) -> None:
    from autodiffusion_opt.study.results import resolve

    objective = {"kind": "fid", "images": 10, "features": "digits", "reference": "digits"}
    study = study_of(url, objective=objective)
    study.run(2, progress=False)
    chosen = resolve("mine", None, url)
    assert chosen.candidates == {"best": study.best().candidate}
    assert chosen.config.definition() == study.config.definition()


def test_reprs_are_short_and_say_what_it_is(url: str) -> None:
    study = plain(url)
    assert repr(study).startswith("Study('mine': no pipeline, space time-steps, objective CandidateMetric, optimizer")
    assert f"random, 10 trials in {url.split('://')[0]}://" in repr(study)
    assert repr(study.problem) == "Problem(no pipeline, TimeSteps of 4, minimize value)"
    assert repr(ado.Candidate.from_time_steps([926, 153])) == "Candidate([926, 153])"


def test_the_definition_of_a_python_study_is_json(url: str) -> None:
    study = study_of(url, optimizer=optuna.samplers.CmaEsSampler())
    study.run(1, progress=False)
    stored = find_study(study.storage, "mine")
    assert stored is not None
    definition = json.loads(json.dumps(stored.user_attrs[DEFINITION]))
    assert definition["objective"]["identity"] == "brightness-1"
    assert definition["optimizer"]["kind"].endswith("CmaEsSampler")
