"""A trial whole: all that SQL holds of it, under the names that the words of this library have."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.study.results import COSTS, StoredStudy
from autodiffusion_opt.trials.attributes import (
    BASELINE,
    ERROR,
    OPTIMIZER,
    ORIGIN,
    PROVENANCE,
    RETRY_OF,
    REUSED_FROM,
    SCORE,
    SECONDS_OF,
    STAGE,
    START,
    WORKER,
    candidate_of,
    constraints_of,
)
from autodiffusion_opt.trials.history import MEASURED, History

# What is told of where a candidate comes from.
FROM = (BASELINE, START, ORIGIN, OPTIMIZER, STAGE, RETRY_OF, REUSED_FROM)


def whole_trial(stored: StoredStudy, number: int) -> dict[str, Any]:
    """All that SQL holds of a trial, as JSON values; what it does not hold is None or empty.

    Args:
        stored: the study.
        number: of the trial.

    Raises:
        UserError: where the study has no such trial.
    """
    trial = stored.queries.trial(number)
    if trial is None:
        count = sum(stored.queries.states().values())
        there = f"from 0 to {count - 1}" if count else "of a trial, and there is none yet"
        raise UserError(f"--trial must be a number {there}, in the study {stored.name!r}; got {number}")
    candidate, score = candidate_of(trial), trial.user_attrs.get(SCORE, {})
    values = trial.values if trial.state in MEASURED and trial.values else ()
    return {
        "study": stored.name,
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "position": History(stored.study).refresh().position(number),
        **{key: trial.user_attrs.get(key) for key in FROM},
        "began": _written(trial.datetime_start),
        "ended": _written(trial.datetime_complete),
        "candidate": None if candidate is None else candidate.to_dict(),
        "parameters": dict(trial.params),
        "values": dict(zip(stored.value_names, values, strict=False)),
        "measured": score.get("values", {}),
        "rungs": {str(images): value for images, value in sorted(trial.intermediate_values.items())},
        "constraints": constraints_of(trial),
        "costs": {cost: score.get(cost) for cost in COSTS},
        SECONDS_OF: score.get(SECONDS_OF, {}),
        "worker": trial.user_attrs.get(WORKER),
        PROVENANCE: score.get(PROVENANCE, trial.user_attrs.get(PROVENANCE)),
        "error": trial.user_attrs.get(ERROR),
    }


def _written(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="milliseconds")
