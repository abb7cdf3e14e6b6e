"""Trials are read as Optuna reads them."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from trials.random_trials import random_study, shown

from autodiffusion_opt.trials import reading


def told(trials: list[FrozenTrial]) -> list[tuple[Any, ...]]:
    """All that a trial holds."""
    return [(shown(trial), trial._trial_id, list(trial.params)) for trial in trials]


@pytest.mark.parametrize("values", [1, 2])
def test_trials_are_those_that_optunas_mapper_reads(values: int, url: str) -> None:
    study = random_study(url, 3, values)
    storage: Any = study._storage
    ids = sorted(trial._trial_id for trial in storage.get_all_trials(study._study_id))
    middle = ids[len(ids) // 2]
    for states, included, last in ((None, set(), -1), ((TrialState.COMPLETE,), set(), -1), (None, {*ids[:3]}, middle)):
        asked = (study._study_id, states, included, last)
        read = storage._get_trials(*asked)
        assert told(read) == told(RDBStorage._get_trials(storage, *asked))
        assert read
    assert storage._get_trials(study._study_id, None, set(), ids[-1]) == []


def test_too_many_ids_to_name_are_looked_for_among_all(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = random_study(url, 4, 1)
    storage: Any = study._storage
    ids = [trial._trial_id for trial in storage.get_all_trials(study._study_id)]
    monkeypatch.setattr(reading, "MOST_NAMED", 2)
    assert [trial._trial_id for trial in storage._get_trials(study._study_id, None, {*ids[:5]}, ids[70])] == [
        *ids[:5],
        *ids[71:],
    ]
