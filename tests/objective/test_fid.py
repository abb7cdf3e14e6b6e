"""FID of a candidate: equal to what all its images give at once, and messages for what does not fit."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autodiffusion_opt import Candidate, UserError
from autodiffusion_opt.objective import FidConfig
from autodiffusion_opt.objective.features import load_extractor
from autodiffusion_opt.objective.fid import FidObjective
from autodiffusion_opt.sampling.apply import generate
from autodiffusion_opt.zoo.digits import load_images

UNEVEN = Candidate.from_time_steps([926, 690, 424, 153])


def objective(pipeline: Any, batch_size: int = 50, **changes: Any) -> FidObjective:
    settings = {"images": 100, "features": "digits", "reference": "digits"} | changes
    return FidObjective(FidConfig(**settings), pipeline, batch_size=batch_size, micro_batch=50, layers=18)


def test_it_equals_torch_fidelity_on_all_features_at_once(digits: Any) -> None:
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    extractor = load_extractor("digits", torch.device("cpu"))
    images = torch.cat(list(generate(digits, UNEVEN, range(100), seed=3, batch_size=50, micro_batch=50)))
    stats = [
        {"mu": np.mean(x, axis=0, dtype=np.float64), "sigma": np.cov(x.astype(np.float64), rowvar=False)}
        for x in (extractor(images), extractor(load_images()))
    ]
    wanted = fid.fid_statistics_to_metric(stats[0], stats[1], verbose=False)["frechet_inception_distance"]
    assert objective(digits).score(UNEVEN, seed=3).value == pytest.approx(float(wanted), rel=1e-6)


def test_parts(digits: Any) -> None:
    told: list[int] = []
    removed = Candidate.from_time_steps([926, 690], removed=[[1, 2], []])
    score = objective(digits, batch_size=40).score(removed, progress=told.append)
    assert told == [40, 80, 100]
    assert (score.images, score.nfe, score.layer_runs) == (100, 2, 2 * 18 - 2)
    assert set(score.parts()) == {"images", "seconds", "nfe", "layer_runs"}


def test_the_same_noise_every_time_and_the_definitions_seed(digits: Any) -> None:
    values = [objective(digits, seed=seed).score(UNEVEN).value for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    assert values[2] == objective(digits).score(UNEVEN, seed=1).value


def test_the_batch_size_does_not_matter(digits: Any) -> None:
    """The images are the same bits; float32 features of another shape are rounded otherwise."""
    values = [objective(digits, batch_size=size).score(UNEVEN).value for size in (7, 100, 1000)]
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-6)


def test_better_images_have_a_lower_value(digits: Any) -> None:
    found = [
        objective(digits).score(Candidate.from_time_steps(times)).value
        for times in ([900, 700, 500, 300, 200, 100, 50, 10], [926, 690, 424, 153], [750, 500, 250, 0], [10, 5])
    ]
    assert found == sorted(found)
    assert found[-1] > 10 * found[0]


def test_memory_does_not_grow_with_the_images(digits: Any) -> None:
    """What a trial keeps, beyond one batch, is the sums: 64·64 of them."""
    found, peaks = objective(digits, batch_size=50), []
    for count in (100, 100, 1000):
        tracemalloc.start()
        found.score(Candidate.from_time_steps([900]), images=count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 900 features more would be 900·64·4 bytes = 230 kB, their images 58 kB.
    assert peaks[2] < peaks[1] + 50_000


def test_a_reference_of_another_extractor(digits: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError, match="64 dimensions, as digits gives; it has 2048"):
        objective(digits, reference=str(tmp_path / "inception.npz")).score(UNEVEN)


def test_features_need_images_that_fit() -> None:
    with pytest.raises(UserError, match=r"grey 8×8 images; got \(C, H, W\) = \(3, 32, 32\)"):
        load_extractor("digits", torch.device("cpu"))(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_features_that_are_none() -> None:
    with pytest.raises(UserError, match="Did you mean 'inception-v3-compat'"):
        load_extractor("inception-v3-compact", torch.device("cpu"))
    with pytest.raises(UserError, match=r"features_weights: the file .* must exist"):
        load_extractor("inception", torch.device("cpu"), Path("no-such.pth"))


def test_a_value_is_a_number_or_infinite(digits: Any) -> None:
    broken = objective(digits)
    broken.extractor = lambda images: np.full((len(images), 64), np.nan, np.float32)  # type: ignore[assignment]
    assert broken.score(UNEVEN).value == math.inf


def test_memory_that_does_not_hold_a_batch(digits: Any) -> None:
    def full(_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    large = objective(digits)
    large.extractor = full
    with pytest.raises(UserError, match="features of 50 images at once, and does not: lower batch_size"):
        large.score(UNEVEN)
