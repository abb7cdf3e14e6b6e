"""What every registered metric keeps, and that each kind is what its name says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from peers.feature_metrics import (
    DIMENSIONS,
    KINDS,
    SETTINGS,
    TO_TEACHER,
    Array,
    features,
    fid_by_fidelity,
    kid_by_fidelity,
    metric,
    table_of,
    value,
)

from autodiffusion_opt import Candidate, ModelInfo, UserError
from autodiffusion_opt.config import build
from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.objective.metrics import Fid, Kid
from autodiffusion_opt.progress import silent
from autodiffusion_opt.sampling.generate import ImageSampler

# Every kind.


@pytest.mark.parametrize("kind", KINDS)
def test_no_shift_is_better_than_a_shift_and_a_small_one_than_a_large_one(kind: str) -> None:
    real = features(400)
    values = [value(kind, features(400, 1, shift), real) for shift in (0.0, 1.0, 2.0, 8.0)]
    assert values == sorted(values, reverse=METRICS[kind].direction == "maximize")
    assert len(set(values)) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_itself_is_the_best_there_is(kind: str) -> None:
    real = features(200)
    sign = -1 if METRICS[kind].direction == "maximize" else 1
    itself = sign * value(kind, real, real)
    assert itself < 1e-6
    assert all(itself < sign * value(kind, features(200, seed), real) for seed in range(1, 6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [1, 7, 64, 200])
def test_the_value_does_not_depend_on_how_features_are_split(kind: str, block: int) -> None:
    real, generated = features(400), features(200, 1, 0.3)
    assert value(kind, generated, real, block) == pytest.approx(value(kind, generated, real), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_all_features_count_the_last_as_well_as_the_first(kind: str) -> None:
    real, generated = features(400), features(200, 1)
    more = {"subset_size": 200} if kind == "kid" else {}
    whole = value(kind, generated, real, 50, **more)
    for changed in (0, 60, 199):
        other = generated.copy()
        other[changed] += 3
        assert value(kind, other, real, 50, **more) != whole


@pytest.mark.parametrize("kind", KINDS)
def test_each_candidate_is_measured_anew_and_asking_twice_changes_nothing(kind: str) -> None:
    measuring = metric(kind, features(400))
    measuring.add(features(200, 1))
    first = measuring.value()
    assert measuring.value() == first == value(kind, features(200, 1), features(400))


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_a_direction_a_table_and_the_references_dimensions(kind: str) -> None:
    assert METRICS[kind].direction in ("minimize", "maximize")
    against = "teacher_steps" if kind in TO_TEACHER else "reference"
    assert set(METRICS[kind].Config.model_fields) >= {"kind", "images", "seed", "conditions", "features", against}
    assert METRICS[kind].__doc__
    assert metric(kind, features(200)).dimensions == DIMENSIONS


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_other_dimensions_are_refused(kind: str, digits: Any) -> None:
    measured = objective(digits, kind)
    (part,) = measured.start(0, 100, silent)._parts
    with pytest.raises(UserError, match="63 dimensions, as the extractor gives; it has 64"):
        part.add(np.zeros((2, 63), np.float32))


def objective(pipeline: Any, kind: str, **more: Any) -> Any:
    table = table_of(kind, **{"images": 100, "features": "digits"} | more)
    sampler = ImageSampler(pipeline, micro_batch=50, batch_size=50)
    return build(METRICS[kind].Config, table, "here").objective(sampler, ModelInfo(train_steps=1000), Path())


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_of_a_kind_gives_a_value_of_its_name_and_direction(kind: str, digits: Any) -> None:
    found = objective(digits, kind)
    assert dict(found.directions) == {kind: METRICS[kind].direction}
    *_, score = found.measure(Candidate.from_time_steps([900, 600, 300, 100]))
    assert list(score.values) == [kind]
    assert np.isfinite(score.values[kind])


# Each kind is what its name says: against formulas that are not ours.


def kl_by_formula(generated: Array, real: Array) -> float:
    """The divergence of two normal distributions as an expectation: E ln p - E ln q over the first, by scipy's own
    densities, whose means over a Gaussian are entropy and cross entropy."""
    ours, theirs = generated.astype(np.float64), real.astype(np.float64)
    first, second = np.cov(ours, rowvar=False), np.cov(theirs, rowvar=False)
    ridge = 1e-6 * np.mean(np.diag(second)) * np.eye(len(second))
    normal = scipy.stats.multivariate_normal(theirs.mean(0), second + ridge)
    inverse = scipy.linalg.inv(second + ridge)
    # E ln q: the density at the mean, less half the trace.
    crossed = normal.logpdf(ours.mean(0)) - np.trace(inverse @ (first + ridge)) / 2
    entropy = scipy.stats.multivariate_normal(ours.mean(0), first + ridge).entropy()
    return float(-entropy - crossed)


def paired_by_formula(generated: Array, real: Array) -> float:
    return float(np.mean([math.dist(one, other) for one, other in zip(generated, real, strict=False)]))


# A kind that is registered here has a formula here: a kind wired to another's class is caught.
FORMULAS: dict[str, Callable[[Array, Array], float]] = {
    "fid": fid_by_fidelity,
    "kid": kid_by_fidelity,
    "kl": kl_by_formula,
    "rfid": fid_by_fidelity,
    "paired": paired_by_formula,
}


def test_every_built_in_kind_has_a_formula_here_or_tests_of_its_own() -> None:
    assert set(FORMULAS) == set(KINDS)
    assert set(METRICS) - set(KINDS) == {"psnr", "ssim", "lpips", "clip-score", "command"}


@pytest.mark.parametrize("kind", sorted(METRICS))
def test_every_kind_has_a_direction_a_table_that_is_described_and_a_text(kind: str) -> None:
    assert METRICS[kind].direction in ("minimize", "maximize")
    assert METRICS[kind].__doc__
    fields = METRICS[kind].Config.model_fields
    assert set(fields) >= {"kind", "images", "seed", "conditions"}
    told = "".join(above.__doc__ or "" for above in METRICS[kind].Config.__mro__)
    assert [name for name in fields if f"    {name}: " not in told] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [0.0, 0.1, 3.0])
def test_each_kind_equals_an_independent_formula_of_the_same_features(kind: str, shift: float) -> None:
    generated, real = features(200, 1, shift), features(400)
    assert value(kind, generated, real) == pytest.approx(FORMULAS[kind](generated, real), rel=1e-6)


@pytest.mark.parametrize(("kind", "other"), [("kid", Fid), ("fid", Kid)])
def test_a_kind_wired_to_the_wrong_class_does_not_pass(kind: str, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS._entries, kind, other)  # type: ignore[attr-defined]
    monkeypatch.delitem(SETTINGS, "kid")
    with pytest.raises(AssertionError):
        test_each_kind_equals_an_independent_formula_of_the_same_features(kind, 3.0)


def fid_by_formula(generated: Array, real: Array) -> float:
    """Heusel et al.'s equation 6 as it is written, in float64."""
    one, other = generated.astype(np.float64), real.astype(np.float64)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    means = one.mean(0) - other.mean(0)
    return float(means @ means + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real))


def test_fid_equals_its_formula() -> None:
    generated, real = features(200, 1, 0.3), features(400)
    assert value("fid", generated, real) == pytest.approx(fid_by_formula(generated, real), rel=1e-6)


def kid_by_formula(x: Array, y: Array) -> float:
    """Bińkowski et al.'s equation 4 and kernel as they are written: sums over pairs, all images in one subset."""
    m, dimensions = x.shape

    def k(a: Any, b: Any) -> float:
        return float((a.astype(np.float64) @ b.astype(np.float64) / dimensions + 1) ** 3)

    pairs = [(i, j) for i in range(m) for j in range(m)]
    within = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs if i != j) / (m * (m - 1))
    return within - 2 * sum(k(x[i], y[j]) for i, j in pairs) / m**2


def test_kid_equals_its_formula_where_one_subset_is_everything() -> None:
    generated, real = features(40, 1, 0.3), features(40)
    found = value("kid", generated, real, images=40, subsets=1, subset_size=40)
    assert found == pytest.approx(kid_by_formula(generated, real), rel=1e-9)


@pytest.mark.parametrize("size", [2, 30, 200])
@pytest.mark.parametrize("subsets", [1, 3, 100])
def test_kid_equals_torch_fidelity_for_any_subsets(size: int, subsets: int) -> None:
    generated, real = features(200, 1, 0.2), features(400)
    found = value("kid", generated, real, subsets=subsets, subset_size=size)
    assert found == pytest.approx(kid_by_fidelity(generated, real, subsets, size), rel=1e-6)


@pytest.mark.parametrize("kernel", [{"degree": 2}, {"gamma": 0.5}, {"coef0": 0.0}])
def test_kid_equals_torch_fidelity_for_any_kernel(kernel: dict[str, float]) -> None:
    generated, real = features(200, 1, 0.2), features(400)
    named = {f"kid_kernel_poly_{key}": number for key, number in kernel.items()}
    assert value("kid", generated, real, **kernel) == pytest.approx(kid_by_fidelity(generated, real, **named), rel=1e-6)


def test_kid_is_unbiased_so_it_may_be_negative_and_equals_torch_fidelity_there() -> None:
    real = features(400)
    values = [value("kid", features(200, seed), real) for seed in range(1, 9)]
    negative = [seed for seed, found in enumerate(values, 1) if found < 0]
    assert negative
    assert len(negative) < 8
    for seed in negative:
        assert values[seed - 1] == pytest.approx(kid_by_fidelity(features(200, seed), real), rel=1e-6)


def test_kid_takes_all_images_in_a_subset_up_to_a_thousand_where_no_size_is_given() -> None:
    generated, real = features(150, 1, 0.2), features(400)
    found = value("kid", generated, real, subset_size=None)
    assert found == pytest.approx(kid_by_fidelity(generated, real, 10, 150), rel=1e-6)
    assert value("kid", real, generated, subset_size=None) == pytest.approx(
        kid_by_fidelity(real, generated, 10, 150), rel=1e-6
    )
    many, more = features(1200, 1, 0.2), features(1300)
    found = value("kid", many, more, subset_size=None, subsets=2)
    assert found == pytest.approx(kid_by_fidelity(many, more, 2, 1000), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subset_size": 201}, "subset_size must be at most images, 200; got 201"),
        ({"subset_size": 1}, "subset_size: .*greater than or equal to 2; got 1"),
        ({"subsets": 0}, "subsets: .*greater than or equal to 1; got 0"),
        ({"gamma": 0}, "gamma: .*greater than 0"),
        ({"subset": 5}, "Did you mean 'subsets'"),
    ],
)
def test_a_table_of_kid_that_says_something_wrong_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        metric("kid", features(400), **settings)


def test_kid_refuses_a_reference_with_fewer_images_than_a_subset() -> None:
    with pytest.raises(UserError, match="subset_size must be at most 99, the images of the reference; got 100"):
        metric("kid", features(99))
    metric("kid", features(100))


def test_kid_refuses_a_file_of_statistics_before_the_first_trial(digits: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(UserError, match=r"stats\.npz holds statistics alone; this metric compares features"):
        objective(digits, "kid", reference=str(tmp_path / "stats.npz"))
    assert objective(digits, "fid", reference=str(tmp_path / "stats.npz"))
