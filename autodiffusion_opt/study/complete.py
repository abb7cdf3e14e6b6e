"""A study that has all its trials: what it found comes from SQL, without its model, which may be gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna

from autodiffusion_opt.study.config import StudyConfig
from autodiffusion_opt.trials.attributes import EVALUATION_FAILED, FILE, FOLDERS, WANTED
from autodiffusion_opt.trials.history import History


def is_complete(history: History, wanted: int, failures: int) -> bool:
    """Whether a run would have nothing to do.

    Args:
        history: of the study, as SQL holds it.
        wanted: how many trials are.
        failures: so many failed evaluations in a row end a run; the next one tries them again.
    """
    if len(history.settled) < wanted:
        return False
    finished = [trial for trial in history.trials.values() if trial.datetime_complete is not None]
    last = sorted(finished, key=lambda trial: (trial.datetime_complete, trial.number))[-failures:]
    return len(last) < failures or not all(trial.user_attrs.get(EVALUATION_FAILED) for trial in last)


def note_files(study: optuna.Study, config: StudyConfig) -> None:
    """Write to SQL where the study's files lie now, and how many trials it asks for."""
    notes: dict[str, Any] = {
        WANTED: config.trials,
        FILE: str(config.base / Path(config.path).name),
        FOLDERS: {part: str(folder) for part, folder in config.bases.items()},
    }
    known = study.user_attrs
    for key in (key for key, value in notes.items() if known.get(key) != value):
        study.set_user_attr(key, notes[key])
