"""Non-dominated sorting of what was measured, over plain lists of observations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.optimizer.dominance import best_of, front_of
from autodiffusion_opt.space import ModelInfo, Space
from autodiffusion_opt.study.config import build_optimizer, build_space
from autodiffusion_opt.trials.history import Observation, Observations, Past, dominates


def past_of(losses: list[tuple[float, ...]], excess: dict[int, float] | None = None) -> Past:
    """A candidate for each, at its position."""
    return Observations(
        Observation(position, Candidate.from_time_steps([position + 1]), values, (excess or {}).get(position, 0.0))
        for position, values in enumerate(losses)
    ).before(len(losses))


def positions(observations: list[Observation]) -> list[int]:
    return [observation.position for observation in observations]


def test_with_one_value_they_are_those_of_least_loss() -> None:
    past = past_of([(3.0,), (1.0,), (2.0,), (0.5,)])
    assert positions(best_of(past, 2, before=3)) == [1, 2]
    assert positions(front_of(past, before=4)) == [3]
    assert best_of(past_of([]), 2, before=0) == front_of(past_of([]), before=0) == []


@pytest.mark.parametrize("seed", range(5))
def test_fronts_are_those_of_the_definition(seed: int) -> None:
    losses = [tuple(map(float, row)) for row in np.random.default_rng(seed).integers(0, 9, (25, 2))]
    past = past_of(losses)
    left, wanted = set(range(25)), []
    while left:
        front = {index for index in left if not any(dominates(losses[rival], losses[index]) for rival in left)}
        wanted.append(front)
        left -= front
    assert set(positions(front_of(past, before=25))) == wanted[0]
    for count, front in zip(itertools.accumulate(map(len, wanted)), wanted, strict=True):
        best = positions(best_of(past, count, before=25))
        assert set(best[count - len(front) :]) == front


def test_of_a_front_that_does_not_fit_the_ends_stay_and_then_the_lonely() -> None:
    past = past_of([(0.0, 10.0), (1.0, 9.0), (1.5, 8.8), (6.0, 2.0), (10.0, 0.0)])
    # Distances of 1, 2, 3 in shares of both ranges: .15 + .12, .5 + .7, .85 + .88.
    assert set(positions(best_of(past, 2, before=5))) == {0, 4}
    assert positions(best_of(past, 3, before=5))[2] == 3
    assert positions(best_of(past, 4, before=5))[3] == 2


def test_what_keeps_to_its_bounds_comes_first_then_the_least_beyond() -> None:
    past = past_of([(5.0, 5.0), (0.0, 0.0), (9.0, 1.0), (1.0, 1.0)], excess={1: 0.5, 3: 0.2})
    assert set(positions(best_of(past, 2, before=4))) == {0, 2}
    assert positions(best_of(past, 4, before=4))[2:] == [3, 1]


def test_equal_losses_are_one_front() -> None:
    assert positions(front_of(past_of([(1.0, 1.0)] * 3), before=3)) == [0, 1, 2]
    assert len(best_of(past_of([(1.0, 1.0)] * 3), 2, before=3)) == 2


Losses = Callable[[Candidate], tuple[float, ...]]
SIZES = {"kind": "evolution", "population": 20, "parents": 8, "mutations": 10, "crossovers": 6}


def from_two_schedules(candidate: Candidate) -> tuple[float, ...]:
    apart = ((np.array(candidate.times) - [[900, 500, 100], [700, 300, 50]]) ** 2).sum(axis=1)
    return tuple(apart.tolist())


def of_quality_and_layer_runs(candidate: Candidate) -> tuple[float, ...]:
    """Σ gap² of the times, and what each removed layer costs, one more than another; and how many layers run."""
    gaps = np.diff([0.0, *candidate.times[::-1], 999.0]) / 999
    removed = [layer for layers in candidate.removed for layer in layers]
    return float((gaps**2).sum()) + 0.001 * sum(layer + 1 for layer in removed), 10.0 * len(candidate.steps) - len(
        removed
    )


def front_after(space: Space, table: dict[str, Any], losses: Losses, count: int) -> list[tuple[float, ...]]:
    """The losses of the front that an optimizer finds."""
    sampler: Any = build_optimizer(table, "here").sampler(space, 0)
    observations = Observations()
    for position in range(count):
        candidate = sampler.propose(observations.before(position), np.random.default_rng([0, position])).candidate
        space.check(candidate)
        observations.put(Observation(position, candidate, losses(candidate)))
    return [observation.losses or () for observation in front_of(observations.before(count), before=count)]


@pytest.mark.slow
@pytest.mark.parametrize("small_moves", [0.0, 1.0])
def test_evolution_gets_nearer_to_the_front_than_random_draws(small_moves: float) -> None:
    space = build_space({"kind": "time-steps", "steps": 3}, "here").space(ModelInfo(1000))
    random = front_after(space, {"kind": "random"}, from_two_schedules, 400)
    evolution = front_after(space, SIZES | {"small_moves": small_moves}, from_two_schedules, 400)
    assert share_behind(random, evolution) > 2 * share_behind(evolution, random)
    assert len(evolution) > 2 * len(random)


def test_evolution_finds_a_better_front_of_layer_sets_than_random_draws() -> None:
    """``layers = "any"``: quality against layer runs, which numbers alone cannot describe."""
    info = ModelInfo(1000, layers=10, removable=tuple(range(10)))
    space = build_space({"kind": "joint", "n_max": 40, "steps_min": 2, "layers": "any"}, "here").space(info)
    random = front_after(space, {"kind": "random"}, of_quality_and_layer_runs, 240)
    evolution = front_after(space, SIZES, of_quality_and_layer_runs, 240)
    assert share_behind(random, evolution) > 2 * share_behind(evolution, random)
    assert len({runs for _, runs in evolution}) > 5


def share_behind(front: list[tuple[float, ...]], ahead: list[tuple[float, ...]]) -> float:
    """The share of a front that another one dominates."""
    return sum(any(dominates(losses, behind) for losses in ahead) for behind in front) / len(front)
