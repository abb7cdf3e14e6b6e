"""The sequence of candidates: positions, retries, and what is known of them."""

from __future__ import annotations

import math
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from autodiffusion_opt import Candidate
from autodiffusion_opt.trials.history import Observation, best_of, completed, history, open_positions, positions, value_of


def plan(time: int) -> Candidate:
    return Candidate.from_time_steps([time])


def trial(number: int, state: str, time: int | None = None, value: float | None = None, **attrs: Any) -> FrozenTrial:
    found = {} if time is None else {"candidate": plan(time).to_json()}
    made = create_trial(state=TrialState[state], value=value, user_attrs={**found, **attrs})
    made.number = number
    return made


# Position 1 died twice, position 2 once without a candidate.
TRIALS = [
    trial(0, "COMPLETE", 10, 5.0),
    trial(1, "FAIL", 20),
    trial(2, "FAIL"),
    trial(3, "FAIL", 20, retry_of=1),
    trial(4, "COMPLETE", 40, 3.0),
    trial(5, "COMPLETE", 20, 4.0, retry_of=1),
    trial(6, "RUNNING", 30, retry_of=2),
    trial(7, "RUNNING", 50),
]


def test_a_retry_has_the_position_of_what_it_retries() -> None:
    assert positions(TRIALS) == {0: 0, 1: 1, 2: 2, 3: 1, 4: 3, 5: 1, 6: 2, 7: 4}
    assert positions(TRIALS[::-1]) == positions(TRIALS)


def test_history_knows_each_position_once() -> None:
    wanted = [Observation(0, plan(10), 5.0), Observation(1, plan(20), 4.0), Observation(2, plan(30), None), Observation(3, plan(40), 3.0)]
    assert history(TRIALS, 4) == wanted
    assert history(TRIALS, 2) == wanted[:2]
    assert history(TRIALS, 0) == []


def test_a_death_after_completion_loses_nothing() -> None:
    """Two workers retried one position: the value stays."""
    both = [trial(0, "FAIL", 10), trial(1, "COMPLETE", 10, 5.0, retry_of=0), trial(2, "FAIL", 10, retry_of=0)]
    assert history(both, 1) == [Observation(0, plan(10), 5.0)]
    assert open_positions(both) == []


def test_one_baseline_enqueued_by_two_workers_is_one_position() -> None:
    """Both saw an empty study: the sequence is that of one worker alone."""
    twice = [
        trial(0, "COMPLETE", 10, 5.0, baseline="leading"),
        trial(1, "COMPLETE", 20, 4.0, baseline="trailing"),
        trial(2, "WAITING", 10, baseline="leading"),
        trial(3, "WAITING", 20, baseline="trailing"),
        trial(4, "RUNNING", 30),
    ]
    assert positions(twice) == {0: 0, 1: 1, 2: 0, 3: 1, 4: 2}


def test_open_positions_are_those_that_nobody_works_at() -> None:
    assert open_positions(TRIALS) == []
    assert open_positions(TRIALS[:3]) == [1, 2]
    assert open_positions(TRIALS[:6]) == [2]


def test_completed_is_best_first_and_the_earlier_of_equals_first() -> None:
    trials = [trial(0, "COMPLETE", 1, 2.0), trial(1, "COMPLETE", 2, 1.0), trial(2, "COMPLETE", 3, 1.0), TRIALS[1]]
    assert [one.number for one in completed(trials)] == [1, 2, 0]
    assert value_of(TRIALS[1]) is None


def test_best_of_has_different_candidates_with_finite_values() -> None:
    seen = [
        Observation(0, plan(1), 3.0),
        Observation(1, plan(2), math.inf),
        Observation(2, plan(3), None),
        Observation(3, plan(4), 1.0),
        Observation(4, plan(4), 1.0),
        Observation(5, plan(5), 2.0),
    ]
    assert [one.position for one in best_of(seen, 2)] == [3, 5]
    assert [one.position for one in best_of(seen, 9)] == [3, 5, 0]
