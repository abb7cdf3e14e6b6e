"""The objective that generates images: which ones, what it says of them, what they cost."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from peers.samples import load, sampler_of

from autodiffusion_opt import Candidate, EvaluationError, Features, ImageMetric, UserError
from autodiffusion_opt.config import build
from autodiffusion_opt.objective import METRICS, Metric, MetricConfig, Score
from autodiffusion_opt.objective.features import load_extractor
from autodiffusion_opt.objective.image_objective import ImageObjective
from autodiffusion_opt.objective.metrics.base import MetricMeasurement
from autodiffusion_opt.objective.references import Reference
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.introspect import read_model_info
from autodiffusion_opt.space import ModelInfo

UNEVEN = Candidate.from_time_steps([926, 690, 424, 153])
LAYERS = Candidate.from_time_steps([926, 690, 424, 153], removed=[[1, 2], [], [5], [0, 1, 2, 3]])
# What digits are: 18 layers, here of 10 FLOPs each in a network of 1,000.
INFO = ModelInfo(train_steps=1000, layers=18, flops=1000, layer_flops=(10,) * 18)

# diffusers' own set_timesteps, with NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


def objective(pipeline: Any, batch_size: int = 50, **changes: Any) -> ImageObjective:
    table = {"kind": "fid", "images": 100, "features": "digits", "reference": "digits"} | changes
    config = build(METRICS[table["kind"]].Config, table, "here")
    sampler = ImageSampler(pipeline, micro_batch=50, batch_size=batch_size)
    return config.objective(sampler, INFO, Path())


def score(given: Any, candidate: Candidate = UNEVEN, **more: Any) -> Score:
    *_, last = given.measure(candidate, **more)
    return last


def value(given: Any, candidate: Candidate = UNEVEN, **more: Any) -> float:
    return score(given, candidate, **more).values["fid"]


def test_a_score_says_what_it_cost_and_progress_is_told_of_images(digits: Any) -> None:
    told: list[tuple[str, int, int]] = []
    removed = Candidate.from_time_steps([926, 690], removed=[[1, 2], []])
    found = score(objective(digits, batch_size=40), removed, progress=lambda *what: told.append(what))
    assert told == [("images", 40, 100), ("images", 80, 100), ("images", 100, 100)]
    assert (found.images, found.nfe, found.layer_runs, found.flops) == (100, 2, 2 * 18 - 2, 2 * 1000 - 20)
    assert found.seconds > 0
    assert list(found.values) == ["fid"]
    costs = {"images", "seconds", "nfe", "layer_runs", "flops", "not_finite"}
    assert set(found.to_dict()) == {"values", "seconds_of"} | costs
    assert set(found.seconds_of) == {"sampling", "features", "metric"}
    assert sum(found.seconds_of.values()) == pytest.approx(found.seconds)
    assert found.to_dict()["values"] == found.values


@pytest.mark.parametrize(
    ("layout", "nfe", "layer_runs", "flops"),
    [
        ("once", 4, 18 - 2 + 18 + 18 - 1 + 18 - 4, 4000 - 70),
        ("heun", 7, 2 * 16 + 2 * 18 + 2 * 17 + 14, 7000 - 10 * (2 * 2 + 2 * 1 + 4)),
        ("plms", 5, 2 * 16 + 18 + 17 + 14, 5000 - 10 * (2 * 2 + 1 + 4)),
    ],
)
def test_a_solver_that_calls_twice_costs_twice(layout: Any, nfe: int, layer_runs: int, flops: int) -> None:
    info = ModelInfo(train_steps=1000, layers=18, flops=1000, layer_flops=(10,) * 18, layout=layout)
    found = Score.of({"value": 1.0}, LAYERS, info, images=3, seconds=0.5)
    assert (found.nfe, found.layer_runs, found.flops, found.images, found.seconds) == (nfe, layer_runs, flops, 3, 0.5)


def test_costs_that_were_not_counted_are_unknown_and_not_nought() -> None:
    found = Score.of({"value": 1.0}, UNEVEN, ModelInfo(train_steps=1000), images=3, seconds=0.5)
    assert (found.nfe, found.layer_runs, found.flops) == (4, None, None)


@pytest.mark.parametrize(
    ("scheduler", "nfe", "runs"), [("heun", 7, 2 * 10 + 2 * 12 + 2 * 11 + 8), ("plms", 5, 2 * 10 + 12 + 11 + 8)]
)
def test_the_score_of_a_solver_that_calls_twice_has_its_layer_runs(scheduler: str, nfe: int, runs: int) -> None:
    """The whole way from a pipeline; literal numbers: 12 layers, four steps."""
    pipeline = load("stable_diffusion", scheduler=scheduler)
    metric = ImageMetric(lambda images: float(images.float().mean()), images=1, identity="mean")
    found = score(metric.objective(sampler_of(pipeline, "stable_diffusion"), read_model_info(pipeline), Path()), LAYERS)
    assert (found.nfe, found.layer_runs) == (nfe, runs)


# Which images.


class Seen:
    """A metric of one's own that keeps the images."""

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []

    def __call__(self, images: torch.Tensor) -> float:
        self.images.append(images)
        return 0.0


def test_the_images_measured_are_exactly_the_first_ones_of_the_objectives_seed(digits: Any) -> None:
    seen = Seen()
    sampler = ImageSampler(digits, micro_batch=3, batch_size=4)
    metric = ImageMetric(seen, images=7, seed=5, identity="seen").objective(sampler, INFO, Path())
    runs: list[dict[str, int]] = [{}, {"images": 5}, {"seed": 6}, {"images": 2, "seed": 0}]
    found = [score(metric, **more) for more in runs]
    assert [one.images for one in found] == [7, 5, 7, 2]
    wanted = [(7, 5), (5, 5), (7, 6), (2, 0)]
    for images, (count, seed) in zip(seen.images, wanted, strict=True):
        assert torch.equal(images, torch.cat(list(sampler.images(UNEVEN, range(count), seed))))
    assert torch.equal(seen.images[0][:5], seen.images[1])
    assert not torch.equal(seen.images[0], seen.images[2])


def test_the_noise_is_the_same_every_time_and_that_of_the_tables_seed(digits: Any) -> None:
    values = [value(objective(digits, seed=seed)) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    assert values[2] == value(objective(digits), seed=1)
    assert values[2] == value(objective(digits, seed=3), seed=1)
    assert value(objective(digits, seed=1), seed=0) == values[0]  # 0 is a seed, not "none given"


def test_the_batch_size_does_not_matter(digits: Any) -> None:
    """The images are the same bits; float32 features of another shape are rounded otherwise."""
    values = [value(objective(digits, batch_size=size)) for size in (7, 100, 1000)]
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-6)


def test_better_images_have_a_lower_value(digits: Any) -> None:
    found = [
        value(objective(digits), Candidate.from_time_steps(times))
        for times in ([900, 700, 500, 300, 200, 100, 50, 10], [926, 690, 424, 153], [750, 500, 250, 0], [10, 5])
    ]
    assert found == sorted(found)
    assert found[-1] > 10 * found[0]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images_of_fid(digits: Any) -> None:
    """What a trial keeps, beyond one batch, is the sums: 64·64 of them."""
    found, peaks = objective(digits, batch_size=50), []
    for count in (100, 100, 1000):
        tracemalloc.start()
        score(found, Candidate.from_time_steps([900]), images=count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 900 features more would be 900·64·4 bytes = 230 kB, their images 58 kB.
    assert peaks[2] < peaks[1] + 50_000


# What does not fit.


@pytest.mark.slow
def test_a_reference_of_another_extractor_is_refused(digits: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError, match="64 dimensions, as the extractor gives; it has 2048"):
        score(objective(digits, reference=str(tmp_path / "inception.npz")))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_are_infinitely_bad(wrong: float, digits: Any) -> None:
    def broken(images: torch.Tensor) -> Any:
        found = load_extractor("digits", torch.device("cpu"))(images)
        found[-1, -1] = wrong if len(images) == 50 else found[-1, -1]
        return found

    assert value(objective(digits, features=Features(broken, identity=f"broken{wrong}"))) == math.inf


def test_features_that_memory_does_not_hold_name_the_key_to_lower(digits: Any) -> None:
    measured = objective(digits)
    real = measured.start

    def full(*given: Any) -> Any:
        measurement = real(*given)

        def fail(_: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        measurement._parts[0].extractor = fail  # type: ignore[attr-defined]
        return measurement

    object.__setattr__(measured, "start", full)
    with pytest.raises(UserError, match="features of 50 images at once, and does not: lower batch_size"):
        score(measured)


class Greatest(Metric):
    """The greatest feature; more is better."""

    direction = "maximize"

    def __init__(self, config: MetricConfig, reference: Reference) -> None:
        super().__init__(config, reference)
        self.greatest = -math.inf

    def add(self, features: Any) -> None:
        self.greatest = max(self.greatest, float(features.max()))

    def value(self) -> float:
        return self.greatest


class Several(Greatest):
    """Two values; the test says which."""

    given: ClassVar[dict[str, float]] = {"least": 2.0, "several": 3.0}

    def value(self) -> Any:
        return self.given


def test_a_metric_may_give_several_values_of_which_one_is_optimised() -> None:
    metric = Several(None, None)  # type: ignore[arg-type]
    measurement = MetricMeasurement("several", "several", None, metric)
    assert list(measurement.values().items()) == [("several", 3.0), ("least", 2.0)]
    with pytest.raises(EvaluationError, match="must give a value named 'other'; got least, several"):
        MetricMeasurement("other", "other", None, metric).values()


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_metric_that_is_maximised_is_minus_infinity_where_it_is_not_finite(wrong: float) -> None:
    metric = Greatest(None, None)  # type: ignore[arg-type]
    metric.greatest = wrong
    measurement = MetricMeasurement("greatest", "greatest", None, metric)
    assert measurement.values() == {"greatest": -math.inf}
