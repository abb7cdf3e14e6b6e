"""Dynamic programming finds the path that trying all paths finds; times are respaced in log-SNR."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from autodiffusion_opt import ModelInfo, UserError
from autodiffusion_opt.space.local_errors import LocalErrors


def random_errors(points: int, seed: int = 0) -> LocalErrors:
    rng = np.random.default_rng(seed)
    errors = rng.exponential(size=(points, points + 1))
    errors[np.tril_indices(points, 0, points + 1)] = np.inf
    return LocalErrors(np.linspace(999, 0, points).round(), rng.exponential(size=points), errors)


def total(given: LocalErrors, path: tuple[int, ...]) -> float:
    steps = sum(float(given.errors[i, j]) for i, j in pairwise((*path, len(given.times))))
    return float(given.start[path[0]]) + steps


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("seed", range(4))
def test_the_times_are_those_of_least_total_error_among_all_choices(steps: int, seed: int) -> None:
    given = random_errors(9, seed)
    best = min(combinations(range(9), steps), key=lambda path: total(given, path))
    assert given.best_times(steps) == tuple(float(given.times[point]) for point in best)


def test_the_first_time_is_free_at_the_price_of_beginning_there() -> None:
    errors = np.full((3, 4), 1.0)
    errors[np.tril_indices(3, 0, 4)] = np.inf
    times = np.array([900.0, 500.0, 100.0])
    assert LocalErrors(times, np.array([0.0, 5.0, 5.0]), errors).best_times(2)[0] == 900
    assert LocalErrors(times, np.array([5.0, 0.0, 5.0]), errors).best_times(2) == (500.0, 100.0)


@pytest.mark.parametrize("steps", [0, 10])
def test_more_steps_than_points_are_refused(steps: int) -> None:
    with pytest.raises(UserError, match=f"steps must be from 1 to 9, the points of the teacher's .*; got {steps}"):
        random_errors(9).best_times(steps)


SIGMAS = tuple(np.geomspace(0.01, 80, 1000).tolist())
MODELS = {"noise levels": ModelInfo(1000, sigmas=SIGMAS), "flow": ModelInfo(1000, lowest=1.0, highest=1000.0)}
every_model = pytest.mark.parametrize("info", MODELS.values(), ids=MODELS)


@every_model
def test_times_come_back_from_their_log_snr(info: ModelInfo) -> None:
    times = [990.0, 640.5, 333.0, 12.25, 2.0]
    assert info.times_of_log_snr(info.log_snr(times)) == pytest.approx(times, rel=1e-9)


def test_log_snr_is_that_of_the_noise_level_and_for_a_flow_of_its_line() -> None:
    assert MODELS["noise levels"].log_snr([0.0, 999.0]) == pytest.approx(-np.log([0.01, 80]))
    assert MODELS["flow"].log_snr([500.0, 250.0]) == pytest.approx([0, np.log(3)])  # α = 0.75, σ = 0.25
    assert np.isfinite(MODELS["flow"].log_snr([1000.0])).all()


@every_model
@pytest.mark.parametrize("steps", [1, 3, 4, 7, 12])
def test_respaced_times_have_the_number_and_fall(info: ModelInfo, steps: int) -> None:
    times = info.respaced((900.0, 500.0, 200.0, 50.0), steps)
    assert len(times) == steps
    assert list(times) == sorted(times, reverse=True)
    assert info.lowest <= times[-1] <= times[0] <= info.highest


@every_model
def test_evenly_spaced_times_stay_even_when_they_are_respaced(info: ModelInfo) -> None:
    """Twice as many of K even times in λ are even too, and reach half a gap of theirs further at each end."""
    four = info.times_of_log_snr(np.array([-1.5, -0.5, 0.5, 1.5]))
    assert info.log_snr(info.respaced(four, 8)) == pytest.approx(np.linspace(-1.75, 1.75, 8), abs=1e-9)
    assert info.log_snr(info.respaced(four, 2)) == pytest.approx([-1.0, 1.0], abs=1e-9)
    assert info.respaced(four, 4) == four
