"""Turns: whose is over, and whose comes first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection

from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.studies import create_study
from autodiffusion_opt.trials.turns import TURN, wait_for_turn

ATTRIBUTE = "asked"
OVER, PENDING = {TURN: 1, "point": [0.5]}, {TURN: 1}


@pytest.fixture
def study(url: str) -> optuna.Study:
    """Two running trials."""
    study = create_study(open_storage(url), "s", {"value": StudyDirection.MINIMIZE})
    for _ in range(2):
        study._storage.create_new_trial(study._study_id)
    return study


def write(study: optuna.Study, number: int, value: dict[str, Any]) -> None:
    trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    study._storage.set_trial_user_attr(trial_id, ATTRIBUTE, value)


def test_a_turn_that_is_over_is_seen_before_its_trial_has_a_candidate(study: optuna.Study) -> None:
    history = History(study).refresh()
    write(study, 0, OVER)
    assert ThreadPoolExecutor(1).submit(wait_for_turn, history, 1, ATTRIBUTE).result(timeout=20) == 2


def test_a_trial_waits_for_those_whose_turn_is_not_over(study: optuna.Study) -> None:
    history = History(study).refresh()
    write(study, 0, PENDING)
    waiting = ThreadPoolExecutor(1).submit(wait_for_turn, history, 1, ATTRIBUTE)
    with pytest.raises(TimeoutError):
        waiting.result(timeout=0.2)
    write(study, 0, OVER)
    assert waiting.result(timeout=20) == 2
