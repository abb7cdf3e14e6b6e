"""A study that has all its trials: what it found comes from SQL, without its model, which may be gone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import optuna

from autodiffusion_opt.study.config import StudyConfig
from autodiffusion_opt.trials.attributes import FILE, FOLDERS, WANTED
from autodiffusion_opt.trials.history import History


def is_complete(history: History, wanted: int, failures: int) -> bool:
    """Whether a run would have nothing to do.

    Args:
        history: of the study, as SQL holds it.
        wanted: how many trials are.
        failures: so many failed evaluations in a row end a run; the next one tries them again.
    """
    return len(history.settled) >= wanted and not history.failures_in_a_row(failures)


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


def warn_of_others(count: int) -> None:
    """Where other workers are at so many trials, the study is not complete yet."""
    if count:
        trials = "a trial is" if count == 1 else f"{count} trials are"
        warnings.warn(
            f"{trials} still being measured by other workers: the study is complete when they are done "
            "(--wait waits for them)",
            stacklevel=3,
        )
