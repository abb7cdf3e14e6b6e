"""What a table of an engine's settings may say, and what the space compares with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from space.examples import DIGITS, build_space

from autodiffusion_opt import Candidate, Study, UserError
from autodiffusion_opt.engine import KINDS, Engine, FirstBlockCache, MagCache, TaylorSeerCache
from autodiffusion_opt.space import SPACES, EngineSettings
from autodiffusion_opt.space.engine_knobs import KNOBS

every_kind = pytest.mark.parametrize("kind", KINDS)


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
    for kind in KINDS:
        assert SPACES["engine"].model_validate({"engine": kind, "steps": 4}).space(DIGITS).distributions()


def left_out(candidate: Candidate) -> float:
    """How much a candidate's cache leaves out, as far as its settings say; comparable within a kind."""
    engine, steps = candidate.engine, len(candidate.steps)
    if engine is None:
        return 0
    skipped = steps - sum(engine.computed(steps) or (True,) * steps)
    blocks = len(engine.blocks_left_out(12))
    return float(skipped * blocks or blocks * getattr(engine, "threshold", 0) * getattr(engine, "in_a_row", 1))


@every_kind
@pytest.mark.parametrize("spacing", [None, "trailing"])
def test_baselines_are_a_ladder_each_rung_of_which_leaves_more_out(kind: str, spacing: str | None) -> None:
    baselines = settings(engine=kind, steps=[4, 12], spacing=spacing).baselines()
    ladder = [candidate for name, candidate in baselines.items() if name.startswith("cache ")]
    assert len(ladder) >= 3
    assert len(set(baselines.values())) == len(baselines)
    assert {candidate.times for candidate in ladder} == {baselines["leading"].times}
    amounts = [left_out(candidate) for candidate in ladder]
    assert amounts == sorted(amounts)
    assert 0 < amounts[0] < amounts[-1]


@every_kind
@pytest.mark.parametrize("spacing", [None, "trailing"])
def test_an_exchange_is_in_the_space_and_takes_of_one_thing_what_it_gives_another(
    kind: str, spacing: str | None
) -> None:
    space, rng = settings(engine=kind, spacing=spacing), np.random.default_rng(0)
    changes = []
    for candidate in (space.random(rng) for _ in range(12)):
        for name, exchanged in space.exchanges(candidate).items():
            space.check(exchanged)
            change = len(exchanged.steps) - len(candidate.steps)
            changes.append(change)
            if name.startswith("threshold"):
                assert (exchanged.times, change) == (candidate.times, 0)
            elif "skipped" in name:
                assert run_whole(exchanged) == run_whole(candidate), name
            else:
                assert change in (-1, 1), name
                assert numbers_that_leave_more_out(candidate, exchanged) in ([], [change]), name
    assert {-1, 1} <= set(changes)


def run_whole(candidate: Candidate) -> int:
    """At how many steps every block is run."""
    steps = len(candidate.steps)
    return steps if candidate.engine is None else sum(candidate.engine.computed(steps) or ())


def numbers_that_leave_more_out(before: Candidate, after: Candidate) -> list[int]:
    """Of the settings that differ: 1 where more is left out, -1 where less; none where one has no cache."""
    if before.engine is None or after.engine is None:
        return []
    pairs = [
        ((getattr(after.engine, knob.name) - getattr(before.engine, knob.name)) * knob.saves)
        for knob in KNOBS[before.engine.kind].numbers
    ]
    return [int(np.sign(pair)) for pair in pairs if pair]


def test_times_stay_where_a_skipped_step_comes_between_or_goes() -> None:
    space = settings(engine="mag-cache", steps=[3, 5])
    candidate = Candidate(Candidate.from_time_steps([900, 600, 300, 100]).steps, engine=MagCache((2,)))
    exchanges = space.exchanges(candidate)
    assert exchanges["without skipped step 3"] == Candidate.from_time_steps([900, 600, 100])
    longer = exchanges["skipped step more after step 1"]
    assert longer.engine == MagCache((1, 3))
    assert (longer.times[0], *longer.times[2:]) == candidate.times
    between = DIGITS.log_snr(longer.times[:3])
    assert between[1] == pytest.approx((between[0] + between[2]) / 2, abs=0.02)
    assert exchanges["step 2 skipped for 3"] == Candidate(candidate.steps, engine=MagCache((1,)))


def test_a_setting_that_is_fixed_is_exchanged_for_nothing() -> None:
    space = settings(engine="cache-dit", settings={"threshold": 0.2, "front": 2, "in_a_row": 3})
    candidate = space.random(np.random.default_rng(1))
    names = {name.split(", ")[-1].split()[0] for name in space.exchanges(candidate)}
    assert names == {"back", "warm_up"}


def test_a_threshold_is_moved_beyond_where_it_decides_the_same() -> None:
    space = settings(engine="first-block-cache", steps=4)
    candidate = Candidate(space.baselines()["leading"].steps, engine=FirstBlockCache(1.0))
    moved = {exchanged.engine for exchanged in space.exchanges(candidate).values()}
    assert moved == {FirstBlockCache(0.398107), FirstBlockCache(0.251189)}


def test_a_setting_that_is_fixed_or_saves_nothing_is_the_same_on_every_rung() -> None:
    space = settings(settings={"interval": 3})
    engines = [candidate.engine for name, candidate in space.baselines().items() if name.startswith("cache ")]
    assert {(engine.interval, engine.order) for engine in engines if isinstance(engine, TaylorSeerCache)} == {(3, 1)}
    assert all(isinstance(engine, Engine) for engine in engines)
