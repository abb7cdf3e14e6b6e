"""The sequence of candidates: positions, retries, and what is known of them; read once, then what is new."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from autodiffusion_opt import Candidate
from autodiffusion_opt.trials.history import History, Observation, Observations, best_first, dominates, front
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.studies import create_study, fail

MINIMIZE = optuna.study.StudyDirection.MINIMIZE
MAXIMIZE = optuna.study.StudyDirection.MAXIMIZE


def at(time: int) -> Candidate:
    return Candidate.from_time_steps([time])


def trial(state: str, time: int | None = None, value: float | None = None, **attributes: Any) -> FrozenTrial:
    candidate = {} if time is None else {"candidate": at(time).to_json()}
    return create_trial(state=TrialState[state], value=value, user_attrs={**candidate, **attributes})


def history_of(*trials: FrozenTrial, direction: str = "minimize") -> History:
    study = optuna.create_study(direction=direction)
    for each in trials:
        study.add_trial(each)
    return History(study).refresh()


def observed(history: History, before: int) -> list[tuple[int, Candidate, float | None]]:
    return [(o.position, o.candidate, o.loss) for o in history.observations.before(before)]


# Position 1 died twice, position 2 once without a candidate.
TRIALS = [
    trial("COMPLETE", 10, 5.0),
    trial("FAIL", 20),
    trial("FAIL"),
    trial("FAIL", 20, retry_of=1),
    trial("COMPLETE", 40, 3.0),
    trial("COMPLETE", 20, 4.0, retry_of=1),
    trial("RUNNING", 30, retry_of=2),
    trial("RUNNING", 50),
]


def test_a_retry_has_the_position_of_what_it_retries() -> None:
    history = history_of(*TRIALS)
    assert [history.position(number) for number in range(8)] == [0, 1, 2, 1, 3, 1, 2, 4]
    assert [[t.number for t in history.at(position)] for position in range(5)] == [[0], [1, 3, 5], [2, 6], [4], [7]]


def test_each_position_is_observed_once() -> None:
    history = history_of(*TRIALS)
    known = [(0, at(10), 5.0), (1, at(20), 4.0), (2, at(30), None), (3, at(40), 3.0)]
    assert observed(history, 4) == known
    assert observed(history, 2) == known[:2]
    assert observed(history, 0) == []


def test_a_death_after_completion_loses_nothing() -> None:
    """Two workers retried the same position: the value stays."""
    history = history_of(trial("FAIL", 10), trial("COMPLETE", 10, 5.0, retry_of=0), trial("FAIL", 10, retry_of=0))
    assert observed(history, 1) == [(0, at(10), 5.0)]
    assert history.open_positions == []
    assert history.settled == {0}


def test_baselines_are_known_by_name() -> None:
    history = history_of(
        trial("FAIL", 10, baseline="leading"),
        trial("COMPLETE", 20, 4.0, baseline="trailing"),
        trial("COMPLETE", 10, 5.0, baseline="leading", retry_of=0),
        trial("RUNNING", 30),
    )
    assert [history.position(number) for number in range(4)] == [0, 1, 0, 2]
    assert history.given_names() == {"leading", "trailing"}
    leading = history.baseline("leading")
    assert leading is not None
    assert leading.values == [5.0]
    assert history.baseline("karras") is None


def test_open_positions_are_those_that_nobody_works_at() -> None:
    assert history_of(*TRIALS).open_positions == []
    assert history_of(*TRIALS[:3]).open_positions == [1, 2]
    assert history_of(*TRIALS[:6]).open_positions == [2]


def test_an_evaluation_that_failed_is_retried_once_and_then_settled() -> None:
    failed = trial("FAIL", 10, evaluation_failed=True)
    history = history_of(failed, trial("FAIL", 20))
    assert (history.settled, history.open_positions) == (set(), [0, 1])
    waiting = history_of(failed, trial("WAITING", 10, retry_of=0))
    assert (waiting.settled, waiting.open_positions) == (set(), [])
    twice = [failed, trial("FAIL", 10, evaluation_failed=True, retry_of=0)]
    assert (history_of(*twice).settled, history_of(*twice).open_positions) == ({0}, [])
    # A retry that was enqueued for it all the same is still to be run.
    again = history_of(*twice, trial("WAITING", 10, retry_of=0))
    assert (again.settled, again.open_positions) == (set(), [])
    interrupted = history_of(*twice, trial("FAIL", 10, retry_of=0))
    assert (interrupted.settled, interrupted.open_positions) == ({0}, [])


def test_what_changed_since_is_read_and_nothing_else(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(url)
    study = create_study(storage, "s", {"v": MINIMIZE})
    asked: list[tuple[set[int], int]] = []
    read = storage.new_trials

    def noted(study_id: int, unfinished: set[int], last_id: int) -> list[FrozenTrial]:
        asked.append((unfinished, last_id))
        return read(study_id, unfinished, last_id)

    monkeypatch.setattr(storage, "new_trials", noted)
    for number in range(5):
        study.add_trial(trial("COMPLETE", 10 + number, float(number)))
    study.add_trial(trial("WAITING", 70))
    study.add_trial(trial("WAITING", 80))
    history = History(study).refresh()
    ids = [history.trials[number]._trial_id for number in range(7)]
    fail(study, ids[5], "for the test")
    study.add_trial(trial("COMPLETE", 90, 9.0))
    history.refresh()
    assert asked == [(set(), -1), ({ids[5], ids[6]}, ids[6])]
    assert [t.state.name for t in history.trials.values()] == ["COMPLETE"] * 5 + ["FAIL", "WAITING", "COMPLETE"]
    assert [t.number for t in history.unfinished(TrialState.WAITING)] == [6]
    assert history.open_positions == [5]
    history.refresh()
    assert asked[2] == ({ids[6]}, history.trials[7]._trial_id)
    assert read(study._study_id, {ids[6]}, ids[6])[0].number == 6


def test_an_equal_candidate_is_known_from_the_first_trial_that_completed_it() -> None:
    history = history_of(trial("RUNNING", 10), trial("COMPLETE", 10, 2.0), trial("COMPLETE", 10, 2.0))
    known = history.complete_with(at(10))
    assert known is not None
    assert known.number == 1
    assert history.complete_with(at(11)) is None


def test_complete_trials_are_sorted_best_first_and_the_earlier_of_equals_first() -> None:
    trials = [trial("COMPLETE", 1, 2.0), trial("COMPLETE", 2, 1.0), trial("COMPLETE", 3, 1.0), trial("FAIL", 4)]
    for number, each in enumerate(trials):
        each.number = number
    assert [t.number for t in best_first(trials)] == [1, 2, 0]
    assert [t.number for t in best_first(trials, [MAXIMIZE])] == [0, 1, 2]


def test_more_is_better_where_a_study_maximises() -> None:
    history = history_of(trial("COMPLETE", 1, 2.0), trial("COMPLETE", 2, 7.0), direction="maximize")
    best = history.observations.before(2).best(1)
    assert [(o.candidate, o.loss) for o in best] == [(at(2), -7.0)]


def test_the_best_are_different_candidates_with_finite_losses() -> None:
    losses = [(3.0,), (math.inf,), None, (1.0,), (1.0,), (2.0,)]
    times = [1, 2, 3, 4, 4, 5]
    known = Observations(Observation(p, at(t), loss) for p, (t, loss) in enumerate(zip(times, losses, strict=True)))
    assert [o.position for o in known.before(9).best(2)] == [3, 5]
    assert [o.position for o in known.before(9).best(9)] == [3, 5, 0]
    assert [o.position for o in known.before(5).best(9)] == [3, 0]
    assert [o.position for o in known.before(9).best(9, before=3)] == [0]


def test_those_that_keep_to_their_bounds_come_first_then_those_least_beyond() -> None:
    given = [(1.0, 0.5), (4.0, 0.0), (2.0, 0.1), (3.0, 0.0)]  # losses, excesses
    known = Observations(Observation(p, at(p), (loss,), excess) for p, (loss, excess) in enumerate(given))
    assert [o.position for o in known.before(9).best(9)] == [3, 1, 2, 0]


def test_a_front_is_of_finite_values_within_their_bounds_each_once() -> None:
    both = [MINIMIZE, MAXIMIZE]
    values = [(1.0, 1.0), (2.0, 3.0), (2.0, 2.0), (3.0, 3.0), (1.0, 1.0), (0.0, -math.inf), (4.0, 9.0), (5.0, 9.5)]
    trials = []
    for number, pair in enumerate(values):
        system = {"constraints:a": 0.1} if number == 6 else {"constraints:a": -0.1}
        made = create_trial(state=TrialState.COMPLETE, values=list(pair), system_attrs=system)
        made.number = number
        trials.append(made)
    assert [t.number for t in front(trials, both)] == [0, 1, 7]
    assert [t.number for t in best_first(trials, both)] == [5, 0, 4, 1, 2, 3, 7, 6]


def test_dominating_is_nowhere_worse_and_somewhere_better() -> None:
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((1, 4), (2, 3))


def test_an_optimizer_knows_the_positions_before_its_own_only() -> None:
    known = Observations([Observation(0, at(1)), Observation(4, at(2)), Observation(2, at(2))])
    assert at(1) in known.before(1)
    assert at(1) not in known.before(0)
    assert at(2) in known.before(3)
    assert at(2) not in known.before(2)
    assert [o.position for o in known.before(4)] == [0, 2]


def test_a_measured_position_stays_and_an_unmeasured_is_replaced() -> None:
    known = Observations([Observation(0, at(1))])
    known.put(Observation(0, at(1), (2.0,)))
    known.put(Observation(0, at(1), None))
    known.put(Observation(0, at(1), (1.0,)))
    assert [(o.loss) for o in known.before(1)] == [2.0]
    assert [o.loss for o in known.before(1).best(5)] == [2.0]


def test_a_study_with_several_values_has_no_single_loss() -> None:
    with pytest.raises(ValueError, match="too many values"):
        Observation(0, at(1), (1.0, 2.0)).loss  # noqa: B018


def test_the_sequence_has_the_trial_of_each_position_that_got_furthest() -> None:
    history = history_of(*TRIALS)
    assert [t.number for t in history.sequence(0, 5)] == [0, 5, 6, 4, 7]
    assert [t.number for t in history.sequence(1, 3)] == [5, 6]
