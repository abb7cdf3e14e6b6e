"""Images in rungs: each costs its new images, values are compared at equal numbers, a hopeless candidate is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import scipy.stats
import torch
from marks import slow_but
from optuna.trial import TrialState, create_trial

from autodiffusion_opt import Candidate, ImageMetric, ModelInfo, Study, UserError
from autodiffusion_opt.config import build
from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.objective.pruners import PRUNERS, AtEqualImages, check_pruner, make_pruner
from autodiffusion_opt.report.tables import run_summary, status_rows
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.study.results import stored_study
from autodiffusion_opt.trials.attributes import BASELINE, OF_IMAGES, REUSED_FROM, SCORE, candidate_of, numbers_of

RUNGS = (10, 30)
UNEVEN = Candidate.from_time_steps([926, 690, 424, 153])


def contrast(images: torch.Tensor) -> float:
    return float((images.float().mean() - 77).abs())


def study_of(
    digits: Any,
    url: str,
    *,
    name: str = "rungs",
    trials: int = 30,
    images: Any = RUNGS,
    pruner: Any = "median",
    function: Any = contrast,
    optimizer: Any = "random",
) -> Study:
    return Study(
        name,
        pipeline={"model": digits, "batch_size": 10, "micro_batch": 10},
        space={"kind": "time-steps", "steps": 4},
        objective=ImageMetric(function, images=images, identity="contrast", pruner=pruner),
        optimizer=optimizer,
        trials=trials,
        storage=url,
    )


def test_a_rung_costs_its_new_images_only_and_has_the_value_of_so_many_images(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = ImageSampler(digits, micro_batch=10, batch_size=10)
    objective = ImageMetric(contrast, images=(10, 25, 40), identity="c").objective(sampler, ModelInfo(1000), Path())
    alone = [next(objective.measure(UNEVEN, images=count)).values for count in (10, 25, 40)]
    asked: list[int] = []
    images = ImageSampler.images

    def counting(self: Any, candidate: Any, indices: Any, *more: Any) -> Any:
        asked.extend(indices)
        return images(self, candidate, indices, *more)

    monkeypatch.setattr(ImageSampler, "images", counting)
    scores = list(objective.measure(UNEVEN))
    assert asked == list(range(40))
    assert [score.images for score in scores] == [10, 25, 40]
    assert [score.values for score in scores] == alone
    assert scores[0].seconds < scores[1].seconds < scores[2].seconds


@pytest.mark.slow
def test_values_go_to_sql_at_their_number_of_images_and_what_is_stopped_is_kept(digits: Any, url: str) -> None:
    study = study_of(digits, url)
    results = study.run(progress=False)
    trials = study.trials()
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(trials) == 30
    assert len(pruned) > 5
    assert all(list(trial.intermediate_values) == list(RUNGS) for trial in complete)
    assert all(list(trial.intermediate_values) == [10] for trial in pruned)
    assert all(trial.user_attrs[SCORE]["images"] == 10 for trial in pruned)
    assert {trial.number for trial in complete} == {result.trial for result in results}
    assert {result.costs["images"] for result in results} == {30}  # best means best at the top
    summary = run_summary(stored_study("rungs", study.storage))
    assert (summary["trials"], summary["pruned"]) == (len(complete), len(pruned))
    [row] = status_rows(study.storage)
    assert row["trials"]["pruned"] == len(pruned)
    frame = study.dataframe().set_index("trial")
    first = pruned[0]
    assert frame.loc[first.number, "state"] == "pruned"
    assert frame.loc[first.number, "images"] == 10
    assert frame.loc[first.number, "value"] == first.intermediate_values[10]


@pytest.mark.slow
def test_baselines_are_never_stopped(digits: Any, url: str) -> None:
    """Even by a pruner that stops all."""
    study = study_of(digits, url, pruner={"kind": "threshold", "upper": -1.0}, trials=14)
    study.run(progress=False)
    for trial in study.trials():
        assert (trial.state == TrialState.COMPLETE) == (BASELINE in trial.user_attrs)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", slow_but(["random", "optuna:tpe"], "random"))
def test_a_study_run_in_parts_is_that_of_one_run(digits: Any, url: str, optimizer: str) -> None:
    whole = study_of(digits, url, name="whole", optimizer=optimizer)
    whole.run(progress=False)
    for trials in (9, 17, 30):
        study_of(digits, url, name="parts", optimizer=optimizer).run(trials, progress=False)
    parts = study_of(digits, url, name="parts", optimizer=optimizer)

    def told(study: Study) -> list[Any]:
        return [(trial.state, trial.values, trial.intermediate_values, candidate_of(trial)) for trial in study.trials()]

    assert told(parts) == told(whole)
    assert TrialState.PRUNED in {trial.state for trial in parts.trials()}


@pytest.mark.slow
def test_a_candidate_that_was_stopped_is_not_sampled_again(digits: Any, url: str) -> None:
    calls: list[int] = []

    def counting(images: torch.Tensor) -> float:
        calls.append(len(images))
        return contrast(images)

    study = study_of(digits, url, function=counting)
    study.run(progress=False)
    stopped = next(trial for trial in study.trials() if trial.state == TrialState.PRUNED)
    optuna.load_study(study_name="rungs", storage=study.storage).enqueue_trial(stopped.params)
    calls.clear()
    study.run(31, progress=False)
    last = study.trials()[-1]
    assert calls == []
    assert (last.state, last.user_attrs[REUSED_FROM]) == (TrialState.PRUNED, stopped.number)
    assert last.intermediate_values == stopped.intermediate_values


@pytest.mark.slow
def test_evolution_takes_no_parents_from_what_was_stopped(digits: Any, url: str) -> None:
    table = {"kind": "evolution", "population": 10, "parents": 4, "mutations": 5, "crossovers": 5}
    study = study_of(digits, url, optimizer=table, trials=40)
    study.run(progress=False)
    from autodiffusion_opt.trials.history import History

    history = History(optuna.load_study(study_name="rungs", storage=study.storage)).refresh()
    best = history.observations.before(40).best(40)
    complete = {trial.number for trial in study.trials() if trial.state == TrialState.COMPLETE}
    assert len(complete) < 40
    assert {history.trials[observation.position].number for observation in best} <= complete


@pytest.mark.slow
@pytest.mark.parametrize("kind", slow_but(sorted(set(PRUNERS) - {"wilcoxon"}), "successive-halving"))  # tested below
def test_every_pruner_runs(kind: str, digits: Any, url: str) -> None:
    needed = {"percentile": {"percentile": 25.0}, "threshold": {"upper": 30.0}}.get(kind, {})
    study = study_of(digits, url, pruner={"kind": kind, **needed}, trials=14, images=(10, 20, 40))
    study.run(progress=False)
    assert {trial.state for trial in study.trials()} <= {TrialState.COMPLETE, TrialState.PRUNED}


def at_steps(values: dict[int, float], state: TrialState = TrialState.COMPLETE) -> Any:
    last = list(values.values())[-1]
    return create_trial(state=state, value=last, intermediate_values=values)


def test_a_value_of_fewer_images_does_not_count_at_more() -> None:
    """Optuna's own median takes the trial's best value over all numbers of images."""
    study = optuna.create_study()
    for value in (5.0, 6.0, 7.0, 5.5, 6.5):
        study.add_trial(at_steps({10: 1.0, 30: value}))
    hopeless = at_steps({10: 1.0, 30: 9.0})
    plain, ours = optuna.pruners.MedianPruner(), make_pruner("median", RUNGS, numbers_of)
    assert isinstance(ours, AtEqualImages)
    assert not plain.prune(study, hopeless)
    assert ours.prune(study, hopeless)
    assert not ours.prune(study, at_steps({10: 99.0, 30: 5.0}))


def test_the_resource_of_halving_is_the_number_of_images() -> None:
    halving: Any = make_pruner("successive-halving", (100, 500, 2000), numbers_of)
    assert halving._min_resource == 100
    band: Any = make_pruner("hyperband", (100, 500, 2000), numbers_of)
    assert (band._min_resource, band._max_resource) == (100, 2000)


def with_numbers(numbers: list[float], value: float | None = None) -> Any:
    state = TrialState.RUNNING if value is None else TrialState.COMPLETE
    return create_trial(state=state, value=value, user_attrs={OF_IMAGES: numbers})


def test_wilcoxon_compares_each_image_with_the_best_trials_own() -> None:
    pruner = make_pruner({"kind": "wilcoxon", "p_threshold": 0.05}, RUNGS, numbers_of)
    random = np.random.default_rng(0)
    best = random.uniform(0, 100, 30)  # images differ far more than candidates
    study = optuna.create_study()
    assert not pruner.prune(study, with_numbers([5.0] * 10))  # nothing to compare with
    study.add_trial(with_numbers(list(best + 9), float(best.mean() + 9)))
    study.add_trial(with_numbers(list(best), float(best.mean())))
    worse, equal = best[:10] + random.uniform(0.1, 1, 10), best[:10] + random.uniform(-1, 1, 10)
    assert scipy.stats.wilcoxon(worse - best[:10], alternative="greater").pvalue < 0.05
    assert scipy.stats.wilcoxon(equal - best[:10], alternative="greater").pvalue > 0.05
    assert pruner.prune(study, with_numbers(list(worse)))
    assert not pruner.prune(study, with_numbers(list(equal)))
    maximised = optuna.create_study(direction="maximize")
    maximised.add_trial(with_numbers(list(best), float(best.mean())))
    assert not pruner.prune(maximised, with_numbers(list(worse)))
    assert pruner.prune(maximised, with_numbers(list(2 * best[:10] - worse)))


PAIRED = {"kind": "paired", "images": [10, 20], "features": "pixels", "teacher_steps": 10, "pruner": "wilcoxon"}


def paired_study(digits: Any, url: str, name: str) -> Study:
    return Study(
        name,
        pipeline={"model": digits, "batch_size": 10, "micro_batch": 10},
        space={"kind": "time-steps", "steps": 3},
        objective=PAIRED,
        optimizer="random",
        trials=16,
        storage=url,
    )


@pytest.mark.slow
def test_a_study_with_wilcoxon_keeps_the_number_of_each_image_and_resumes(digits: Any, url: str) -> None:
    whole = paired_study(digits, url, "whole")
    whole.run(progress=False)
    for trials in (9, 12, 16):
        paired_study(digits, url, "parts").run(trials, progress=False)
    parts = paired_study(digits, url, "parts").trials()
    assert [(t.state, t.values) for t in whole.trials()] == [(t.state, t.values) for t in parts]
    states = {trial.state for trial in parts}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in parts:
        numbers = trial.user_attrs[OF_IMAGES]
        assert len(numbers) == (20 if trial.state == TrialState.COMPLETE else 10)
        assert np.mean(numbers) == pytest.approx(trial.user_attrs[SCORE]["values"]["paired"], rel=1e-6)
        assert "of_images" not in trial.user_attrs[SCORE]


@pytest.mark.slow
def test_a_repeated_candidate_takes_over_the_number_of_each_image_too(digits: Any, url: str) -> None:
    """A repeat of the best one may become the best trial, whose numbers the next ones are compared with."""
    study = paired_study(digits, url, "repeated")
    study.run(8, progress=False)
    best = min(study.trials(), key=lambda trial: (trial.state != TrialState.COMPLETE, trial.values))
    optuna.load_study(study_name="repeated", storage=study.storage).enqueue_trial(best.params)
    study.run(9, progress=False)
    repeat = study.trials()[-1]
    assert repeat.user_attrs[REUSED_FROM] == best.number
    assert repeat.user_attrs[OF_IMAGES] == best.user_attrs[OF_IMAGES]


def test_wilcoxon_is_refused_where_images_have_no_numbers() -> None:
    table = TABLE | {"pruner": "wilcoxon"}
    with pytest.raises(
        UserError, match="a number for each image, which fid has not: clip-score, paired, psnr, ssim have"
    ):
        build(METRICS["fid"].Config, table, "here")
    with pytest.raises(UserError, match="ImageMetric: pruner wilcoxon"):
        ImageMetric(contrast, images=RUNGS, identity="c", pruner="wilcoxon")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("medien", "'medien'. Did you mean 'median'"),
        ("patient", "values of other numbers are not comparable"),
        ({"kind": "median", "startup": 3}, "Did you mean 'n_startup_trials'"),
        ("percentile", "needs percentile"),
        ({}, "pruner must be one of"),
    ],
)
def test_a_wrong_pruner_is_refused_with_what_is_allowed(setting: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_pruner(setting)


def test_an_option_that_optuna_refuses_is_told_in_its_words() -> None:
    with pytest.raises(UserError, match="pruner percentile: Percentile must be between 0 and 100"):
        make_pruner({"kind": "percentile", "percentile": 120.0}, RUNGS, numbers_of)


TABLE = {"kind": "fid", "images": [10, 30], "features": "digits", "reference": "digits"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [30, 10]}, r"images: must ascend from rung to rung; got \[30, 10\]"),
        ({"images": [10, 10]}, "must ascend"),
        ({"images": []}, "a whole number, or a list of them; got"),
        ({"images": "many"}, "a whole number, or a list of them; got 'many'"),
        ({"images": True}, "a whole number, or a list of them; got True"),
        ({"images": [1, 10]}, "greater than or equal to 2"),
        ({"images": 10, "pruner": "median"}, r"pruner needs rungs: give images a list, such as \[100, 10\]"),
        ({"pruner": "medien"}, "Did you mean 'median'"),
    ],
)
def test_rungs_and_pruners_of_a_table_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(METRICS["fid"].Config, TABLE | changes, "here")


def test_rungs_of_a_table_are_those_of_its_objective_and_its_definition(digits: Any) -> None:
    config = build(METRICS["fid"].Config, TABLE | {"pruner": {"kind": "median", "n_startup_trials": 2}}, "here")
    assert config.rungs == (10, 30)
    assert config.model_dump(mode="json")["images"] == [10, 30]
    objective = config.objective(ImageSampler(digits, micro_batch=10, batch_size=10), ModelInfo(1000), Path())
    assert [score.images for score in objective.measure(UNEVEN)] == [10, 30]


def test_a_study_that_an_earlier_version_stored_goes_on(digits: Any, url: str) -> None:
    """Its definition has not the keys that were added since, which are absent by default."""
    study = study_of(digits, url, images=10, pruner=None, trials=2)
    study.run(progress=False)
    stored = optuna.load_study(study_name="rungs", storage=study.storage)
    definition = stored.user_attrs["definition"]
    del definition["objective"]["pruner"], definition["space"]["end_time"]
    stored.set_user_attr("definition", definition)
    assert len(study_of(digits, url, images=10, pruner=None, trials=4).run(progress=False)) == 4


def test_several_values_and_a_pruner_are_refused_together(digits: Any, url: str) -> None:
    study = study_of(digits, url)

    class Two:
        identity = "two"
        pruner = "median"
        rungs = RUNGS

        @property
        def directions(self) -> dict[str, str]:
            return {"first": "minimize", "second": "minimize"}

        def measure(self, candidate: Candidate, **_: Any) -> Any:
            raise NotImplementedError

    both = Study("both", pipeline=digits, space="four-steps", objective=Two(), optimizer="random", storage=url)
    with pytest.raises(UserError, match="compare one value; this study has first, second"):
        both.run(progress=False)
    assert study.trials() == []
