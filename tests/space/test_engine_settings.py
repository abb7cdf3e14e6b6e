"""What a table of an engine's settings may say, and what the space compares with."""

from __future__ import annotations

from typing import Any

import pytest
from space.examples import DIGITS, build_space

from autodiffusion_opt import Candidate, Study, UserError
from autodiffusion_opt.engine import FirstBlockCache, MagCache, TaylorSeerCache
from autodiffusion_opt.space import SPACES, EngineSettings


def settings(**table: Any) -> EngineSettings:
    space = build_space(DIGITS, **({"kind": "engine", "engine": "taylorseer-cache", "steps": [4, 9]} | table))
    assert isinstance(space, EngineSettings)
    return space


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"settings": {"ordre": 1}}, "'order'"),
        ({"settings": {"order": 4}}, "order must be at most 3; got 4"),
        ({"settings": {"order": [0, 4]}}, "order must be at most 3; got 4"),
        ({"settings": {"interval": 1}}, "interval must be an integer, 2 or more; got 1"),
        ({"settings": {"interval": 2.5}}, "interval must be an integer or a range"),
        ({"settings": {"warm_up": [5, 2]}}, "low <= high"),
        ({"engine": "first-block-cache", "settings": {"threshold": 0.0}}, "threshold must be a number above 0"),
        ({"engine": "mag-cahce"}, "'mag-cache'"),
        ({"steps": 1}, "must be a number of 2 or more"),
        ({"spacing": "log-srn"}, "'log-snr'"),
    ],
)
def test_a_table_that_cannot_be_is_refused_and_says_what_may_be(table: dict[str, Any], text: str) -> None:
    with pytest.raises((ValueError, UserError), match=text):
        settings(**table)


def test_an_engine_that_the_model_is_too_small_for_is_refused_before_any_trial() -> None:
    table = "{kind='engine', engine='cache-dit-mask', steps=6, settings={front=[1, 9]}}"
    with pytest.raises(UserError, match=r"at most the 6 blocks .* got 9 front and 2 back"):
        _ = Study.load("dit-engine", overrides=[f"space={table}"]).problem


def test_the_fewest_steps_are_compared_with_too_and_the_package_s_defaults() -> None:
    space = settings()
    assert len(space.baselines()["fewest steps"].steps) == 4
    assert "fewest steps" not in settings(steps=9).baselines()
    presets = space.presets()
    assert presets["no cache"].engine is None
    assert presets["defaults"].engine == TaylorSeerCache(5, 3, 1)
    assert {len(candidate.steps) for candidate in presets.values()} == {9}


def test_settings_with_which_every_block_runs_are_a_candidate_without_a_cache() -> None:
    space = settings(steps=4)
    point = space.encode(space.baselines()["leading"])
    assert space.decode(point | {"warm_up": 3}).engine == TaylorSeerCache(5, 3, 1)
    assert space.decode(point | {"warm_up": 4}).engine is None
    assert space.decode(point | {"warm_up": 4}) == space.decode(point | {"warm_up": 6, "order": 3})


@pytest.mark.parametrize(
    ("engine", "nearest"),
    [(None, None), (TaylorSeerCache(3, 1, 0), None), (MagCache((1, 3)), MagCache((1, 3)))],
    ids=str,
)
def test_the_nearest_of_a_mask_keeps_what_is_skipped(engine: Any, nearest: Any) -> None:
    space = settings(engine="mag-cache", steps=4)
    times = space.baselines()["leading"].times
    candidate = Candidate.from_time_steps(times)
    assert space.nearest(Candidate(candidate.steps, engine=engine)).engine == nearest


def test_a_threshold_is_brought_into_its_range() -> None:
    space = settings(engine="first-block-cache", steps=4, settings={"threshold": [0.1, 0.5]})
    steps = Candidate.from_time_steps([900, 600, 400, 100]).steps
    assert space.nearest(Candidate(steps, engine=FirstBlockCache(0.9))).engine == FirstBlockCache(0.5)
    with pytest.raises(UserError, match=r"threshold must be from 0.1 to 0.5; got 0.9"):
        space.check(Candidate(steps, engine=FirstBlockCache(0.9)))


def test_every_kind_of_engine_can_be_searched() -> None:
    from autodiffusion_opt.engine import KINDS

    for kind in KINDS:
        assert SPACES["engine"].model_validate({"engine": kind, "steps": 4}).space(DIGITS).distributions()
