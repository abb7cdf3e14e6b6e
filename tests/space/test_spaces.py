"""What holds for every space: add one to SPACES, and it is tested."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import IntDistribution

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.config import build_kind
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import KINDS, ModelInfo, Space

BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHA_BARS = np.cumprod(1 - BETAS)
SIGMAS = tuple(float(s) for s in np.sqrt((1 - ALPHA_BARS) / ALPHA_BARS))
LAYERS = 18
_orders = np.random.default_rng(0)
RANKING = tuple(tuple(int(i) for i in _orders.permutation(LAYERS)) for _ in range(3))
FACTS = ModelInfo(1000, continuous=True, sigmas=SIGMAS, layers=LAYERS, removable=tuple(range(LAYERS)), ranking=RANKING)
FEW_TIMES = ModelInfo(5, highest=4.0, layers=4, removable=(0, 2, 3), ranking=((3, 0, 2), (0, 2, 3), (2, 3, 0)))

TABLES: dict[str, tuple[dict[str, Any], ModelInfo]] = {
    "one step": ({"kind": "time-steps", "steps": 1}, FACTS),
    "integer": ({"kind": "time-steps", "steps": 4}, FACTS),
    "every time": ({"kind": "time-steps", "steps": 5}, FEW_TIMES),
    "continuous": ({"kind": "time-steps", "steps": 6, "times": "continuous"}, FACTS),
    "guidance": ({"kind": "time-steps", "steps": 3, "guidance_scale": [1.0, 7.5]}, FACTS),
    "any": ({"kind": "joint", "n_max": 72, "steps_min": 2, "steps_max": 10}, FACTS),
    "any, tight": ({"kind": "joint", "n_max": 36, "steps_min": 4, "steps_max": 9}, FACTS),
    "any, few times": ({"kind": "joint", "n_max": 11}, FEW_TIMES),
    "any, all may go": ({"kind": "joint", "n_max": 40, "max_removed": 1.0, "steps_max": 6}, FACTS),
    "ranked": ({"kind": "joint", "n_max": 72, "steps_min": 2, "layers": "ranked"}, FACTS),
    "ranked, some": (
        {"kind": "joint", "n_max": 60, "layers": "ranked", "removable": [1, 5, 9, 17], "times": "continuous"},
        FACTS,
    ),
    "ranked, guidance": ({"kind": "joint", "n_max": 50, "layers": "ranked", "guidance_scale": [0.0, 3.0]}, FACTS),
    "ranked, few times": ({"kind": "joint", "n_max": 9, "layers": "ranked", "max_removed": 0.75}, FEW_TIMES),
}


def make(name: str) -> Space:
    table, info = TABLES[name]
    return build_kind(KINDS, "space", table | {"pipeline": {"model": "digits"}}, "here").bind(info)


SPACES = {name: make(name) for name in TABLES}
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
some = settings(max_examples=40, derandomize=True, deadline=None, database=None)


def points(space: Space) -> st.SearchStrategy[dict[str, Any]]:
    """Any point of the box."""

    def values(box: Any) -> st.SearchStrategy[Any]:
        if isinstance(box, IntDistribution):
            return st.integers(box.low, box.high)
        return st.floats(box.low, box.high)

    return st.fixed_dictionaries({name: values(box) for name, box in space.distributions().items()})


def inside(space: Space, parameters: dict[str, Any]) -> bool:
    boxes = space.distributions()
    return list(parameters) == list(boxes) and all(
        box._contains(box.to_internal_repr(parameters[name])) for name, box in boxes.items()
    )


@every_space
@some
@given(data=st.data())
def test_every_point_decodes_to_a_valid_candidate(space: Space, data: st.DataObject) -> None:
    candidate = space.decode(data.draw(points(space)))
    space.check(candidate)
    assert Candidate.from_json(candidate.to_json()) == candidate


@every_space
@some
@given(data=st.data())
def test_a_candidate_comes_back_from_its_parameters(space: Space, data: st.DataObject) -> None:
    candidate = space.decode(data.draw(points(space)))
    parameters = space.encode(candidate)
    assert inside(space, parameters)
    assert space.decode(parameters) == candidate


@every_space
@some
@given(seed=st.integers(0, 2**32))
def test_what_is_drawn_is_valid_and_encodes_into_the_box(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = space.random(rng), space.random(rng)
    for candidate in (one, space.mutate(one, rng, 0.5), space.crossover(one, other, rng)):
        space.check(candidate)
        parameters = space.encode(candidate)
        assert inside(space, parameters)
        again = space.decode(parameters)
        assert (again.times, again.guidance_scale) == (candidate.times, candidate.guidance_scale)
        assert [len(layers) for layers in again.removed] == [len(layers) for layers in candidate.removed]
        assert again == candidate or not space.fully_parametric


@every_space
def test_ten_thousand_mutations_and_crossovers_keep_every_constraint(space: Space) -> None:
    rng = np.random.default_rng(0)
    family = [space.random(rng) for _ in range(10)]
    for turn in range(10_000):
        one, other = family[int(rng.integers(10))], family[int(rng.integers(10))]
        child = space.mutate(one, rng, 0.25) if turn % 2 else space.crossover(one, other, rng)
        space.check(child)
        family[int(rng.integers(10))] = child


@every_space
def test_chance_comes_from_the_generator_alone(space: Space) -> None:
    def line() -> list[Candidate]:
        rng = np.random.default_rng(7)
        found = [space.random(rng), space.random(rng)]
        for _ in range(5):
            found += [space.mutate(found[-1], rng, 0.4), space.crossover(found[-1], found[-2], rng)]
        return found

    assert line() == line()


@every_space
def test_baselines_are_valid_and_leading_is_first(space: Space) -> None:
    found = space.baselines()
    assert next(iter(found)) == "leading"
    for candidate in found.values():
        space.check(candidate)
        assert space.decode(space.encode(candidate)) == candidate or not space.fully_parametric


@every_space
def test_a_narrowed_space_is_part_of_the_space_and_has_its_baselines(space: Space) -> None:
    rng = np.random.default_rng(1)
    assert space.with_layer_share(1.0) == space
    for share in (0.0, 0.3, 0.5, 0.9):
        narrow = space.with_layer_share(share)
        assert narrow.baselines() == space.baselines()
        for candidate in narrow.baselines().values():
            narrow.check(candidate)
        for _ in range(20):
            space.check(narrow.random(rng))


@every_space
def test_parents_of_a_wider_space_have_valid_children(space: Space) -> None:
    rng = np.random.default_rng(2)
    for share in (0.0, 0.4):
        narrow = space.with_layer_share(share)
        for _ in range(30):
            one, other = space.random(rng), space.random(rng)
            narrow.check(narrow.mutate(one, rng, 0.2))
            narrow.check(narrow.crossover(one, other, rng))


@every_space
def test_without_chance_of_mutation_nothing_changes(space: Space) -> None:
    rng = np.random.default_rng(3)
    candidate = space.random(rng)
    assert space.mutate(candidate, rng, 0.0) == candidate


@every_space
def test_a_candidate_crossed_with_itself_is_itself(space: Space) -> None:
    rng = np.random.default_rng(4)
    candidate = space.random(rng)
    assert space.crossover(candidate, candidate, rng) == candidate


@every_space
@pytest.mark.parametrize(
    "wrong", ["[1000000]", '[{"time": 3, "compute": "partial"}]', '[{"time": 3, "removed": [99]}]']
)
def test_what_is_not_of_the_space_is_refused(space: Space, wrong: str) -> None:
    steps = list(space.baselines()["leading"].steps)
    steps[-1] = Candidate.from_json(wrong).steps[0]
    with pytest.raises(UserError):
        space.encode(Candidate(tuple(steps)))


def test_ends_of_the_grid_that_are_no_round_numbers_stay_inside_the_distribution() -> None:
    info = ModelInfo(1000, lowest=0.12345678, highest=998.7699, continuous=True)
    table = {"kind": "time-steps", "steps": 2, "times": "continuous", "pipeline": {"model": "digits"}}
    space = build_kind(KINDS, "space", table, "here").bind(info)
    candidate = space.decode({"t1": 998.7699, "t2": 0.12345678})
    assert info.highest >= candidate.times[0]
    assert inside(space, space.encode(candidate))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "time-step", "steps": 4}, "Did you mean 'time-steps'"),
        ({"kind": "time-steps", "steps": 0}, "steps"),
        ({"kind": "time-steps", "step": 4}, "key step"),
        ({"kind": "time-steps", "steps": 1001}, "at most 1000"),
        ({"kind": "time-steps", "steps": 4, "guidance_scale": [3, 1]}, "low < high"),
    ],
)
def test_a_wrong_definition_says_what_is_wrong(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_kind(KINDS, "space", table | {"pipeline": {"model": "digits"}}, "here").bind(FACTS)
