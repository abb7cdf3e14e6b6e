"""What SQL holds of a trial, and a trial's position in its study's sequence of candidates.

A trial that died is retried by a new one, with a new number. Proposals depend on the *position*: the number less the
retries before it; a retry has the position of the trial that it retries. So an interrupted study, resumed, proposes
what the uninterrupted one proposes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.candidate import Candidate

# User attributes of a trial.
CANDIDATE = "candidate"  # its canonical JSON, published before the parameters
BASELINE = "baseline"  # the name of the usual schedule that this is
RETRY_OF = "retry_of"  # the position of the trial that died
WORKER = "worker"  # host, process and start of the process that runs it
REUSED_FROM = "reused_from"  # the number of the trial whose value was taken over
STAGE = "stage"  # of a search in stages
ORIGIN = "origin"  # how the optimizer made it: random, mutation, crossover ...
SCORE = "score"  # images, seconds, NFE, layer runs ...
ERROR = "error"  # why it died


@dataclass(frozen=True)
class Observation:
    """One position of the sequence: its candidate, and its value once it has one."""

    position: int
    candidate: Candidate
    value: float | None


@lru_cache(maxsize=65536)
def parse_candidate(text: str) -> Candidate:
    """The candidate of a JSON text, parsed once."""
    return Candidate.from_json(text)


def candidate_of(trial: FrozenTrial) -> Candidate | None:
    """The trial's candidate; None where it died before it had one."""
    text = trial.user_attrs.get(CANDIDATE)
    return None if text is None else parse_candidate(text)


def value_of(trial: FrozenTrial) -> float | None:
    """The trial's value if it completed."""
    return trial.values[0] if trial.state == TrialState.COMPLETE and trial.values else None


def positions(trials: Sequence[FrozenTrial]) -> dict[int, int]:
    """Trial number -> position, for all trials of a study.

    A baseline that two workers enqueued, since both saw an empty study, counts as a retry of the first.
    """
    found: dict[int, int] = {}
    baselines: dict[str | None, int] = {}
    new = 0
    for trial in sorted(trials, key=lambda trial: trial.number):
        name = trial.user_attrs.get(BASELINE)
        place = int(trial.user_attrs.get(RETRY_OF, baselines.get(name, new)))
        new += place == new
        found[trial.number] = place
        if name is not None:
            baselines.setdefault(name, place)
    return found


def history(trials: Sequence[FrozenTrial], before: int) -> list[Observation]:
    """What is known of all positions below ``before``, in order; of a retried one, the trial that got furthest."""
    placed = positions(trials)
    found: dict[int, Observation] = {}
    for trial in trials:
        candidate, position = candidate_of(trial), placed[trial.number]
        if candidate is None or position >= before:
            continue
        known = found.get(position)
        if known is None or known.value is None:
            found[position] = Observation(position, candidate, value_of(trial))
    return [found[position] for position in sorted(found)]


def open_positions(trials: Sequence[FrozenTrial]) -> list[int]:
    """Positions whose every trial died: to be retried."""
    placed = positions(trials)
    alive = {placed[trial.number] for trial in trials if trial.state != TrialState.FAIL}
    return sorted({placed[trial.number] for trial in trials} - alive)


def completed(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Complete trials, best first; of equal values the earlier first."""
    done = [trial for trial in trials if value_of(trial) is not None]
    return sorted(done, key=lambda trial: (value_of(trial), trial.number))


def best_of(seen: Iterable[Observation], count: int) -> list[Observation]:
    """The ``count`` best different candidates with a finite value, best first."""
    known = [one for one in seen if one.value is not None and math.isfinite(one.value)]
    chosen: dict[Candidate, Observation] = {}
    for one in sorted(known, key=lambda one: (one.value, one.position)):
        chosen.setdefault(one.candidate, one)
    return list(chosen.values())[:count]
