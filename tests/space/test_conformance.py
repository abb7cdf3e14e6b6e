"""What holds for every space. Add a kind to SPACES and its tables to TABLES, and it is tested."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import IntDistribution
from space.examples import BRANCHED, COUNTED, DIGITS, FEW_TIMES, build_space, joint

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.config import build, kind_in
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import (
    SPACES,
    UNIFORM,
    Caching,
    EngineSettings,
    Evolvable,
    Joint,
    Layered,
    ModelInfo,
    Segments,
    Space,
    cost,
)

HEUN = ModelInfo(1000, layout="heun", layers=6, removable=(0, 1, 2, 4))
PLMS = ModelInfo(1000, layout="plms", layers=6, removable=(0, 1, 2, 4), ranking=((0, 1, 2, 4),) * 3)
BRANCHED_HEUN = dataclasses.replace(BRANCHED, layout="heun")

TABLES: dict[str, tuple[dict[str, Any], ModelInfo]] = {
    "one step": ({"kind": "time-steps", "steps": 1}, DIGITS),
    "integer": ({"kind": "time-steps", "steps": 4}, DIGITS),
    "nfe": ({"kind": "time-steps", "nfe": 9}, HEUN),
    "every time": ({"kind": "time-steps", "steps": 5}, FEW_TIMES),
    "continuous": ({"kind": "time-steps", "steps": 6, "times": "continuous"}, DIGITS),
    "guidance": ({"kind": "time-steps", "steps": 3, "guidance_scale": [1.0, 7.5]}, DIGITS),
    "end": ({"kind": "time-steps", "steps": 3, "end_time": [2.0, 40.0], "times": "continuous"}, DIGITS),
    "any, end": ({"kind": "joint", "n_max": 72, "end_time": 3, "guidance_scale": 2.0}, DIGITS),
    "ranked, end": ({"kind": "joint", "n_max": 60, "layers": "ranked", "end_time": [0.0, 2.0]}, FEW_TIMES),
    "any": ({"kind": "joint", "n_max": 72, "steps_min": 2, "steps_max": 10}, DIGITS),
    "any, tight": ({"kind": "joint", "n_max": 36, "steps_min": 4, "steps_max": 9}, DIGITS),
    "any, few times": ({"kind": "joint", "n_max": 11}, FEW_TIMES),
    "any, all may go": ({"kind": "joint", "n_max": 40, "max_removed_share": 1.0, "steps_max": 6}, DIGITS),
    "any, heun": ({"kind": "joint", "n_max": 31, "steps_min": 2}, HEUN),
    "ranked": ({"kind": "joint", "n_max": 72, "steps_min": 2, "layers": "ranked"}, DIGITS),
    "ranked, some": (
        {"kind": "joint", "n_max": 60, "layers": "ranked", "removable": [1, 5, 9, 17], "times": "continuous"},
        DIGITS,
    ),
    "ranked, guidance": ({"kind": "joint", "n_max": 50, "layers": "ranked", "guidance_scale": [0.0, 3.0]}, DIGITS),
    "ranked, few times": ({"kind": "joint", "n_max": 9, "layers": "ranked", "max_removed_share": 0.75}, FEW_TIMES),
    "any, flops": ({"kind": "joint", "max_flops": 3.0, "steps_min": 2, "steps_max": 7}, COUNTED),
    "any, tight flops": ({"kind": "joint", "n_max": 60, "max_flops": 1.7, "steps_min": 4}, COUNTED),
    "ranked, flops": ({"kind": "joint", "max_flops": 3.2, "n_max": 50, "steps_min": 2, "layers": "ranked"}, COUNTED),
    "segments": ({"kind": "segments", "steps": 20, "segments": 5}, BRANCHED),
    "segments, flops": (
        {"kind": "segments", "steps": 23, "segments": 4, "max_flops": 4.7, "spacing": "log-snr"},
        BRANCHED,
    ),
    "segments, some": (
        {"kind": "segments", "steps": 17, "segments": [2, 6], "interval_min": 0, "branches": [0, 2], "max_flops": 3.5},
        BRANCHED,
    ),
    "segments, uniform": ({"kind": "segments", "steps": 11, "segments": [2, 4], "uniform": True}, BRANCHED),
    "segments, uniform, flops": (
        {"kind": "segments", "steps": 20, "segments": 5, "uniform": True, "max_flops": 6.2},
        BRANCHED,
    ),
    "segments, nfe": (
        {"kind": "segments", "schedule": [990, 700, 500, 300, 200, 90, 40], "segments": 3, "nfe": 8},
        BRANCHED_HEUN,
    ),
    "segments, guidance": (
        {"kind": "segments", "steps": 9, "segments": 9, "guidance_scale": [1.0, 4.0], "interval_min": 0},
        BRANCHED,
    ),
    "engine, numbers": (
        {"kind": "engine", "engine": "taylorseer-cache", "steps": [4, 9], "settings": {"order": 1}},
        DIGITS,
    ),
    "engine, mask": (
        {"kind": "engine", "engine": "mag-cache", "steps": 6, "spacing": "trailing", "guidance_scale": [1.0, 4.0]},
        DIGITS,
    ),
    "engine, both": ({"kind": "engine", "engine": "cache-dit-mask", "steps": [2, 7]}, DIGITS),
    "engine, threshold": (
        {"kind": "engine", "engine": "first-block-cache", "steps": 4, "settings": {"threshold": [0.02, 0.5]}},
        DIGITS,
    ),
    "engine, data": (
        {"kind": "engine", "engine": "cache-dit", "steps": [3, 5], "end_time": [0.0, 5.0], "times": "continuous"},
        DIGITS,
    ),
    "cached": ({"kind": "cached-steps", "max_flops": 4.3, "steps_min": 2, "steps_max": 9}, BRANCHED),
    "cached, heun": ({"kind": "cached-steps", "max_flops": 6.0, "branches": [0, 2], "steps_max": 8}, BRANCHED_HEUN),
    "cached, tight": (
        {"kind": "cached-steps", "max_flops": 1.5, "steps_min": 5, "end_time": [0.0, 5.0], "times": "continuous"},
        BRANCHED,
    ),
    "cached, any": (
        {"kind": "cached-steps", "max_flops": 4.3, "steps_min": 2, "steps_max": 7, "layers": "any"},
        BRANCHED,
    ),
    "cached, ranked": (
        {"kind": "cached-steps", "max_flops": 3.2, "layers": "ranked", "max_removed_share": 0.3, "steps_max": 12},
        BRANCHED,
    ),
    "ranked, plms": ({"kind": "joint", "n_max": 20, "layers": "ranked"}, PLMS),
}
EXAMPLES = {name: build_space(info, **table) for name, (table, info) in TABLES.items()}
every_space = pytest.mark.parametrize("space", EXAMPLES.values(), ids=EXAMPLES)
# For tests that take seconds a space: one of each kind in the default run, the others with -m slow.
QUICK = ("one step", "end", "any, heun", "any, tight", "ranked, end", "ranked, flops")
every_space_slowly = pytest.mark.parametrize(
    "space",
    [pytest.param(space, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, space in EXAMPLES.items()],
)
some = settings(max_examples=30, derandomize=True, deadline=None, database=None)


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


def test_every_kind_is_tested_and_can_evolve() -> None:
    assert {table["kind"] for table, _ in TABLES.values()} == set(SPACES)
    assert all(isinstance(space, Evolvable) and isinstance(space, Space) for space in EXAMPLES.values())


def test_an_unknown_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'time-steps'"):
        kind_in({"kind": "time-step", "steps": 4}, SPACES, "here")


@pytest.mark.parametrize("name", SPACES)
def test_a_tables_kind_is_its_name_and_a_space_names_no_model(name: str) -> None:
    table = next(table for table, _ in TABLES.values() if table["kind"] == name)
    assert build(SPACES[name], table, "here").kind == name
    with pytest.raises(UserError, match="key pipeline is unknown"):
        build(SPACES[name], table | {"pipeline": {"model": "digits"}}, "here")


@every_space
@some
@given(data=st.data())
def test_every_point_decodes_to_a_candidate_in_the_space_that_encodes_back(space: Space, data: st.DataObject) -> None:
    candidate = space.decode(data.draw(points(space)))
    space.check(candidate)
    parameters = space.encode(candidate)
    assert inside(space, parameters)
    assert space.decode(parameters) == candidate


@pytest.mark.parametrize("name", EXAMPLES)
@some
@given(data=st.data())
def test_a_candidate_does_not_depend_on_the_parameters_that_its_kind_calls_ignored(
    name: str, data: st.DataObject
) -> None:
    space, kind = EXAMPLES[name], SPACES[TABLES[name][0]["kind"]]
    parameters, others = data.draw(points(space)), data.draw(points(space))
    ignored = kind.ignored(parameters)
    assert ignored <= set(parameters)
    assert space.decode(parameters | {name: others[name] for name in ignored}) == space.decode(parameters)


@pytest.mark.parametrize(
    ("name", "changes", "ignored"),
    [
        ("integer", {}, set()),
        ("any", {"steps": 6}, {"t7", "t8", "r7", "r8"}),
        ("cached", {"steps": 7}, {"t8", "t9", "p8", "p9"}),
        ("cached, ranked", {"steps": 11, "t1": 900, "p1": 1, "p2": 1}, {"r2", "t12", "p12", "r12"}),
        ("segments", {"i2": 1}, {"b2"}),
        ("segments, some", {"segments": 4, "i1": 0}, {"b1", "i5", "b5", "i6", "b6"}),
        ("segments, uniform", {"i": 1}, {"b"}),
        ("segments, uniform", {"i": 2}, set()),
    ],
)
def test_parameters_beyond_the_number_of_steps_or_segments_are_ignored(
    name: str, changes: dict[str, Any], ignored: set[str]
) -> None:
    boxes: dict[str, Any] = EXAMPLES[name].distributions()
    lows = {key: box.low for key, box in boxes.items()}
    point = lows | {key: 3 for key in lows if key[0] == "i"} | changes
    assert SPACES[TABLES[name][0]["kind"]].ignored(point) == ignored


@every_space
def test_the_corners_of_the_box_decode_to_candidates_in_the_space(space: Space) -> None:
    boxes: dict[str, Any] = space.distributions()
    for low in (True, False):
        space.check(space.decode({name: box.low if low else box.high for name, box in boxes.items()}))


@every_space
@some
@given(seed=st.integers(0, 2**32))
def test_candidates_that_evolution_makes_are_in_the_space_and_encode_into_the_box(space: Evolvable, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = space.random(rng), space.random(rng)
    for candidate in (first, space.mutate(first, rng, 0.5), space.crossover(first, second, rng)):
        space.check(candidate)
        parameters = space.encode(candidate)
        assert inside(space, parameters)
        again = space.decode(parameters)
        assert (again.times, again.guidance_scale) == (candidate.times, candidate.guidance_scale)
        assert again.end_time == candidate.end_time
        if space.fully_parametric:
            assert again == candidate
        elif isinstance(space, Joint) and space.budget.max_flops is None:  # FLOPs depend on which layers go
            assert [len(removed) for removed in again.removed] == [len(removed) for removed in candidate.removed]


ANY_CANDIDATE = Candidate.from_time_steps([998.77, 500, 61.5, 2], [[1], [], [0, 2], [99]], 90.0, 1.5)


@every_space
@some
@given(seed=st.integers(0, 2**32))
def test_the_nearest_of_a_candidate_in_the_space_is_itself_and_of_any_is_in_the_space(
    space: Evolvable, seed: int
) -> None:
    inside = space.random(np.random.default_rng(seed))
    assert space.nearest(inside) == inside
    space.check(space.nearest(ANY_CANDIDATE))
    space.check(space.nearest(Candidate.from_time_steps([3])))


@every_space_slowly
def test_many_mutations_and_crossovers_keep_every_constraint(space: Evolvable) -> None:
    rng = np.random.default_rng(0)
    family = [space.random(rng) for _ in range(10)]
    for turn in range(1500):
        first, second = family[int(rng.integers(10))], family[int(rng.integers(10))]
        child = space.mutate(first, rng, 0.25) if turn % 2 else space.crossover(first, second, rng)
        space.check(child)
        family[int(rng.integers(10))] = child


@every_space
def test_baselines_are_in_the_space_and_the_uniform_is_first(space: Space) -> None:
    baselines = space.baselines()
    assert next(iter(baselines)) == UNIFORM
    for candidate in baselines.values():
        space.check(candidate)
        assert space.decode(space.encode(candidate)) == candidate or not space.fully_parametric


@every_space
def test_a_space_with_a_layer_share_is_part_of_the_space_and_has_its_baselines(space: Evolvable) -> None:
    rng = np.random.default_rng(1)
    assert space.with_layer_share(1.0) == space
    for share in (0.0, 0.3, 0.5, 0.9):
        part = space.with_layer_share(share)
        assert part.baselines() == space.baselines()
        for candidate in (*part.baselines().values(), *(part.random(rng) for _ in range(20))):
            part.check(candidate)
            space.check(candidate)


@every_space_slowly
def test_parents_from_the_whole_space_have_children_in_a_space_with_a_layer_share(space: Evolvable) -> None:
    rng = np.random.default_rng(2)
    for share in (0.0, 0.4):
        part = space.with_layer_share(share)
        for _ in range(30):
            first, second = space.random(rng), space.random(rng)
            part.check(part.mutate(first, rng, 0.2))
            part.check(part.crossover(first, second, rng))


@every_space
def test_neighbours_of_other_layers_and_other_numbers_of_steps_are_in_the_space(space: Evolvable) -> None:
    if not isinstance(space, Layered):
        pytest.skip("it has neither")
    rng = np.random.default_rng(5)
    for _ in range(10):
        candidate = space.random(rng)
        toggles = space.toggles(candidate)
        assert len(set(toggles)) == len(toggles)
        for toggle in toggles:
            neighbour = space.toggled(candidate, [toggle])
            if neighbour is not None:
                space.check(neighbour)
                assert space.toggled(neighbour, [toggle]) == candidate
        more = space.partial_steps_more(candidate) if isinstance(space, Caching) else {}
        for neighbour in more.values():
            space.check(neighbour)
            assert {*candidate.times} < {*neighbour.times}
        for neighbour in space.restructured(candidate).values():
            space.check(neighbour)
            changed = abs(len(neighbour.steps) - len(candidate.steps))
            assert changed == 1 or (changed == 0 and neighbour.branches != candidate.branches)


@every_space
def test_without_probability_of_mutation_nothing_changes(space: Evolvable) -> None:
    rng = np.random.default_rng(3)
    candidate = space.random(rng)
    assert space.mutate(candidate, rng, 0.0) == candidate


@every_space
def test_a_candidate_crossed_with_itself_is_itself(space: Evolvable) -> None:
    rng = np.random.default_rng(4)
    candidate = space.random(rng)
    assert space.crossover(candidate, candidate, rng) == candidate


@every_space
@pytest.mark.parametrize("step", [Step(1_000_000), Step(3, branch=7), Step(3, (99,)), Step(2.005)])
def test_a_step_that_no_space_has_is_refused(space: Space, step: Step) -> None:
    steps = space.baselines()[UNIFORM].steps
    with pytest.raises(UserError):
        space.encode(Candidate((*steps[:-1], step)))


@every_space
def test_more_or_fewer_steps_than_any_point_decodes_to_are_refused(space: Space) -> None:
    boxes: dict[str, Any] = space.distributions()
    if isinstance(space, Segments):
        with pytest.raises(UserError, match="must run, of each of"):
            space.check(Candidate.from_time_steps(range(500, 600)))
        return
    if isinstance(space, EngineSettings):
        with pytest.raises(UserError, match="steps; got 100"):
            space.check(Candidate.from_time_steps(range(500, 600)))
        return
    times = [name for name in boxes if name.startswith("t")]
    if len(times) < boxes["t1"].high + 1:
        with pytest.raises(UserError, match="steps; got"):
            space.check(Candidate.from_time_steps(range(len(times) + 1)))


def test_where_the_least_budget_leaves_no_choice_of_numbers_every_step_removes_all_it_may() -> None:
    space = joint(n_max=10, steps_min=2)
    rng = np.random.default_rng(0)
    for candidate in (space.random(rng), space.baselines()[UNIFORM], space.mutate(space.random(rng), rng, 0.5)):
        assert [len(removed) for removed in candidate.removed] == [5, 5]
        assert cost.layer_runs(space.info, candidate) == 10


def test_ends_of_the_grid_that_are_no_round_numbers_stay_inside_the_distribution() -> None:
    info = ModelInfo(1000, lowest=0.12345678, highest=998.7699, continuous=True)
    space = build_space(info, kind="time-steps", steps=2, times="continuous")
    candidate = space.decode({"t1": 998.7699, "t2": 0.12345678})
    assert info.highest >= candidate.times[0]
    assert inside(space, space.encode(candidate))
