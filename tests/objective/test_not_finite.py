"""Images that are not finite: counted, told, and never a value where all are so."""

from __future__ import annotations

import copy
import functools
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marks import slow_but
from optuna.trial import TrialState

from autodiffusion_opt import Candidate, EvaluationError, Features, ImageMetric, Study
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.space import ModelInfo
from autodiffusion_opt.trials.attributes import ERROR, SCORE

CANDIDATE = Candidate.from_time_steps([900, 300])
INFINITE = float("inf")


@pytest.fixture
def broken(digits: Any) -> Any:
    """The embedded pipeline with a denoiser whose output is infinite for images 1 and 2 of each call."""
    pipeline = copy.deepcopy(digits)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.conv_out.register_forward_hook(lambda *given: spoil(given[2][1:3]))
    return pipeline


def spoil(output: torch.Tensor) -> None:
    output.fill_(INFINITE)


def sampler(pipeline: Any, **more: Any) -> ImageSampler:
    return ImageSampler(pipeline, micro_batch=5, batch_size=5, **more)


def test_the_indices_of_such_images_are_told_though_their_pixels_are_clipped(broken: Any) -> None:
    indices: list[int] = []
    images = torch.cat(list(sampler(broken).images(CANDIDATE, range(12), 0, indices)))
    assert indices == [1, 2, 6, 7, 11]
    assert len(images) == 12


def test_of_a_sound_model_no_image_is_told(digits: Any) -> None:
    indices: list[int] = []
    list(sampler(digits).images(CANDIDATE, range(12), 0, indices))
    assert indices == []


def test_what_only_the_decoded_image_shows_is_told_too(digits: Any) -> None:
    """A decoder that overflows: the sampler's last sample is finite, the image is not."""
    pipeline = copy.deepcopy(digits)
    decoded = type(pipeline).__call__

    class Overflowing(type(pipeline)):  # type: ignore[misc]
        @functools.wraps(decoded)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            made = decoded(self, *args, **kwargs)
            made.images[0, 0, 0, 0] = float("nan")
            return made

    pipeline.__class__ = Overflowing
    indices: list[int] = []
    list(sampler(pipeline).images(CANDIDATE, range(7), 0, indices))
    assert indices == [0, 5]


def mean(images: torch.Tensor) -> float:
    return float(images.float().mean())


def test_some_such_images_are_counted_in_the_score_with_a_warning(broken: Any) -> None:
    metric = ImageMetric(mean, images=12, identity="mean").objective(sampler(broken), ModelInfo(1000), Path())
    with pytest.warns(UserWarning, match="5 of 12 images are not finite with"):
        *_, score = metric.measure(CANDIDATE)
    assert score.not_finite == 5
    assert score.to_dict()["not_finite"] == 5


def test_where_none_is_finite_there_is_no_value(digits: Any) -> None:
    pipeline = copy.deepcopy(digits)
    pipeline.unet.conv_out.bias.data.fill_(INFINITE)
    metric = ImageMetric(mean, images=12, identity="mean").objective(sampler(pipeline), ModelInfo(1000), Path())
    with pytest.raises(EvaluationError, match="none of the 12 images is finite"):
        list(metric.measure(CANDIDATE))


@pytest.mark.slow
def test_a_study_keeps_the_count_and_fails_trials_without_any_finite_image(broken: Any, url: str) -> None:
    """Candidates above time 800 give no finite image here, the others a broken second and third in each batch."""
    times: list[float] = []
    broken.unet.register_forward_pre_hook(lambda _, args: times.append(float(args[1])))
    broken.unet.conv_out.register_forward_hook(lambda *given: spoil(given[2]) if times[-1] > 800 else None)
    table = {"model": broken, "micro_batch": 5, "batch_size": 5}
    metric = ImageMetric(mean, images=10, identity="mean")
    space = {"kind": "time-steps", "steps": 3}
    study = Study("overflows", pipeline=table, space=space, objective=metric, optimizer="random", trials=8, storage=url)
    with pytest.warns(UserWarning, match="4 of 10 images are not finite"):
        results = study.run(progress=False)
    assert {result.costs["not_finite"] for result in results} == {4}
    failed = [trial for trial in study.trials() if trial.state == TrialState.FAIL]
    assert failed
    assert all("none of the 10 images is finite" in trial.user_attrs[ERROR] for trial in failed)
    assert not any(SCORE in trial.user_attrs for trial in failed)
    assert {"linspace", "trailing"} <= {trial.user_attrs.get("baseline") for trial in failed}


def strict(text: str) -> Any:
    """JSON in which a value that is no number is an error."""
    return json.loads(text, parse_constant=lambda word: pytest.fail("NaN") if word == "NaN" else INFINITE)


@pytest.mark.parametrize("kind", slow_but(["fid", "kid", "kl"], "kid"))
def test_where_features_are_not_finite_sql_holds_an_infinitely_bad_value_and_no_nan(
    kind: str, tmp_path: Path, url: str
) -> None:
    real = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    path = tmp_path / "reference.npz"
    np.savez(path, **({"features": real} if kind == "kid" else {"mu": real.mean(0), "sigma": np.cov(real.T)}))

    def broken_ones(images: torch.Tensor) -> Any:
        features = images.flatten(1)[:, 18:21].float()
        return features / (int(images.sum()) % 2)  # infinite, or 0 / 0, for about half of the blocks

    table = {"kind": kind, "images": 20, "reference": str(path), "features": Features(broken_ones, identity="broken")}
    study = Study(
        "broken",
        pipeline={"model": "digits", "scheduler": "ddim", "device": "cpu", "batch_size": 10, "micro_batch": 10},
        space={"kind": "time-steps", "steps": 3},
        objective=table,
        optimizer="random",
        trials=6,
        storage=url,
    )
    study.run(progress=False)
    values = [trial.value for trial in study.trials() if trial.state == TrialState.COMPLETE]
    assert INFINITE in values
    assert not any(value is None or np.isnan(value) for value in values)
    with sqlite3.connect(tmp_path / "studies.db") as base:
        texts = [text for (text,) in base.execute("SELECT value_json FROM trial_user_attributes")]
        kept = list(base.execute("SELECT value, value_type FROM trial_values"))
    assert len(kept) == len(values)
    for text in texts:
        strict(text)
