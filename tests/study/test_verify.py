"""Re-scoring: fresh noise, the same for all candidates of a repeat, and the same every time."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.stats

from autodiffusion_opt import Candidate, EvaluationError, UserError
from autodiffusion_opt.objective import Score
from autodiffusion_opt.objective.goals import Bound
from autodiffusion_opt.study.verify import FRESH_SEED, Difference, Rescored, rescore, verified

GOOD, BAD = Candidate.from_time_steps([926, 690, 424, 153]), Candidate.from_time_steps([40, 30, 20, 10])


def test_mean_and_spread_over_repeats() -> None:
    scored = Rescored(GOOD, {"fid": (1.0, 2.0, 6.0)})
    assert (scored.mean, scored.std) == (3.0, pytest.approx(math.sqrt(7)))
    once = Rescored(GOOD, {"fid": (1.0,)})
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


# What the numbers say.


def test_a_difference_is_paired_over_repeats_with_students_t() -> None:
    """Noise that both candidates share is no noise of their difference."""
    first, second = (Rescored(GOOD, {"fid": values}) for values in ((10.0, 20.0, 31.0), (12.0, 22.0, 33.5)))
    gap = Difference.of(first, second)
    gaps = np.array([-2.0, -2.0, -2.5])
    interval = scipy.stats.ttest_1samp(gaps, 0.0).confidence_interval(0.95)
    assert gap.mean == pytest.approx(gaps.mean())
    assert (gap.mean - gap.half_width, gap.mean + gap.half_width) == pytest.approx((interval.low, interval.high))
    assert gap.is_more_than_noise


@pytest.mark.parametrize(
    ("values", "less_is_better", "sentence"),
    [
        ((-2.0, -2.1, -2.2), True, "best is better than own by more than the noise: -2.1 "),
        ((-2.0, -2.1, -2.2), False, "best is worse than own by more than the noise"),
        ((-2.0, 2.1, 0.1), True, "best and own do not differ by more than the noise"),
        ((-2.0,), True, "with one repeat nothing is known of the noise"),
    ],
)
def test_a_difference_is_said_in_words(values: tuple[float, ...], less_is_better: bool, sentence: str) -> None:
    gap = Difference.of(Rescored(GOOD, {"fid": values}), Rescored(BAD, {"fid": (0.0,) * len(values)}))
    assert sentence in gap.sentence("best", "own", less_is_better=less_is_better)


@pytest.mark.slow
def test_another_of_the_best_that_wins_is_told_and_so_is_a_flattered_value(problem: Any) -> None:
    result = verified(problem, {"best": BAD, "rank 2": GOOD}, (1.0, 20), images=40, repeats=2)
    assert [*result.rescored][:1] == ["own"]
    assert result.candidates == ("best", "rank 2")
    assert any(sentence.startswith("rank 2 wins: rank 2") for sentence in result.sentences)
    fresh = rescore(problem, {"best": BAD}, images=20, repeats=2)["best"].mean
    assert result.flattered_by == pytest.approx(fresh - 1.0)
    assert f"too good by {fresh - 1:.4g}" in result.sentences[-1]
    told = json.loads(json.dumps(result.to_dict()))
    assert set(told) == {
        *("images", "repeats", "best", "top", "baselines", "differences", "flattered_by", "sentences"),
    }
    assert set(told["differences"]) == {"best", "rank 2"}


@pytest.mark.slow
def test_the_best_that_wins_and_an_unknown_search_value_are_not_talked_about(problem: Any) -> None:
    result = verified(problem, {"best": GOOD, "rank 2": BAD}, None, images=20, repeats=2)
    assert result.flattered_by is None
    assert not any("wins" in sentence or "search" in sentence for sentence in result.sentences)


class Line:
    """A metric with a known curve: 3 + 50 / images."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, images: Any) -> None:
        self.count += len(images)

    def values(self, *, is_last: bool) -> dict[str, float]:
        return {"fid": 3 + 50 / self.count}

    def of_images(self) -> None:
        return None


@pytest.mark.slow
def test_the_extrapolation_finds_the_value_of_infinitely_many_images(problem: Any) -> None:
    line = dataclasses.replace(problem.objective, start_verify=lambda *_: Line())
    given = dataclasses.replace(problem, objective=line)
    scored = rescore(given, {"best": GOOD}, images=100, repeats=2, extrapolate=True)["best"]
    assert scored.extrapolated == pytest.approx(3.0)
    assert scored.values == pytest.approx((3.5, 3.5))
    assert scored.to_dict()["extrapolated"] == scored.extrapolated
    assert "extrapolated" not in rescore(given, {"best": GOOD}, images=100, repeats=2)["best"].to_dict()


class Failing:
    """An objective that measures one candidate alone; of others the mean time is the value."""

    directions: ClassVar[dict[str, str]] = {"mean": "minimize"}
    identity = "failing"
    bounds = (Bound("mean", 100.0, "at_most"),)

    def __init__(self, fails: Candidate) -> None:
        self.fails = fails

    def measure(self, candidate: Candidate, **_: Any) -> Any:
        if candidate == self.fails:
            raise EvaluationError("no image is finite")
        yield Score({"mean": float(np.mean(candidate.times))}, images=10, seconds=0.0)


@pytest.mark.parametrize("fails", [GOOD, BAD])
def test_what_could_not_be_measured_never_wins_and_is_told(problem: Any, fails: Candidate) -> None:
    given = dataclasses.replace(problem, objective=Failing(fails))
    result = verified(given, {"best": GOOD, "rank 2": BAD}, (5.0, 10), images=10, repeats=2)
    assert math.isnan(result.rescored["best" if fails == GOOD else "rank 2"].mean)
    broken = "best" if fails == GOOD else "rank 2"
    assert f"{broken} and own cannot be compared: one of them could not be measured" in result.sentences
    assert any(sentence.startswith("rank 2 wins: ") for sentence in result.sentences) == (fails == GOOD)
    assert (result.flattered_by is None) == (fails == GOOD)
    assert not any("nan" in sentence for sentence in result.sentences)


def test_a_candidate_that_is_beyond_a_bound_on_fresh_noise_is_told(problem: Any) -> None:
    given = dataclasses.replace(problem, objective=Failing(Candidate.from_time_steps([1])))
    result = verified(given, {"best": GOOD, "rank 2": BAD}, None, images=10, repeats=2)
    mean = float(np.mean(GOOD.times))
    assert result.sentences[0] == f"best is beyond a bound: mean at most 100; it has mean {mean:.4g}"
    assert not any(sentence.startswith("rank 2 is beyond") for sentence in result.sentences)


class Two(Failing):
    """The mean time, the less the better, and the first, the more the better."""

    directions: ClassVar[dict[str, str]] = {"mean": "minimize", "first": "maximize"}
    bounds = ()

    def measure(self, candidate: Candidate, **_: Any) -> Any:
        values = {"mean": float(np.mean(candidate.times)), "first": candidate.times[0]}
        yield Score(values, images=10, seconds=0.0)


def test_a_front_looks_at_the_direction_of_each_value(problem: Any) -> None:
    """Less is better of the one, more of the other: neither of the first two dominates, and both the third."""
    given = dataclasses.replace(problem, objective=Two(GOOD))
    times = {"front 1": [500, 10], "front 2": [900, 20], "front 3": [400, 300]}
    front = {name: Candidate.from_time_steps(each) for name, each in times.items()}
    result = verified(given, front, None, images=10, repeats=2)
    assert result.candidates == ("front 1", "front 2")
    assert result.sentences == ("front 3 is dropped: on fresh noise front 1 is nowhere worse",)
