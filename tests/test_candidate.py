"""The candidate: canonical however it is written, JSON both ways, and messages for what is none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from autodiffusion_opt import Candidate, Step, UserError
from autodiffusion_opt.engine import CacheDiT, CacheDiTMask

times = some.lists(
    some.floats(0, 1000, allow_nan=False).map(lambda time: round(time, 6)), min_size=1, max_size=8, unique=True
)
layer_sets = some.lists(some.lists(some.integers(0, 60), max_size=6), min_size=8, max_size=8)
branch_lists = some.lists(some.none() | some.integers(0, 20), min_size=8, max_size=8)
scales = some.none() | some.floats(0, 50, allow_nan=False)


@some.composite
def candidates(draw: Any) -> Candidate:
    drawn = list(zip(draw(times), draw(layer_sets), draw(branch_lists), strict=False))
    first = max(time for time, *_ in drawn)
    steps = tuple(Step(time, tuple(removed), None if time == first else branch) for time, removed, branch in drawn)
    last = min(step.time for step in steps)
    end = round(draw(some.floats(0, 1)) * last, 6)
    return Candidate(steps, draw(scales), end if draw(some.booleans()) and end < last else None)


@given(candidates(), some.randoms())
def test_json_gives_an_equal_candidate_back_however_it_is_written(candidate: Candidate, random: Any) -> None:
    again = Candidate.from_json(candidate.to_json())
    assert again == candidate
    assert hash(again) == hash(candidate)
    assert again.to_json() == candidate.to_json()
    shuffled = list(candidate.steps)
    random.shuffle(shuffled)
    shuffled = [dataclasses.replace(step, removed=step.removed[::-1] * 2) for step in shuffled]
    rewritten = Candidate(tuple(shuffled), candidate.guidance_scale, candidate.end_time)
    assert rewritten == candidate
    assert hash(rewritten) == hash(candidate)
    assert rewritten.to_json() == candidate.to_json()


@given(candidates())
def test_steps_go_from_noise_to_image_with_sorted_layers(candidate: Candidate) -> None:
    assert list(candidate.times) == sorted(candidate.times, reverse=True)
    assert len(set(candidate.times)) == len(candidate.times)
    assert all(list(layers) == sorted(set(layers)) for layers in candidate.removed)


SAME = [
    Candidate.from_time_steps([926, 690, 424]),
    Candidate.from_time_steps([424.0, 926.0, 690.0]),
    Candidate((Step(690), Step(424, ()), Step(926, removed=(), branch=None))),
    Candidate.from_time_steps((time for time in (690, 926, 424)), removed=[[], (), set()]),
    Candidate.from_json("[926, 690, 424]"),
    Candidate.from_json('{"steps": [424, {"time": 690}, {"time": 926.0, "removed": [], "branch": null}]}'),
    Candidate.from_json('{"format": 1, "steps": [926, 690, 424], "guidance_scale": null, "source": {"a": 1}}'),
    Candidate.from_time_steps([926.0000001, 690, 424]),
]


def test_all_ways_to_write_a_candidate_are_one_value() -> None:
    assert len(set(SAME)) == 1
    assert {candidate.to_json() for candidate in SAME} == {
        '{"format":1,"steps":[{"time":926},{"time":690},{"time":424}]}'
    }


def test_candidates_that_differ_are_not_equal_and_have_different_texts() -> None:
    candidates = [
        Candidate.from_time_steps([900, 100]),
        Candidate.from_time_steps([900, 101]),
        Candidate.from_time_steps([900, 100.5]),
        Candidate.from_time_steps([900, 100], removed=[[], [3]]),
        Candidate.from_time_steps([900, 100], removed=[[3], []]),
        Candidate.from_time_steps([900, 100], guidance_scale=7.5),
        Candidate((Step(900), Step(100, branch=0))),
        Candidate((Step(900), Step(100, branch=1))),
    ]
    assert len(set(candidates)) == len(candidates)
    assert len({candidate.to_json() for candidate in candidates}) == len(candidates)


def test_layers_follow_their_time_when_steps_are_sorted() -> None:
    candidate = Candidate.from_time_steps([100, 900], removed=[[5, 1, 5], [2]])
    assert candidate.times == (900.0, 100.0)
    assert candidate.removed == ((2,), (1, 5))


def test_minus_zero_is_the_time_zero() -> None:
    assert Candidate.from_time_steps([-0.0]).to_json() == '{"format":1,"steps":[{"time":0}]}'
    assert str(Candidate.from_time_steps([-0.0])) == "[0]"


def test_a_candidate_cannot_be_changed() -> None:
    candidate = SAME[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        candidate.guidance_scale = 1.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        candidate.steps[0].time = 1.0  # type: ignore[misc]


def test_text_has_times_numbers_of_removed_layers_and_the_guidance_scale() -> None:
    steps = (Step(900), Step(500.5, (1, 2)), Step(10, branch=3))
    assert str(Candidate(steps, 7.5)) == "[900, 500.5-2L, 10p3] at guidance 7.5"
    assert str(Candidate(steps)) == "[900, 500.5-2L, 10p3]"


def test_repr_is_readable_in_a_notebook() -> None:
    removed = [(), (1, 2, 3), (), ()]
    candidate = Candidate.from_time_steps([926, 690, 424, 153], removed, guidance_scale=7.5)
    assert repr(candidate) == "Candidate([926, 690-3L, 424, 153], guidance_scale=7.5)"
    stopped = Candidate.from_time_steps([926, 690], end_time=14.5, guidance_scale=2)
    assert str(stopped) == "[926, 690] ending at 14.5 at guidance 2"
    assert repr(stopped) == "Candidate([926, 690], guidance_scale=2, end_time=14.5)"
    assert stopped.to_json() == (
        '{"format":1,"steps":[{"time":926},{"time":690}],"guidance_scale":2.0,"end_time":14.5}'
    )
    assert repr(Candidate.from_time_steps([500, 1])) == "Candidate([500, 1])"


def test_json_text_is_short_and_leaves_defaults_out() -> None:
    candidate = Candidate((Step(900), Step(10.5, (2, 1), 3)), 7.5)
    assert candidate.to_json() == (
        '{"format":1,"steps":[{"time":900},{"time":10.5,"removed":[1,2],"branch":3}],"guidance_scale":7.5}'
    )


WRONG = [
    ("[]", "at least one step"),
    ("[900, 900.0]", "distinct; got 900 twice"),
    ("[900, -1]", "0 or more; got -1"),
    ("[true]", "finite number; got True"),
    ('["900"]', "finite number; got '900'"),
    ("[NaN]", "finite number; got nan"),
    ("[Infinity]", "finite number; got inf"),
    ("[null]", "finite number; got None"),
    ("[" + "9" * 400 + "]", "finite number"),
    ("7", "JSON object or a list of times; got int"),
    ("{", "must be JSON"),
    ("{}", "steps must be a list"),
    ('{"steps": 4}', "steps must be a list"),
    ('{"step": [4], "steps": [4]}', "'step'. Did you mean 'steps'?"),
    ('{"steps": [{"tiem": 4}]}', "'tiem'. Did you mean 'time'?"),
    ('{"steps": [{"removed": [1]}]}', "must have a time"),
    ('{"steps": [{"time": 4, "removed": 7}]}', "list of layer indices; got 7"),
    ('{"steps": [{"time": 4, "removed": [-1]}]}', "0 or more; got -1"),
    ('{"steps": [{"time": 4, "removed": [1.5]}]}', "0 or more; got 1.5"),
    ('{"steps": [{"time": 4, "removed": [true]}]}', "0 or more; got True"),
    ('{"steps": [9, {"time": 4, "branch": -1}]}', "a step's branch must be an index, 0 or more; got -1"),
    ('{"steps": [9, {"time": 4, "branch": true}]}', "a step's branch must be an index, 0 or more; got True"),
    (
        '{"steps": [{"time": 9, "branch": 0}, 4]}',
        "first step must be a full one, whose features a partial step takes; got 9p0",
    ),
    ('{"steps": [4], "end_time": "7"}', "end_time must be a finite number; got '7'"),
    ('{"steps": [4], "end_time": -1}', "end_time must be 0 or more; got -1"),
    ('{"steps": [90, 4], "end_time": 4}', "end_time must be below the last step's time, 4; got 4"),
    ('{"steps": [4], "guidance_scale": "7"}', "guidance_scale must be a finite number; got '7'"),
    ('{"steps": [4], "format": 2}', "format must be 1; got 2"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_json_that_is_no_candidate_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        Candidate.from_json(text)
    assert message in str(error.value)


def test_removed_layers_must_be_given_for_every_time() -> None:
    with pytest.raises(UserError, match="2 times, 1 entries"):
        Candidate.from_time_steps([900, 100], removed=[[1]])


def test_a_file_is_read_and_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    path.write_text(json.dumps({**SAME[0].to_dict(), "source": {"study": "x"}, "comment": "by hand"}))
    assert Candidate.load(path) == SAME[0]
    path.write_bytes(b"\xff\xfe\x00")
    for wrong in (path, tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match=str(wrong)):
            Candidate.load(wrong)


def test_a_cache_whose_warm_up_has_all_steps_is_known_to_leave_nothing_out() -> None:
    assert CacheDiT(1, 0, 0.5, 4, 1).computed(4) == (True,) * 4
    assert CacheDiT(1, 0, 0.5, 3, 1).computed(4) is None
    assert CacheDiTMask(2, 1, (3, 1)).computed(4) == (True, False, True, False)
    assert list(CacheDiTMask(2, 1, (1,)).blocks_left_out(6)) == [2, 3, 4]
