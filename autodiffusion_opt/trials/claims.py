"""Positions are claimed one at a time, so that no two workers measure the same; a dead worker's are retried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.trials import workers
from autodiffusion_opt.trials.attributes import (
    BASELINE,
    CANDIDATE,
    EVALUATION_FAILED,
    INHERITED,
    LABEL,
    ORIGIN,
    RETRY_OF,
    WORKER,
    candidate_of,
    given_name,
)
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.storage import fail, record_heartbeat, stale_trial_ids, start_trial

Encode = Callable[[Candidate], dict[str, Any]]
# Why a worker fails a trial that it began for a position beyond those that are wanted.
NOT_WANTED = "not wanted: other workers began the last trials"


@dataclass(frozen=True)
class Claim:
    """A running trial that belongs to this worker.

    Attributes:
        study: the Optuna study.
        trial_id: in the database.
        number: of the trial.
        position: in the study's sequence.
    """

    study: optuna.Study
    trial_id: int
    number: int
    position: int

    def heartbeat(self) -> AbstractContextManager[None]:
        """Tells SQL, while it lasts, that the trial is being worked at."""
        return workers.heartbeat(lambda: record_heartbeat(self.study, self.trial_id))


def is_alive(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Whether the worker of a running trial is at work, as far as can be told."""
    worker = trial.user_attrs.get(WORKER)
    if worker == workers.this_worker():
        return True
    if worker is not None and workers.worker_died(str(worker)):
        return False
    if trial._trial_id in stale_trial_ids(study):
        return False
    started = trial.datetime_start
    # A trial without a worker: its process may be about to write its name.
    return worker is not None or (
        started is None or (datetime.now() - started).total_seconds() <= workers.GRACE_SECONDS
    )


def fail_if_dead(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Mark a running trial as failed if its worker died, so that it cannot publish anything later; whether it did."""
    is_dead = not is_alive(study, trial)
    if is_dead:
        fail(study, trial._trial_id, "its worker died")
    return is_dead


class Claims:
    """Takes positions of a study for this worker.

    Args:
        history: of the study; is refreshed here.
        encode: the parameters of a candidate, for trials that are enqueued with one.
    """

    def __init__(self, history: History, encode: Encode) -> None:
        self._history = history
        self._study = history.study
        self._encode = encode

    def enqueue(
        self, given: Mapping[str, Candidate], kind: str = BASELINE, labels: Mapping[str, str] | None = None
    ) -> None:
        """Baselines come first, so that every study carries its own comparison, then warm starts; each once.

        Args:
            given: candidates by name, in the order in which they are run.
            kind: ``BASELINE`` or ``START``.
            labels: what tables call a candidate, where it is more than its name.
        """
        known = self._history.refresh().given_names(kind)
        for name, candidate in given.items():
            if name not in known:
                attributes = {
                    kind: name,
                    CANDIDATE: candidate.to_json(),
                    ORIGIN: kind if kind == BASELINE else f"{kind} {name}",
                }
                if labels and name in labels:
                    attributes[LABEL] = labels[name]
                self._study.enqueue_trial(self._encode(candidate), user_attrs=attributes)
        self._drop_duplicates()

    def _drop_duplicates(self) -> None:
        """Of what several workers enqueued, since neither saw the other's, only the first is run."""
        first: set[tuple[str, str]] = set()
        for _, trial in sorted(self._history.refresh().trials.items()):
            name = None if RETRY_OF in trial.user_attrs else given_name(trial)
            if name in first and trial.state == TrialState.WAITING:
                fail(self._study, trial._trial_id, "another worker enqueued it first")
            if name is not None:
                first.add(name)

    def take(self, wanted: int) -> Claim | None:
        """The next position, its trial running under this worker's name; None where ``wanted`` positions are taken.

        A position whose worker died comes before a new one.
        """
        while True:
            self.recover(wanted)
            if len(self._taken()) >= wanted:
                return None
            waiting = self._history.unfinished(TrialState.WAITING)
            trial_id = start_trial(self._study, waiting[0] if waiting else None)
            if trial_id is None:  # another worker took the waiting trial
                continue
            trials = self._history.refresh().trials.values()
            number = next(trial.number for trial in reversed(trials) if trial._trial_id == trial_id)
            position = self._history.position(number)
            if sum(taken < position for taken in self._taken()) >= wanted:
                fail(self._study, trial_id, NOT_WANTED)
                continue
            return Claim(self._study, trial_id, number, position)

    def recover(self, wanted: int) -> int:
        """Fail the trials whose worker died, and enqueue each open position below ``wanted``; how many had died.

        A trial that is finished already is left alone, and a position that another worker retried first is retried by
        that worker.
        """
        lost = [trial for trial in self._running() if fail_if_dead(self._study, trial)]
        self._retry_open(wanted)
        return len(lost)

    def retry_failures_in_a_row(self, count: int) -> None:
        """Where the last ``count`` trials to finish all failed to be measured, which stops a run, try them again."""
        trials = self._history.refresh().trials.values()
        finished = [trial for trial in trials if trial.datetime_complete is not None]
        last = sorted(finished, key=lambda trial: (trial.datetime_complete, trial.number))[-count:]
        if len(last) == count and all(trial.user_attrs.get(EVALUATION_FAILED) for trial in last):
            for position in sorted({self._history.position(trial.number) for trial in last}):
                self._enqueue_again(position)
        self._history.refresh()

    def release(self, reason: str, wanted: int) -> None:
        """Whatever stopped the run: no trial of this worker stays running, and each is retried first next time."""
        for trial in self._running():
            if trial.user_attrs.get(WORKER) == workers.this_worker():
                fail(self._study, trial._trial_id, reason)
        self._retry_open(wanted)

    def has_live_workers(self) -> bool:
        """Whether anybody works at a trial, as far as can be told."""
        return any(is_alive(self._study, trial) for trial in self._running())

    def _running(self) -> list[FrozenTrial]:
        return self._history.refresh().unfinished(TrialState.RUNNING)

    def _taken(self) -> set[int]:
        """Positions that are settled, or at which a live worker works."""
        running = self._history.unfinished(TrialState.RUNNING)
        live = {self._history.position(trial.number) for trial in running if is_alive(self._study, trial)}
        return self._history.settled | live

    def _retry_open(self, wanted: int) -> None:
        """Enqueue every open position below ``wanted``."""
        for position in self._history.refresh().open_positions:
            if position >= wanted:
                break  # ascending; these are for a run that wants more
            self._enqueue_again(position)
        self._history.refresh()

    def _enqueue_again(self, position: int) -> None:
        """A waiting trial at the position, with the candidate it had, if it had one."""
        attributes: dict[str, Any] = {RETRY_OF: position}
        parameters: dict[str, Any] = {}
        for trial in self._history.at(position):
            attributes |= {key: trial.user_attrs[key] for key in INHERITED if key in trial.user_attrs}
            candidate = candidate_of(trial)
            parameters = parameters if candidate is None else self._encode(candidate)
        self._study.enqueue_trial(parameters, user_attrs=attributes)
