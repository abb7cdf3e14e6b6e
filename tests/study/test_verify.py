"""Re-scoring: fresh noise, the same for all candidates of a repeat, and the same every time."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from autodiffusion_opt import Candidate, UserError
from autodiffusion_opt.study.verify import FRESH_SEED, Rescored, rescore

GOOD, BAD = Candidate.from_time_steps([926, 690, 424, 153]), Candidate.from_time_steps([40, 30, 20, 10])


def test_mean_and_spread_over_repeats() -> None:
    scored = Rescored(GOOD, (1.0, 2.0, 6.0))
    assert (scored.mean, scored.std) == (3.0, pytest.approx(math.sqrt(7)))
    once = Rescored(GOOD, (1.0,))
    assert math.isnan(once.std)
    assert json.loads(json.dumps(once.to_dict())) == {
        "mean": 1.0,
        "std": None,
        "values": [1.0],
        "candidate": GOOD.to_dict(),
    }


def test_scores_are_deterministic_and_on_fresh_noise(problem: Any) -> None:
    first, second = (rescore(problem, {"best": GOOD, "bad": BAD}, images=20, repeats=2) for _ in range(2))
    assert first == second
    scores = [next(problem.objective.measure(GOOD, images=20, seed=FRESH_SEED + repeat)) for repeat in range(2)]
    assert first["best"].values == tuple(score.values["fid"] for score in scores)
    assert len(set(first["best"].values)) == 2
    assert next(problem.objective.measure(GOOD)).values["fid"] not in first["best"].values
    assert first["best"].mean < first["bad"].mean


def test_equal_candidates_are_scored_once(problem: Any) -> None:
    told: list[tuple[str, int, int]] = []
    same = Candidate.from_time_steps(reversed(GOOD.times))
    rescored = rescore(
        problem, {"a": GOOD, "b": same, "c": BAD}, images=25, repeats=3, progress=lambda *what: told.append(what)
    )
    assert list(rescored) == ["a", "b", "c"]
    assert rescored["a"] == rescored["b"]
    whole = 2 * 3 * 25
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
    assert told[-1] == ("re-scoring images", whole, whole)
    assert {total for _, _, total in told} == {whole}


def test_what_does_not_fit_is_refused_before_anything_is_measured(problem: Any) -> None:
    told: list[tuple[str, int, int]] = []
    given = {"bad": BAD, "best": Candidate.from_time_steps([4000, 3])}
    with pytest.raises(UserError, match="got 4000"):
        rescore(problem, given, images=25, repeats=1, progress=lambda *what: told.append(what))
    assert not told
