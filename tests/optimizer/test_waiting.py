"""Workers that ask at the same moment: who waits for whom, and what is known of the positions before."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from optuna.study import StudyDirection

from autodiffusion_opt import Candidate
from autodiffusion_opt.optimizer import base
from autodiffusion_opt.trials.attributes import CANDIDATE
from autodiffusion_opt.trials.history import History, Observation, Observations
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.studies import create_study

CANDIDATE_OF_FIRST = Candidate.from_time_steps([5])


def observed(position: int, *losses: float) -> Observation:
    return Observation(position, Candidate.from_time_steps([position + 1]), losses or None)


def test_positions_without_a_value_are_listed() -> None:
    observations = Observations([observed(0, 1.0), observed(2), observed(3, 2.0)])
    assert observations.before(6).unmeasured() == {"measuring": [2], "proposing": [1, 4, 5]}
    observations.put(observed(1, 3.0))
    assert observations.before(3).unmeasured() == {"measuring": [2]}
    observations.put(observed(2, 4.0))
    assert observations.before(4).unmeasured() == {}


@pytest.mark.parametrize("position", [0, 1])
def test_a_worker_waits_for_the_candidate_of_an_earlier_position_and_of_no_later_one(position: int, url: str) -> None:
    storage: Any = open_storage(url)
    study = create_study(storage, "s", {"value": StudyDirection.MINIMIZE})
    first = storage.create_new_trial(study._study_id)
    storage.create_new_trial(study._study_id)
    begun = time.monotonic()
    publish = threading.Timer(0.2, storage.set_trial_user_attr, (first, CANDIDATE, CANDIDATE_OF_FIRST.to_json()))
    publish.start()
    past = base._past_once_proposed(History(study).refresh(), position)
    waited = time.monotonic() - begun
    publish.join()
    assert [observation.candidate for observation in past] == [CANDIDATE_OF_FIRST] * position
    assert waited < base.PROPOSING_SECONDS


def test_a_worker_that_never_proposes_is_not_waited_for_for_ever(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "PROPOSING_SECONDS", 0.1)
    study = create_study(open_storage(url), "s", {"value": StudyDirection.MINIMIZE})
    for _ in range(2):
        study._storage.create_new_trial(study._study_id)
    assert list(base._past_once_proposed(History(study).refresh(), 1)) == []
