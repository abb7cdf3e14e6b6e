"""Features that are a poor sample have a value all the same, or an error that says why not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from peers.feature_metrics import DIMENSIONS, KINDS, Array, features, kid_by_fidelity, metric, value

from autodiffusion_opt import UserError
from autodiffusion_opt.objective.metrics.kl import divergence
from autodiffusion_opt.objective.statistics import Gaussian

POOR: dict[str, Callable[[Array], Array]] = {
    "the same for all images": lambda given: np.full_like(given, 2.5),
    "always 0": np.zeros_like,
    "two images, repeated": lambda given: given[np.arange(len(given)) % 2],
    "of rank 1": lambda given: np.outer(given[:, 0], np.arange(1, DIMENSIONS + 1)).astype(np.float32),
    "tiny": lambda given: given * np.float32(1e-30),
    "huge": lambda given: given * np.float32(1e30),
    "some always 0": lambda given: given * (np.arange(DIMENSIONS) > 3).astype(np.float32),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poor", POOR)
def test_poor_features_of_a_candidate_have_a_finite_value(kind: str, poor: str) -> None:
    found = value(kind, POOR[poor](features(200, 1)), features(400))
    assert np.isfinite(found)
    if kind == "kid" and poor != "huge":  # unbiased, so it may be below 0
        expected = kid_by_fidelity(POOR[poor](features(200, 1)), features(400))
        assert found == pytest.approx(expected, rel=1e-6)
    else:
        assert found > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poor", POOR)
def test_poor_features_of_a_reference_give_a_finite_value_or_are_refused(kind: str, poor: str) -> None:
    if kind == "kl" and poor in ("the same for all images", "always 0"):
        with pytest.raises(UserError, match="the features of its images must differ; they are the same for all"):
            metric(kind, POOR[poor](features(400)))
        return
    assert np.isfinite(value(kind, features(200, 1), POOR[poor](features(400))))


@pytest.mark.parametrize("kind", ["fid", "rfid"])
def test_the_distance_from_features_that_never_change_is_that_of_one_point(kind: str) -> None:
    real, point = features(400), POOR["the same for all images"](features(200, 1))
    wide = real.astype(np.float64)
    expected = ((wide.mean(0) - 2.5) ** 2).sum() + wide.var(0, ddof=1).sum()
    assert value(kind, point, real) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("kind", "least"), [("fid", 2), ("kid", 2), ("kl", 13), ("rfid", 18), ("paired", 2)])
def test_too_few_images_are_refused_with_the_least_number(kind: str, least: int) -> None:
    more = {"subset_size": None} if kind == "kid" else {}
    with pytest.raises(UserError, match=f"images.* (at least|than or equal to) {least}.*; got {least - 1}"):
        metric(kind, features(400), images=least - 1, **more)
    assert np.isfinite(value(kind, features(least, 1), features(400), images=least, **more))


def test_kid_refuses_a_reference_of_one_image() -> None:
    with pytest.raises(UserError, match="reference: it must have at least 2 images, for pairs of them; got 1"):
        metric("kid", features(1), subset_size=None)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["kid", "rfid", "paired"])
def test_a_reference_whose_features_are_not_finite_is_refused(kind: str, wrong: float) -> None:
    """That of a reference's statistics, for the others, is checked where they are computed."""
    real = features(400)
    real[17, 3] = wrong
    with pytest.raises(UserError, match=r"the features of .* images must be finite numbers; some are not"):
        metric(kind, real)


def test_rounding_that_outweighs_a_covariance_gives_kl_no_value() -> None:
    """A variance below 0 is what is left of one where features are large and hardly differ."""
    sound, broken = Gaussian(np.zeros(2), np.eye(2)), Gaussian(np.zeros(2), np.diag([1.0, -0.5]))
    assert divergence(sound, sound) == pytest.approx(0, abs=1e-12)
    assert math.isnan(divergence(broken, sound))
    assert math.isnan(divergence(sound, broken))
