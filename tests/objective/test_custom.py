"""Objectives and features of one's own: what they may be, what is refused, and what a failure says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch

from autodiffusion_opt import (
    Candidate,
    CandidateMetric,
    EvaluationError,
    Features,
    ImageMetric,
    ModelInfo,
    Study,
    UserError,
)
from autodiffusion_opt.objective.custom import named_values
from autodiffusion_opt.sampling.generate import ImageSampler

UNEVEN = Candidate.from_time_steps([926, 690, 424, 153])
INFO = ModelInfo(train_steps=1000, layers=18)
SPACE = {"kind": "time-steps", "steps": 4}


def measured(metric: Any, sampler: Any = None) -> Any:
    objective = (
        metric.bound_to(INFO) if isinstance(metric, CandidateMetric) else metric.objective(sampler, INFO, Path())
    )
    *_, last = objective.measure(UNEVEN)
    return last


def constant(result: Any) -> Any:
    return lambda _: result


# Identity.


@pytest.mark.parametrize("kind", [Features, ImageMetric, CandidateMetric])
def test_a_function_without_an_identity_is_refused_with_the_reason(kind: Any) -> None:
    with pytest.raises(
        UserError, match=f"{kind.__name__} needs an identity, .*a function does not say what it computes"
    ):
        kind(constant(1.0))


@pytest.mark.parametrize("kind", [Features, ImageMetric, CandidateMetric])
def test_what_cannot_be_called_is_refused(kind: Any) -> None:
    with pytest.raises(UserError, match=f"{kind.__name__}: function must be callable; got 3"):
        kind(3, identity="three")


def test_an_image_metric_must_say_how_many_images() -> None:
    with pytest.raises(UserError, match="images must be 1 or more, the number of images a trial; got 0"):
        ImageMetric(constant(1.0), identity="one")


@pytest.mark.parametrize("kind", [ImageMetric, CandidateMetric])
def test_a_direction_that_is_none_is_refused(kind: Any) -> None:
    more = {"images": 2} if kind is ImageMetric else {}
    with pytest.raises(UserError, match='direction must be "minimize" or "maximize"; got \'up\''):
        kind(constant(1.0), identity="one", direction="up", **more)


@pytest.mark.parametrize("kind", [ImageMetric, CandidateMetric])
@pytest.mark.parametrize("key", ["minimise", "maximise"])
def test_a_name_in_place_of_a_list_of_names_is_refused(kind: Any, key: str) -> None:
    more = {"images": 2} if kind is ImageMetric else {}
    with pytest.raises(UserError, match=rf"{key} must be a list of names; got 'first': write \['first'\]"):
        kind(constant(1.0), identity="one", **{key: "first"}, **more)


def test_wrong_conditions_of_an_image_metric_are_refused_as_in_a_file() -> None:
    with pytest.raises(UserError, match=r"ImageMetric: conditions: .*needs file"):
        ImageMetric(constant(1.0), images=2, identity="one", conditions={"kind": "prompts"})
    labels = ImageMetric(constant(1.0), images=2, identity="one", conditions={"kind": "labels", "classes": 3})
    assert labels.definition()["conditions"]["classes"] == 3


def test_whatever_decides_the_values_is_in_what_a_resumed_study_compares() -> None:
    def image(**more: Any) -> str:
        return str(ImageMetric(constant(1.0), **({"images": 2, "identity": "one"} | more)).definition())

    changes: list[dict[str, Any]] = [
        {},
        {"images": 3},
        {"identity": "two"},
        {"seed": 1},
        {"name": "x"},
        {"direction": "maximize"},
        {"conditions": {"kind": "labels", "classes": 2}},
    ]
    assert len({image(**more) for more in changes}) == len(changes)
    assert image() == image()

    def candidate(**more: Any) -> str:
        return str(CandidateMetric(constant(1.0), **({"identity": "one"} | more)).definition())

    assert len({candidate(**more) for more in ({}, {"identity": "2"}, {"name": "x"}, {"direction": "maximize"})}) == 4


# Values.


@pytest.mark.parametrize(
    ("result", "values"),
    [
        (3, {"loss": 3.0}),
        (np.float32(0.5), {"loss": 0.5}),
        (torch.tensor(2.0), {"loss": 2.0}),
        (math.inf, {"loss": math.inf}),
        (-math.inf, {"loss": -math.inf}),
        ({"other": 1, "loss": 2}, {"loss": 2.0, "other": 1.0}),
    ],
)
def test_a_result_is_a_number_or_named_numbers_the_wanted_one_first(result: Any, values: dict[str, float]) -> None:
    found = named_values(result, ["loss"], "the metric")
    assert list(found.items()) == list(values.items())
    assert {type(one) for one in found.values()} == {float}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"other": 1, "more": 2}, "must give a value named 'value'; got other, more"),
        ({}, "must give a value named 'value'; got none"),
        ("three!", "must give numbers; value is 'three!'"),
        (None, "must give numbers; value is None"),
        (math.nan, r"value is not a number \(NaN\)"),
        ({"value": 1.0, "other": math.nan}, r"other is not a number \(NaN\)"),
        (torch.zeros(2, 2), "must give numbers"),
    ],
)
@pytest.mark.parametrize("kind", [ImageMetric, CandidateMetric])
def test_what_is_no_number_is_an_evaluation_error_that_names_the_metric(
    kind: Any, result: Any, message: str, digits: Any
) -> None:
    more = {"images": 2} if kind is ImageMetric else {}
    metric = kind(constant(result), identity="mine-1", **more)
    with pytest.raises(EvaluationError, match=f"the metric 'mine-1' .*{message}"):
        measured(metric, ImageSampler(digits, micro_batch=2))


@pytest.mark.parametrize("kind", [ImageMetric, CandidateMetric])
def test_an_exception_of_the_function_is_an_evaluation_error_with_its_message(kind: Any, digits: Any) -> None:
    def fails(_: Any) -> float:
        raise ZeroDivisionError("of my own")

    metric = kind(fails, identity="mine-1", **({"images": 2} if kind is ImageMetric else {}))
    with pytest.raises(EvaluationError, match="the metric 'mine-1' failed: ZeroDivisionError: of my own") as error:
        measured(metric, ImageSampler(digits, micro_batch=2))
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_an_image_metric_sees_all_images_of_a_candidate_at_once_as_bytes(digits: Any) -> None:
    seen: list[torch.Tensor] = []

    def mean(images: torch.Tensor) -> dict[str, float]:
        seen.append(images)
        return {"mean": float(images.float().mean()), "largest": float(images.max())}

    metric = ImageMetric(mean, images=7, identity="mean", name="mean", direction="maximize")
    sampler = ImageSampler(digits, micro_batch=3, batch_size=2)
    assert metric.objective(sampler, INFO, Path()).directions == {"mean": "maximize"}
    found = measured(metric, sampler)
    assert [(one.dtype, one.shape) for one in seen] == [(torch.uint8, (7, 1, 8, 8))]
    assert found.values == {"mean": float(seen[0].float().mean()), "largest": float(seen[0].max())}
    assert list(found.values) == ["mean", "largest"]
    assert found.images == 7


def test_a_candidate_metric_sees_the_candidate_and_has_its_costs() -> None:
    found = measured(CandidateMetric(lambda candidate: sum(candidate.times), identity="sum", name="sum"))
    assert (found.values, found.images, found.nfe, found.layer_runs) == ({"sum": 926 + 690 + 424 + 153}, 0, 4, 72)


# Features.


def test_features_may_be_a_tensor_or_an_array_and_become_float32() -> None:
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    for function in (
        lambda images: images.flatten(1).double(),
        lambda images: images.flatten(1).double().requires_grad_(True) * 1.0,
        lambda images: images.flatten(1).numpy().astype(np.float64),
        lambda images: images.flatten(1).tolist(),
    ):
        found = Features(function, identity="flat")(images)
        assert (type(found), found.dtype, found.shape) == (np.ndarray, np.float32, (3, 4))


@pytest.mark.parametrize("shape", [(3,), (2, 4), (3, 4, 1)])
def test_features_of_a_wrong_shape_are_an_evaluation_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(EvaluationError, match=r"the features 'mine' must be \(N, D\) for N = 3 images; got"):
        Features(lambda _: np.zeros(shape), identity="mine")(torch.zeros(3, 1, 2, 2, dtype=torch.uint8))


def test_an_exception_of_features_is_an_evaluation_error_with_its_message() -> None:
    def fails(_: Any) -> Any:
        raise ValueError("no such thing")

    with pytest.raises(EvaluationError, match="the features 'mine' failed: ValueError: no such thing"):
        Features(fails, identity="mine")(torch.zeros(3, 1, 2, 2, dtype=torch.uint8))


# In a study.


def study(objective: Any, url: str, **more: Any) -> Study:
    settings = {"space": SPACE, "objective": objective, "optimizer": "random", "trials": 12, "storage": url}
    return Study("mine", **(settings | {"model_info": ModelInfo(train_steps=1000)} | more))


def test_a_study_without_a_pipeline_minimises_a_function_of_candidates(url: str) -> None:
    found = study(CandidateMetric(lambda one: one.times[0], identity="first"), url).run(progress=False)
    values = [one.value for one in found]
    assert values == sorted(values) == sorted(one.candidate.times[0] for one in found)


def test_a_study_that_maximises_has_the_greatest_value_first(url: str) -> None:
    metric = CandidateMetric(lambda one: one.times[0], identity="first", direction="maximize")
    mine = study(metric, url)
    values = [one.value for one in mine.run(progress=False)]
    assert values == sorted(values, reverse=True)
    assert mine.best().value == max(values)


def test_a_failing_function_fails_its_trial_with_the_message_and_the_study_goes_on(url: str) -> None:
    def fails_once(candidate: Candidate) -> float:
        if candidate.times == (750, 500, 250, 0):  # the uniform baseline
            raise ZeroDivisionError("of my own")
        return candidate.times[0]

    mine = study(CandidateMetric(fails_once, identity="fails"), url)
    found = mine.run(progress=False)
    trials = mine.trials()
    failed = [trial for trial in trials if trial.state == optuna.trial.TrialState.FAIL]
    assert (len(trials), len(failed), len(found)) == (13, 2, 11)
    assert any("ZeroDivisionError: of my own" in str(text) for text in failed[0].user_attrs.values())


@pytest.mark.slow
def test_features_of_ones_own_serve_fid_in_a_study(url: str, digits: Any) -> None:
    flat = Features(lambda images: images.flatten(1)[:, ::8].float(), identity="flat-1")
    objective = {"kind": "fid", "images": 20, "features": flat, "reference": "digits"}
    table = {"model": digits, "micro_batch": 10, "batch_size": 10}
    found = study(objective, url, pipeline=table, model_info=None, trials=3).run(progress=False)
    assert len(found) == 3
    described = study(objective, url, pipeline=table, model_info=None).config.definition()["objective"]
    assert described["features"] == {"python": "Features", "identity": "flat-1"}
    assert all(math.isfinite(one.value) and one.value > 0 for one in found)
    renamed = objective | {"features": Features(flat.function, identity="flat-2")}
    with pytest.raises(UserError, match="started with another definition"):
        study(renamed, url, pipeline=table, model_info=None, trials=3).run(progress=False)
