"""What evolution does in a joint space: draws, mutations, crossovers, each with its chances and the budget."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter

import numpy as np
import pytest
from marks import slow_but
from space.examples import TEN, UP, joint

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.space import Joint, ModelInfo, cost

HEUN, PLMS = dataclasses.replace(TEN, layout="heun"), dataclasses.replace(TEN, layout="plms")


def runs(candidate: Candidate) -> int:
    return sum(10 - len(removed) for removed in candidate.removed)


def lengths(candidates: list[Candidate]) -> Counter[int]:
    return Counter(len(candidate.steps) for candidate in candidates)


def test_random_candidates_have_every_number_of_steps_equally_often_and_every_number_of_layers() -> None:
    space, rng = joint(steps_min=2), np.random.default_rng(0)
    drawn = [space.random(rng) for _ in range(2800)]
    numbers = lengths(drawn)
    assert set(numbers) == set(range(2, 9))
    assert min(numbers.values()) > 320  # 400 each, deviation 19
    assert {len(removed) for candidate in drawn for removed in candidate.removed} == set(range(6))
    assert {layer for candidate in drawn for removed in candidate.removed for layer in removed} == set(UP)


def test_random_candidates_remove_little_and_much() -> None:
    space, rng = joint(n_max=1000, steps_min=6, steps_max=6), np.random.default_rng(0)
    most = Counter(max(len(removed) for removed in space.random(rng).removed) for _ in range(3000))
    # The greatest number r is uniform in 0 .. 5; of 6 draws in 0 .. r one is r with chance 1 - (r / (r + 1))⁶.
    expected_none = (1 + sum((1 / (r + 1)) ** 6 for r in range(1, 6))) / 6
    assert abs(most[0] / 3000 - expected_none) < 0.025
    assert abs(most[5] / 3000 - (1 - (5 / 6) ** 6) / 6) < 0.025


def test_random_candidates_spend_the_whole_budget_where_they_must_remove_layers() -> None:
    space, rng = joint(n_max=33, steps_min=4, steps_max=4), np.random.default_rng(0)
    drawn = [space.random(rng) for _ in range(400)]
    assert max(map(runs, drawn)) == 33
    # Seven of forty layers must go; at each step they are equally likely.
    tight = [candidate for candidate in drawn if runs(candidate) == 33]
    means = np.mean([[len(removed) for removed in candidate.removed] for candidate in tight], axis=0)
    np.testing.assert_allclose(means, 7 / 4, atol=0.35)


@pytest.mark.parametrize("info", slow_but([TEN, HEUN, PLMS], HEUN))
@pytest.mark.parametrize("layers", ["any", "ranked"])
@pytest.mark.parametrize("operation", ["random", "mutate", "crossover"])
def test_the_budget_is_reached_and_never_exceeded(operation: str, layers: str, info: ModelInfo) -> None:
    space, rng = joint(info, n_max=37, steps_min=2, layers=layers), np.random.default_rng(0)
    reached = []
    for _ in range(600):
        first, second = space.random(rng), space.random(rng)
        if operation == "mutate":
            first = space.mutate(first, rng, 0.3)
        if operation == "crossover":
            first = space.crossover(first, second, rng)
        reached.append(cost.layer_runs(info, first))
    assert max(reached) == 37


def test_each_steps_time_and_layers_change_with_their_probability() -> None:
    space = joint(n_max=100, steps_min=4, steps_max=4)
    rng, probability, turns = np.random.default_rng(0), 0.2, 2000
    parent = Candidate.from_time_steps([900, 700, 400, 100], [(1, 2), (3, 4), (5, 6), (7, 8)])
    times = layers = 0
    for _ in range(turns):
        child = space.mutate(parent, rng, probability)
        times += len(set(child.times) - set(parent.times))
        kept = dict(zip(parent.times, parent.removed, strict=True))
        layers += sum(kept[step.time] != step.removed for step in child.steps if step.time in kept)
    assert abs(times / (4 * turns) - 0.2) < 0.02
    assert abs(layers / (4 * turns) - 0.8 * 0.2) < 0.02


@pytest.mark.parametrize("probability", [0.05, 0.2])
def test_the_number_of_steps_changes_twice_as_often_as_each_step_up_and_down_alike(probability: float) -> None:
    space, rng, turns = joint(n_max=100, steps_min=2, steps_max=8), np.random.default_rng(0), 3000
    parent = Candidate.from_time_steps([900, 700, 400, 100])
    numbers = lengths([space.mutate(parent, rng, probability) for _ in range(turns)])
    assert set(numbers) == {3, 4, 5}
    assert abs(numbers[3] / turns - probability) < 0.02
    assert abs(numbers[5] / turns - probability) < 0.02


def test_the_number_of_steps_stays_within_its_ends() -> None:
    space, rng = joint(n_max=100, steps_min=3, steps_max=4), np.random.default_rng(0)
    parents = Candidate.from_time_steps([900, 500, 100]), Candidate.from_time_steps([900, 700, 300, 100])
    for parent in parents:
        assert set(lengths([space.mutate(parent, rng, 0.4) for _ in range(100)])) == {3, 4}


def test_a_new_step_removes_what_the_step_nearest_to_it_removes() -> None:
    space, rng = joint(n_max=100, steps_min=3), np.random.default_rng(0)
    parent = Candidate.from_time_steps([900, 500, 100], [(1, 2), (4,), (7, 8, 9)])
    children = [space.mutate(parent, rng, 0.05) for _ in range(1000)]
    longer = [child for child in children if set(child.steps) > set(parent.steps)]
    assert len(longer) > 20
    for child in longer:
        (new,) = set(child.steps) - set(parent.steps)
        assert new.removed == min(parent.steps, key=lambda step: abs(step.time - new.time)).removed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("info", "n_max", "reached"),
    # Three steps run 15 layers in 3 calls, or 25 in 5; a layer given back at the last step of Heun is a single run.
    [(TEN, 20, set(range(15, 21))), (HEUN, 35, set(range(25, 36)))],
)
def test_a_deleted_steps_layer_runs_are_given_back_in_part_or_in_full(
    info: ModelInfo, n_max: int, reached: set[int]
) -> None:
    space, rng = joint(info, n_max=n_max, steps_min=3, steps_max=4), np.random.default_rng(0)
    parent = Candidate.from_time_steps([900, 700, 400, 100], [(0, 1, 2, 3, 4)] * 4)
    children = [space.mutate(parent, rng, 0.02) for _ in range(12_000)]
    # Those in which nothing changed but that a step is gone and layers run again.
    shorter = [child for child in children if len(child.steps) == 3 and set(child.times) < set(parent.times)]
    shorter = [child for child in shorter if all(set(removed) <= set(range(5)) for removed in child.removed)]
    numbers = Counter(cost.layer_runs(info, child) for child in shorter)
    assert set(numbers) == reached
    # The number of layers is uniform in 0 .. 5, which the budget allows wherever they are; each is 1 run, or 5/3 runs.
    mean = min(reached) + 2.5 * sum(cost.calls(info.layout, 3)) / 3
    assert abs(np.mean([cost.layer_runs(info, child) for child in shorter]) - mean) < 0.6
    assert set(parent.times) == {time for child in shorter for time in child.times}


def test_a_step_keeps_its_layers_in_crossover() -> None:
    space, rng = joint(n_max=40, steps_min=2), np.random.default_rng(0)
    first = Candidate.from_time_steps([900, 700, 400, 100], [(1,), (2,), (3,), (4,)])
    second = Candidate.from_time_steps([950, 650, 350, 150], [(5,), (6,), (7,), (8,)])
    children = Counter(space.crossover(first, second, rng) for _ in range(1600))
    assert all(set(child.steps) <= {*first.steps, *second.steps} for child in children)
    assert len(children) == 16
    assert min(children.values()) > 60  # 100 each, deviation 10


def test_children_have_the_length_of_either_parent_equally_often() -> None:
    space, rng = joint(n_max=100, steps_min=2), np.random.default_rng(0)
    short, long = Candidate.from_time_steps([900, 100]), Candidate.from_time_steps([950, 800, 600, 400, 300, 50])
    numbers = lengths([space.crossover(short, long, rng) for _ in range(1000)])
    assert set(numbers) == {2, 6}
    assert abs(numbers[2] - 500) < 60


def test_steps_of_a_shorter_parent_are_spread_evenly_over_the_positions() -> None:
    space, rng = joint(n_max=100, steps_min=2), np.random.default_rng(0)
    short = Candidate.from_time_steps([999, 500, 1])
    long = Candidate.from_time_steps([990, 800, 700, 505, 300, 200, 10])
    children = [space.crossover(short, long, rng) for _ in range(300)]
    # Positions 0, 3 and 6 of seven have a step of each parent.
    pairs = [(999, 990), (500, 505), (1, 10)]
    assert {child.times for child in children if len(child.steps) == 3} == {
        (a, b, c) for a in pairs[0] for b in pairs[1] for c in pairs[2]
    }
    for child in children:
        if len(child.steps) == 7:
            assert {800, 700, 300, 200} < set(child.times)
            assert all(len({*pair}.intersection(child.times)) == 1 for pair in pairs)


def test_a_parent_of_a_single_step_has_it_in_the_middle() -> None:
    space, rng = joint(n_max=100), np.random.default_rng(0)
    single, long = Candidate.from_time_steps([555]), Candidate.from_time_steps([900, 500, 100])
    children = {space.crossover(single, long, rng).times for _ in range(100)}
    assert children == {(555,), (500,), (900, 555, 100), (900, 500, 100)}


def test_parents_of_too_many_steps_have_children_of_the_most_that_are_allowed() -> None:
    space, rng = joint(n_max=100, steps_min=2, steps_max=3), np.random.default_rng(0)
    long = Candidate.from_time_steps([900, 700, 500, 300, 100], [(1,), (2,), (3,), (4,), (5,)])
    children = [space.mutate(long, rng, 1e-9) for _ in range(200)]
    assert set(lengths(children)) == {3}
    assert {step for child in children for step in child.steps} == set(long.steps)
    assert set(space.crossover(long, long, rng).steps) == {long.steps[0], long.steps[2], long.steps[4]}


def test_parents_of_too_few_steps_have_children_with_whole_steps_added() -> None:
    space, rng = joint(n_max=100, steps_min=3, steps_max=4), np.random.default_rng(0)
    single = Candidate.from_time_steps([500], [(1, 2)])
    children = [space.mutate(single, rng, 1e-9) for _ in range(50)]
    assert set(lengths(children)) == {3}
    for child in children:
        assert set(child.steps) > set(single.steps)
        assert all(not step.removed for step in child.steps if step.time != 500)


def test_parents_that_remove_too_many_or_fixed_layers_have_children_that_do_not() -> None:
    space, rng = joint(n_max=100, removable=[0, 1, 2, 3], max_removed_share=0.2), np.random.default_rng(0)
    parent = Candidate.from_time_steps([900, 100], [(0, 1, 2, 3), (3, 9)])
    for _ in range(50):
        child = space.mutate(parent, rng, 1e-9)
        assert len(child.removed[0]) == 2
        assert child.removed[1] == (3,)


def test_no_layer_is_removed_in_a_space_with_no_share_of_them() -> None:
    rng = np.random.default_rng(0)
    whole = joint(steps_min=2).with_layer_share(0.0)
    drawn = [whole.random(rng) for _ in range(50)]
    drawn += [whole.mutate(candidate, rng, 0.5) for candidate in drawn]
    assert not any(removed for candidate in drawn for removed in candidate.removed)
    assert set(lengths(drawn)) == {2, 3, 4}


@pytest.mark.parametrize("layers", ["any", "ranked"])
def test_layers_change_under_mutation(layers: str) -> None:
    space, rng = joint(layers=layers, n_max=60, steps_min=4, steps_max=4), np.random.default_rng(0)
    parent = space.random(rng)
    kept = [child for child in (space.mutate(parent, rng, 0.3) for _ in range(300)) if child.times == parent.times]
    numbers = {tuple(len(removed) for removed in child.removed) for child in kept}
    assert len(kept) > 20
    assert sum(child.removed != parent.removed for child in kept) > 0.5 * len(kept)
    assert len(numbers) > 5


def test_every_operation_on_the_papers_space_is_fast() -> None:
    """L = 58, N_max = 580: below 2 ms each, so that the search costs nothing beside the images."""
    space: Joint = joint(ModelInfo(1000, layers=58, removable=tuple(range(58))), n_max=580, steps_min=10, steps_max=10)
    rng, times = np.random.default_rng(0), []
    first, second = space.random(rng), space.random(rng)
    for _ in range(50):
        start = time.perf_counter()
        first, second = space.mutate(first, rng, 0.25), space.crossover(first, second, rng)
        space.decode(space.encode(space.random(rng)))
        times.append(time.perf_counter() - start)
    assert float(np.median(times)) < 5 * 2e-3
