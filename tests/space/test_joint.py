"""The joint space: budget, layer sets, repairs."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.config import build_kind
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import KINDS, Joint, ModelInfo
from autodiffusion_opt.space.model_info import third_of
from autodiffusion_opt.space.layer_choice import AnyLayers, RankedLayers

ROOT = Path(__file__).parents[2]
DOWN, UP = tuple(range(9, -1, -1)), tuple(range(10))
FACTS = ModelInfo(1000, layers=10, removable=UP, ranking=(UP, DOWN, (5, 4, 6, 3, 7, 2, 8, 1, 9, 0)))


def joint(info: ModelInfo = FACTS, **keys: Any) -> Joint:
    table = {"kind": "joint", "n_max": 40, "pipeline": {"model": "digits"}} | keys
    space = build_kind(KINDS, "space", table, "here").bind(info)
    assert isinstance(space, Joint)
    return space


def runs(candidate: Candidate) -> int:
    return sum(10 - len(layers) for layers in candidate.removed)


def test_parameters_are_the_longest_plan_whatever_the_number_of_steps() -> None:
    space = joint(steps_min=2, steps_max=4)
    assert list(space.distributions()) == ["steps", "t1", "t2", "t3", "t4", "r1", "r2", "r3", "r4"]
    tail = {"t3": 7, "t4": 900, "r3": 5, "r4": 5}
    point = {"steps": 2, "t1": 10, "t2": 500, "r1": 1, "r2": 0}
    assert space.decode(point | tail) == space.decode(point | dict.fromkeys(tail, 0))


def test_layers_go_along_with_their_time_when_times_are_sorted_and_repaired() -> None:
    space = joint(steps_max=3, layers="ranked")
    point = {"steps": 3, "t1": 100, "t2": 900, "t3": 900, "r1": 1, "r2": 2, "r3": 3}
    candidate = space.decode(point)
    assert candidate.times == (900, 899, 100)
    assert candidate.removed == ((0, 1), (0, 1, 2), (5,))


def test_the_budget_is_repaired_where_fewest_layers_are_removed() -> None:
    space = joint(n_max=24, steps_max=4, layers="ranked")
    point = {"steps": 3, "t1": 900, "t2": 500, "t3": 100, "r1": 0, "r2": 4, "r3": 0}
    assert [len(layers) for layers in space.decode(point).removed] == [1, 4, 1]
    point |= {"r2": 0}
    assert [len(layers) for layers in space.decode(point | {"r1": 1}).removed] == [2, 2, 2]
    space = joint(n_max=25, steps_max=4, layers="ranked")
    assert [len(layers) for layers in space.decode(point).removed] == [2, 2, 1]


def test_ranked_layers_are_the_first_of_the_third_of_their_time() -> None:
    space = joint(layers="ranked")
    point = space.encode(space.baselines()["leading"]) | {"steps": 3, "t1": 999, "t2": 500, "t3": 0}
    assert space.decode(point | {"r1": 2, "r2": 2, "r3": 2}).removed == ((0, 1), (8, 9), (4, 5))


def test_thirds_meet_where_they_should() -> None:
    assert [third_of(t, 0, 999) for t in (1200, 999, 667, 666, 334, 333, 0, -5)] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert third_of(3, 3, 3) == 0


def test_any_layers_are_spread_evenly_where_parameters_say_only_how_many() -> None:
    sets = AnyLayers(tuple(range(0, 20, 2)))
    assert sets.chosen(0, 1) == (10,)
    assert sets.chosen(0, 2) == (4, 14)
    assert all(len(set(sets.chosen(0, count))) == count for count in range(11))


def test_a_set_of_the_ranked_space_must_follow_the_ranking() -> None:
    candidate = Candidate.from_time_steps([900, 100], [(1,), ()])
    with pytest.raises(UserError, match=r"at time 900 .* must remove \[0\]; got \[1\]"):
        joint(layers="ranked").check(candidate)
    joint(layers="any").check(candidate)


@pytest.mark.parametrize(
    ("times", "removed", "message"),
    [
        ([5], [()], "2 to 4 steps; got 1"),
        ([5, 4, 3, 2, 1], [range(5)] * 5, "2 to 4 steps; got 5"),
        ([9, 5], [range(6), ()], "at most 5 of 10 layers; got 6 at time 9"),
        ([9, 5, 3], [(), (), (1,)], "n_max = 25 layers over all steps; got 29"),
        ([9, 5], [(), (10,)], r"only the layers .* may be removed; got \[10\]"),
        ([9.5, 5], [(), ()], "times must be integers"),
    ],
)
def test_a_candidate_of_another_space_is_refused(times: list[float], removed: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        joint(n_max=25, steps_min=2, steps_max=4).check(Candidate.from_time_steps(times, removed))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"n_max": 9, "steps_min": 2}, "n_max must be at least 10: steps_min = 2 steps"),
        ({"removable": [3, 12]}, r"removable must be indices from 0 to 9.*got \[12\]"),
        ({"removable": [0, 1], "n_max": 7}, "n_max must be at least 8"),
        ({"steps_min": 5, "steps_max": 4}, "steps_max must be at least steps_min, 5; got 4"),
        ({"steps_max": 1001, "n_max": 99999}, "steps_max must be at most 1000"),
        ({"layers": "rank"}, "Did you mean 'ranked'"),
        ({"max_removed": 1.5}, "max_removed"),
        ({"nmax": 3}, "Did you mean 'n_max'"),
    ],
)
def test_a_wrong_definition_names_its_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        joint(**keys)


def test_a_layer_whose_bypass_does_not_fit_may_not_be_named() -> None:
    info = ModelInfo(1000, layers=10, removable=(0, 1, 2))
    with pytest.raises(UserError, match=r"layers \[7\] cannot be bypassed"):
        joint(info, removable=[1, 7])
    assert joint(info).sets.removable == (0, 1, 2)


def test_ranked_without_a_ranking_is_refused() -> None:
    with pytest.raises(UserError, match="needs a ranking"):
        joint(ModelInfo(1000, layers=10, removable=UP), layers="ranked")


def test_steps_max_is_lowered_to_what_the_budget_allows() -> None:
    assert joint(n_max=40).steps_max == 8
    assert joint(n_max=40, steps_max=100).steps_max == 8
    assert joint(n_max=40, steps_max=6).steps_max == 6
    assert joint(n_max=40, max_removed=1.0).steps_max == 1000
    assert joint(n_max=40, max_removed=0.0).steps_max == 4


def test_baselines_spend_the_budget_on_whole_networks() -> None:
    for candidate in joint(n_max=45, steps_min=2).baselines().values():
        assert len(candidate.steps) == 4
        assert not any(candidate.removed)


def test_baselines_of_a_budget_below_the_fewest_whole_steps_remove_as_little_as_they_must() -> None:
    space = joint(n_max=17, steps_min=2)
    leading = space.baselines()["leading"]
    assert [len(layers) for layers in leading.removed] == [2, 1]
    assert space.with_layer_share(0.0).baselines()["leading"] == leading


def test_narrowed_to_nothing_runs_the_whole_network_at_every_step() -> None:
    rng = np.random.default_rng(0)
    narrow = joint(steps_min=2).with_layer_share(0.0)
    found = [narrow.random(rng) for _ in range(50)]
    found += [narrow.mutate(one, rng, 0.5) for one in found]
    assert not any(layers for candidate in found for layers in candidate.removed)
    assert {len(candidate.steps) for candidate in found} == {2, 3, 4}


@pytest.mark.parametrize("layers", ["any", "ranked"])
def test_a_layer_set_does_change_under_mutation(layers: str) -> None:
    space, rng = joint(layers=layers, n_max=60, steps_min=4, steps_max=4), np.random.default_rng(0)
    parent = space.random(rng)
    kept = [child for child in (space.mutate(parent, rng, 0.3) for _ in range(300)) if child.times == parent.times]
    numbers = {tuple(len(layers) for layers in child.removed) for child in kept}
    assert len(kept) > 20
    assert sum(child.removed != parent.removed for child in kept) > 0.5 * len(kept)
    assert len(numbers) > 5


def test_mutation_of_a_set_adds_drops_and_exchanges() -> None:
    sets, rng, before = AnyLayers(UP), np.random.default_rng(0), (1, 4, 8)
    children = [sets.changed(0, before, 5, rng) for _ in range(200)]
    assert before not in children
    assert {len(child) for child in children} == {0, 1, 2, 3, 4, 5}
    assert any(len(child) == 3 for child in children)
    assert all(list(child) == sorted(set(child)) for child in children)
    assert sets.changed(0, (), 0, rng) == ()


def test_mutation_of_a_number_goes_both_ways_and_stays_inside() -> None:
    sets, rng = RankedLayers((UP, UP, UP), 0, 999), np.random.default_rng(0)
    for before in range(6):
        numbers = {len(sets.changed(0, sets.chosen(0, before), 5, rng)) for _ in range(100)}
        assert before not in numbers
        assert numbers <= set(range(6))
        assert len(numbers) >= 3
    assert sets.changed(0, (), 0, rng) == ()


def test_mutation_changes_the_number_of_steps_and_keeps_the_budget() -> None:
    space, rng = joint(steps_min=3), np.random.default_rng(0)
    parent = space.baselines()["leading"]
    children = [space.mutate(parent, rng, 0.25) for _ in range(200)]
    assert {len(child.steps) for child in children} == {3, 4, 5}
    assert max(runs(child) for child in children) == 40


def test_a_new_step_removes_what_the_step_nearest_to_it_removes() -> None:
    space, rng = joint(n_max=100, steps_min=3), np.random.default_rng(0)
    parent = Candidate.from_time_steps([900, 500, 100], [(1, 2), (4,), (7, 8, 9)])
    children = [space.mutate(parent, rng, 0.05) for _ in range(1000)]
    longer = [child for child in children if set(child.steps) > set(parent.steps)]
    assert longer
    for child in longer:
        (new,) = set(child.steps) - set(parent.steps)
        assert new.removed == min(parent.steps, key=lambda step: abs(step.time - new.time)).removed


def test_a_step_keeps_its_layers_in_crossover() -> None:
    space, rng = joint(n_max=40, steps_min=2), np.random.default_rng(0)
    one = Candidate.from_time_steps([900, 700, 400, 100], [(1,), (2,), (3,), (4,)])
    other = Candidate.from_time_steps([950, 650, 350, 150], [(5,), (6,), (7,), (8,)])
    steps = {*one.steps, *other.steps}
    children = [space.crossover(one, other, rng) for _ in range(100)]
    assert all(set(child.steps) <= steps and len(child.steps) == 4 for child in children)
    assert len(set(children)) == 16


def test_children_of_parents_of_two_lengths_have_one_of_them() -> None:
    space, rng = joint(steps_min=2), np.random.default_rng(0)
    short = Candidate.from_time_steps([900, 100])
    long = Candidate.from_time_steps([950, 800, 600, 400, 300, 50], [range(4)] * 6)
    children = [space.crossover(short, long, rng) for _ in range(200)]
    assert {len(child.steps) for child in children} == {2, 6}
    assert all({*child.times} <= {*short.times, *long.times} for child in children)
    assert max(runs(child) for child in children) <= 40


def test_random_candidates_have_every_number_of_steps_and_of_layers() -> None:
    space, rng = joint(steps_min=2), np.random.default_rng(0)
    found = [space.random(rng) for _ in range(400)]
    assert {len(candidate.steps) for candidate in found} == set(range(2, 9))
    assert {len(layers) for candidate in found for layers in candidate.removed} == set(range(6))
    assert {layer for candidate in found for layers in candidate.removed for layer in layers} == set(UP)


def test_every_operation_on_the_paper_s_space_is_fast() -> None:
    """L = 58, N_max = 580: below 2 ms each, so that the search costs nothing beside the images."""
    space = joint(ModelInfo(1000, layers=58, removable=tuple(range(58))), n_max=580, steps_min=10, steps_max=10)
    rng, times = np.random.default_rng(0), []
    one, other = space.random(rng), space.random(rng)
    for _ in range(50):
        start = time.perf_counter()
        one, other = space.mutate(one, rng, 0.25), space.crossover(one, other, rng)
        space.decode(space.encode(space.random(rng)))
        times.append(time.perf_counter() - start)
    assert float(np.median(times)) < 5 * 2e-3


@pytest.mark.parametrize("name", ["digits-joint-any", "digits-joint-ranked"])
def test_the_catalogue_s_spaces_are_of_the_digits_model(name: str) -> None:
    table = tomllib.loads((ROOT / "spaces" / f"{name}.toml").read_text())
    orders = (tuple(range(18)),) * 3
    space = build_kind(KINDS, "space", table, name).bind(
        ModelInfo(1000, layers=18, removable=orders[0], ranking=orders)
    )
    assert space.steps_max == 8
    assert space.fully_parametric == name.endswith("ranked")
    assert [len(candidate.steps) for candidate in space.baselines().values()] == [4] * 4
