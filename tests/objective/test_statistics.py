"""Streamed moments against numpy, the Fréchet distance against torch-fidelity and a formula in float64."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray

from autodiffusion_opt.objective.features import load_extractor
from autodiffusion_opt.objective.statistics import Gaussian, Moments, frechet_distance

DIMENSIONS = 48


def features(count: int, seed: int, shift: float = 0.0) -> NDArray[np.float32]:
    """Correlated features of unequal scale, float32 as extractors give them."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99 + seed).normal(size=(DIMENSIONS, DIMENSIONS)) * np.geomspace(0.01, 10, DIMENSIONS)
    return (rng.normal(size=(count, DIMENSIONS)) @ mix + shift).astype(np.float32)


def gaussian(of: NDArray[np.float32], batch: int = 1000) -> Gaussian:
    moments = Moments(of.shape[1])
    for start in range(0, len(of), batch):
        moments.add(of[start : start + batch])
    return moments.gaussian()


def by_sqrtm(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Heusel et al.'s equation 6 as it is written, in float64."""
    means = one.mean(axis=0, dtype=np.float64) - other.mean(axis=0, dtype=np.float64)
    first, second = (np.cov(each.astype(np.float64), rowvar=False) for each in (one, other))
    return float(means @ means + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real))


def torch_fidelity_distance(one: Any, other: Any) -> float:
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    stats = [{"mu": np.mean(x, axis=0, dtype=np.float64), "sigma": np.cov(x, rowvar=False)} for x in (one, other)]
    found = fid.fid_statistics_to_metric(stats[0], stats[1], verbose=False)
    return float(found["frechet_inception_distance"])


@pytest.mark.parametrize("shift", [0.0, 0.3, 30.0])
def test_frechet_distance_equals_torch_fidelity(shift: float) -> None:
    one, other = features(500, 0), features(700, 1, shift)
    assert frechet_distance(gaussian(one), gaussian(other)) == pytest.approx(
        torch_fidelity_distance(one, other), rel=1e-6
    )


@pytest.mark.parametrize("shift", [0.0, 0.3, 30.0])
def test_frechet_distance_equals_the_formula(shift: float) -> None:
    one, other = features(500, 0), features(700, 1, shift)
    assert frechet_distance(gaussian(one), gaussian(other)) == pytest.approx(by_sqrtm(one, other), rel=1e-6)


def test_of_digits_features_it_equals_torch_fidelity() -> None:
    from autodiffusion_opt.zoo.digits import load_images

    images, extractor = load_images(), load_extractor("digits", torch.device("cpu"))
    one, other = (extractor(half) for half in (images[:600], images[600:]))
    # ReLU features: some are zero nearly always, so both covariances are all but singular.
    assert frechet_distance(gaussian(one), gaussian(other)) == pytest.approx(
        torch_fidelity_distance(one, other), rel=1e-6
    )


def test_known_distances() -> None:
    eye = np.eye(3)
    unit, moved, wide = (Gaussian(np.full(3, m), s * s * eye) for m, s in ((0.0, 1.0), (2.0, 1.0), (0.0, 3.0)))
    assert frechet_distance(unit, unit) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(unit, moved) == pytest.approx(12)  # 3 · 2²
    assert frechet_distance(unit, wide) == pytest.approx(12)  # 3 · (3 - 1)²
    assert frechet_distance(wide, unit) == pytest.approx(12)


@pytest.mark.parametrize("count", [2, 10, DIMENSIONS])
def test_singular_covariances(count: int) -> None:
    """Fewer images than dimensions: the covariance has no inverse, and the product's root is not unique."""
    few, many = features(count, 0), features(700, 1)
    there, back = frechet_distance(gaussian(few), gaussian(many)), frechet_distance(gaussian(many), gaussian(few))
    assert there == pytest.approx(back, rel=1e-6)
    # tr (Σ₁Σ₂)^½ is the nuclear norm of X₁ᵀX₂ (X: centred, over √(n-1)): no root, no inverse.
    wide = [(x.astype(np.float64) - x.mean(0, dtype=np.float64)) / np.sqrt(len(x) - 1) for x in (few, many)]
    means = few.mean(0, dtype=np.float64) - many.mean(0, dtype=np.float64)
    trace = np.linalg.svd(wide[0] @ wide[1].T, compute_uv=False).sum()
    assert there == pytest.approx(means @ means + sum((x**2).sum() for x in wide) - 2 * trace, rel=1e-6)


@pytest.mark.parametrize("batch", [1, 7, 100, 500])
def test_moments_equal_numpy_however_they_are_split(batch: int) -> None:
    given = features(500, 3, shift=5.0)
    found = gaussian(given, batch)
    wide = given.astype(np.float64)
    assert found.count == 500
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(wide, rowvar=False), rtol=1e-9, atol=1e-9)


def test_moments_are_summed_in_float64() -> None:
    """In float32 the sum of so many stops growing at 2²⁴, and the covariance is lost."""
    given = (np.random.default_rng(0).normal(size=(4000, 2)) + 3000).astype(np.float32)
    np.testing.assert_allclose(
        gaussian(given, 50).covariance, np.cov(given.astype(np.float64), rowvar=False), rtol=1e-6
    )


def test_moments_do_not_grow() -> None:
    moments, sizes = Moments(DIMENSIONS), []
    for _ in range(3):
        moments.add(features(200, 0))
        sizes.append(sum(sys.getsizeof(value) for value in vars(moments).values()))
    assert moments.count == 600
    assert len(set(sizes)) == 1


def test_a_covariance_needs_two_images() -> None:
    moments = Moments(3)
    moments.add(np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match="at least 2 images; got 1"):
        moments.gaussian()
