"""Streamed moments against numpy, the Fréchet distance against torch-fidelity and a formula in float64.

Every way to compute the distance runs through the same cases: from the features of few images, from sums, and both as
torch tensors, as on a GPU. A way that is wrong is among them, and the cases must tell.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray

from autodiffusion_opt import UserError
from autodiffusion_opt.objective.features import load_extractor
from autodiffusion_opt.objective.statistics import (
    FrechetDistance,
    Gaussian,
    Moments,
    frechet_distance,
    frechet_distance_of_few,
)

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


def streamed(generated: NDArray[np.float32], reference: Gaussian, device: str | None = None, block: int = 64) -> float:
    measuring = FrechetDistance(reference, device)
    for start in range(0, len(generated), block):
        measuring.add(generated[start : start + block])
    return measuring.value()


def unsymmetric(generated: NDArray[np.float32], reference: Gaussian) -> float:
    """Wrong: the product of two covariances is not symmetric, and ``eigvalsh`` reads one of its triangles alone."""
    first = gaussian(generated)
    values = np.linalg.eigvalsh(first.covariance @ reference.covariance)
    means = first.mean - reference.mean
    both = np.trace(first.covariance) + np.trace(reference.covariance)
    return float(means @ means + both - 2 * np.sqrt(np.maximum(values, 0)).sum())


Way = Callable[[NDArray[np.float32], Gaussian], float]
WAYS: dict[str, Way] = {
    "sums": lambda generated, reference: frechet_distance(gaussian(generated), reference),
    "sums, torch": lambda generated, reference: frechet_distance(gaussian(generated), reference, "cpu"),
    "few": frechet_distance_of_few,
    "few, torch": lambda generated, reference: frechet_distance_of_few(generated, reference, "cpu"),
    "streamed": streamed,
    "streamed, torch": lambda generated, reference: streamed(generated, reference, "cpu"),
}


def halves_of_digits() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """ReLU features: some are zero nearly always, so both covariances are all but singular."""
    from autodiffusion_opt.zoo.digits import load_images

    images, extractor = load_images(), load_extractor("digits", torch.device("cpu"))
    return extractor(images[:600]), extractor(images[600:])


def flat(count: int, seed: int, rank: int) -> NDArray[np.float32]:
    """Features in a subspace: of that rank, whatever their number."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, rank)) @ rng.normal(size=(rank, DIMENSIONS)) + seed).astype(np.float32)


def with_dead_columns(count: int, seed: int) -> NDArray[np.float32]:
    """Half of the features never change, each at a value of its own."""
    given = features(count, seed)
    given[:, ::2] = np.arange(DIMENSIONS // 2, dtype=np.float32)
    return given


# Generated and real features.
CASES: dict[str, Callable[[], tuple[NDArray[np.float32], NDArray[np.float32]]]] = {
    "same mean": lambda: (features(500, 0), features(700, 1)),
    "near": lambda: (features(500, 0), features(700, 1, 0.3)),
    "far": lambda: (features(500, 0), features(700, 1, 30.0)),
    "fewer than 0.75 D": lambda: (features(30, 0), features(700, 1)),
    "as many as 0.75 D": lambda: (features(36, 0), features(700, 1)),
    "more than 0.75 D": lambda: (features(37, 0), features(700, 1)),
    "D": lambda: (features(DIMENSIONS, 0), features(700, 1)),
    "two": lambda: (features(2, 0), features(700, 1)),
    "few of both": lambda: (features(20, 0), features(20, 1)),
    "rank 3": lambda: (flat(200, 0, 3), flat(300, 1, 5)),
    "few of rank 3": lambda: (flat(20, 0, 3), features(700, 1)),
    "dead columns": lambda: (with_dead_columns(300, 0), with_dead_columns(300, 1)),
    "few with dead columns": lambda: (with_dead_columns(30, 0), with_dead_columns(300, 1)),
    "constant": lambda: (np.full((50, DIMENSIONS), 3, np.float32), features(700, 1)),
    "constant reference": lambda: (features(20, 0), np.full((50, DIMENSIONS), 3, np.float32)),
    "digits": halves_of_digits,
}


# Those of at most D generated features: the N × N matrix is not for more.
FEW = ["fewer than 0.75 D", "as many as 0.75 D", "more than 0.75 D", "D", "two", "few of both", "few of rank 3"]
FEW += ["few with dead columns", "constant reference"]


@pytest.mark.parametrize(
    ("way", "case"), [(way, case) for way in WAYS for case in (FEW if way.startswith("few") else CASES)]
)
def test_frechet_distance_equals_torch_fidelity(way: str, case: str) -> None:
    generated, real = CASES[case]()
    found = WAYS[way](generated, gaussian(real))
    assert found == pytest.approx(torch_fidelity_distance(generated, real), rel=1e-6)


def by_singular_values(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """tr (Σ₁Σ₂)^½ as the nuclear norm of X₁X₂ᵀ (X: centred, over √(n-1)): no root of a rounding error in it."""
    wide = [(x.astype(np.float64) - x.mean(0, dtype=np.float64)) / np.sqrt(len(x) - 1) for x in (one, other)]
    means = one.mean(0, dtype=np.float64) - other.mean(0, dtype=np.float64)
    trace = np.linalg.svd(wide[0] @ wide[1].T, compute_uv=False).sum()
    return float(means @ means + sum((x**2).sum() for x in wide) - 2 * trace)


def in_a_subspace(count: int, seed: int) -> NDArray[np.float32]:
    """400 features in the same 20 directions: 380 eigenvalues, or those of 80 of 100 images, are rounding errors."""
    mix = np.random.default_rng(9).normal(size=(20, 400))
    return (np.random.default_rng(seed).normal(size=(count, 20)) @ mix).astype(np.float32)


@pytest.mark.parametrize("count", [100, 299, 300, 301, 1000])
def test_rounding_errors_of_eigenvalues_that_are_zero_cancel(count: int) -> None:
    generated, real = in_a_subspace(count, 0), in_a_subspace(1200, 1)
    wanted = by_singular_values(generated, real)
    # Of a total variance of 16,000. With OpenBLAS's kernels for three processors the errors were up to 8e-5, and those
    # of the roots of clipped eigenvalues from 4.2e-4 on.
    assert streamed(generated, gaussian(real)) == pytest.approx(wanted, abs=2e-4)
    assert frechet_distance(gaussian(generated), gaussian(real)) == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize("count", [100, 299, 300, 301, 1000])
def test_roots_of_clipped_eigenvalues_do_not_pass(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def clipped(symmetric: Any) -> float:
        return float(np.sqrt(np.maximum(np.linalg.eigvalsh(symmetric), 0)).sum())

    monkeypatch.setattr("autodiffusion_opt.objective.statistics._sum_of_roots", clipped)
    with pytest.raises(AssertionError):
        test_rounding_errors_of_eigenvalues_that_are_zero_cancel(count)


@pytest.mark.parametrize("case", ["same mean", "far", "fewer than 0.75 D", "digits"])
def test_eigenvalues_of_the_unsymmetric_product_do_not_pass(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WAYS, "wrong", unsymmetric)
    with pytest.raises(AssertionError):
        test_frechet_distance_equals_torch_fidelity("wrong", case)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shift", [0.0, 0.3, 30.0])
def test_frechet_distance_equals_the_formula(way: str, shift: float) -> None:
    generated, real = features(40 if way.startswith("few") else 500, 0), features(700, 1, shift)
    assert WAYS[way](generated, gaussian(real)) == pytest.approx(by_sqrtm(generated, real), rel=1e-6)


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
    assert there == pytest.approx(by_singular_values(few, many), rel=1e-6)


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


@pytest.mark.parametrize("count", [0, 1])
def test_a_covariance_needs_two_images(count: int) -> None:
    moments, measuring = Moments(3), FrechetDistance(Gaussian(np.zeros(3), np.eye(3)))
    moments.add(np.ones((count, 3), np.float32))
    measuring.add(np.ones((count, 3), np.float32))
    for ask in (moments.gaussian, measuring.value):
        with pytest.raises(UserError, match=f"at least 2 images; got {count}"):
            ask()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("way", WAYS)
def test_features_that_are_not_finite_are_infinitely_far(way: str, wrong: float) -> None:
    for count in (20, 100):
        generated = features(count, 0)
        generated[count // 2, 5] = wrong
        with np.errstate(invalid="ignore"):
            assert WAYS[way](generated, gaussian(features(700, 1))) == math.inf


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [20, 300])
def test_the_distance_from_itself_is_nothing_and_never_below_it(way: str, count: int) -> None:
    given = features(count, 0)
    scale = np.trace(gaussian(given).covariance)
    assert 0 <= WAYS[way](given, gaussian(given)) < 1e-6 * scale


def held(measuring: FrechetDistance) -> int:
    return sum(len(rows) for rows in measuring._rows)


def test_the_features_of_few_images_are_kept_and_no_more() -> None:
    reference, rows, limit = gaussian(features(700, 1)), [], 36
    measuring = FrechetDistance(reference)
    for start in range(0, 500, 7):
        measuring.add(features(500, 0)[start : start + 7])
        rows.append(held(measuring))
        assert (measuring._moments is None) == (start + 7 <= limit)
    assert max(rows) <= limit
    assert measuring.value() == pytest.approx(torch_fidelity_distance(features(500, 0), features(700, 1)), rel=1e-6)


@pytest.mark.parametrize("count", [30, 300])
def test_asking_between_blocks_changes_nothing_and_one_array_may_be_used_again(count: int) -> None:
    reference, given = gaussian(features(700, 1)), features(count, 0)
    measuring, block = FrechetDistance(reference), np.empty((10, DIMENSIONS), np.float32)
    for start in range(0, count, 10):
        block[:] = given[start : start + 10]
        measuring.add(block)
        so_far = given[: start + 10]
        assert measuring.value() == pytest.approx(frechet_distance(gaussian(so_far), reference), rel=1e-6)


@pytest.mark.parametrize("count", [30, 36])
def test_the_value_of_few_images_is_the_same_number_however_they_are_split(count: int) -> None:
    reference, given = gaussian(features(700, 1)), features(count, 0)
    values = {streamed(given, reference, block=block) for block in (1, 5, 16, count)}
    assert len(values) == 1
    assert values == {frechet_distance_of_few(given, reference)}


@pytest.mark.parametrize(("count", "path"), [(36, "frechet_distance_of_few"), (37, "frechet_distance")])
def test_the_smaller_matrix_is_taken(count: int, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from autodiffusion_opt.objective import statistics

    monkeypatch.setattr(statistics, path, lambda *given: -7.0)
    assert streamed(features(count, 0), gaussian(features(700, 1))) == -7.0


def test_where_cusolver_gives_up_lapack_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def gives_up(matrix: torch.Tensor) -> torch.Tensor:
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigvalsh", gives_up)
    for way, count in (("sums, torch", 500), ("few, torch", 30)):
        generated, real = features(count, 0), features(700, 1)
        assert WAYS[way](generated, gaussian(real)) == pytest.approx(by_sqrtm(generated, real), rel=1e-6)


def test_numpy_computes_unless_a_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    eigenvalues = torch.linalg.eigvalsh

    def noted(matrix: torch.Tensor) -> torch.Tensor:
        asked.append(str(matrix.dtype))
        return eigenvalues(matrix)

    monkeypatch.setattr(torch.linalg, "eigvalsh", noted)
    reference = gaussian(features(700, 1))
    for count in (20, 100):
        streamed(features(count, 0), reference)
    assert asked == []
    for count in (20, 100):
        streamed(features(count, 0), reference, "cpu")
    assert asked == ["torch.float64"] * 2
