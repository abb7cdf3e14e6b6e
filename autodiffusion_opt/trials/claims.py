"""Positions are claimed one at a time, so that no two workers measure the same; a dead worker's are retried."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError, named_reason_of
from autodiffusion_opt.trials import workers
from autodiffusion_opt.trials.attributes import (
    BASELINE,
    CANDIDATE,
    FIXED_PARAMETERS,
    INHERITED,
    LABEL,
    ORIGIN,
    RETRY_OF,
    WORKER,
    WORKER_DIED,
    candidate_of,
)
from autodiffusion_opt.trials.database import without_password
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.storage import Storage
from autodiffusion_opt.trials.studies import fail

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

    def together(self) -> AbstractContextManager[None]:
        """What is written of the trial meanwhile is written in one transaction, at the end."""
        return storage_of(self.study).together()

    def heartbeat(self) -> AbstractContextManager[None]:
        """Tells SQL, while it lasts, that the trial is being worked at."""
        return workers.heartbeat(lambda: storage_of(self.study).record_heartbeat(self.trial_id))


def storage_of(study: optuna.Study) -> Storage:
    """Where the study is kept."""
    assert isinstance(study._storage, Storage)
    return study._storage


def is_alive(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Whether the worker of a running trial is at work: :func:`alive`."""
    return bool(alive(study, [trial]))


def alive(study: optuna.Study, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The running trials whose workers are at work, as far as can be told.

    On this machine its process tells, elsewhere its heartbeat, by the database's own clock. While the database was gone
    nobody could tell it of a heartbeat: for a while after that all count as alive. A trial without a worker was begun
    by another program, and is left to it.
    """
    storage = storage_of(study)
    was_gone = storage.back_since is not None and time.monotonic() < storage.back_since + workers.GRACE_SECONDS
    stale: set[int] | None = None  # asked for once
    living = []
    for trial in trials:
        worker = trial.user_attrs.get(WORKER)
        is_there = None if worker is None else workers.is_there(str(worker))
        if is_there is None and not was_gone:
            stale = storage.stale_trial_ids(study._study_id) if stale is None else stale
            is_there = trial._trial_id not in stale
        if is_there or (is_there is None and was_gone):
            living.append(trial)
    return living


def fail_if_dead(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Mark a running trial as failed if its worker died, so that it cannot publish anything later; whether it did."""
    is_dead = not is_alive(study, trial)
    if is_dead:
        fail(study, trial._trial_id, WORKER_DIED)
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
        self._storage = storage_of(history.study)
        self._name = history.study.study_name
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
                self._enqueue(candidate, attributes, kind, known=0)

    def take(self, wanted: int) -> Claim | None:
        """The next position, its trial running under this worker's name; None where ``wanted`` positions are taken.

        A position whose worker died comes before a new one.
        """
        while True:
            self.recover(wanted)
            if len(self._taken()) >= wanted:
                return None
            waiting = self._history.unfinished(TrialState.WAITING)
            first = min(waiting, key=lambda trial: self._history.position(trial.number), default=None)
            trial_id = self._storage.start(self._study._study_id, None if first is None else first._trial_id)
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
        running = self._running()
        living = {trial.number for trial in alive(self._study, running)}
        lost = [trial for trial in running if trial.number not in living]
        for trial in lost:
            fail(self._study, trial._trial_id, WORKER_DIED)
        if lost:
            self._history.refresh()
        self._retry_open(wanted)
        return len(lost)

    def retry_failures_in_a_row(self, count: int) -> None:
        """Where ``count`` candidates in a row failed to be measured, which stops a run, try them again."""
        last = self._history.refresh().failures_in_a_row(count)
        for position in sorted(last & self._history.settled):
            self._enqueue_again(position)
        if last:
            self._history.refresh()

    def release(self, reason: str, wanted: int) -> None:
        """Whatever stopped the run: no trial of this worker stays running, and each is retried first next time."""
        for trial in self._running():
            if trial.user_attrs.get(WORKER) == workers.this_worker():
                fail(self._study, trial._trial_id, reason)
        self._history.refresh()
        self._retry_open(wanted)

    @contextmanager
    def released_on_error(self, wanted: int) -> Iterator[None]:
        """Whatever ends the block: :meth:`release`, with the error as the reason.

        Where the database is gone too, that is not written; then this worker's trials are those of a dead worker.

        Raises:
            UserError: where somebody deleted the study meanwhile.
        """
        try:
            yield
        except BaseException as error:
            with suppress(Exception):
                self.release(named_reason_of(error)[:500], wanted)
            if isinstance(error, KeyError) and self._is_deleted():
                raise UserError(
                    f"the study {self._name!r} was deleted from storage {without_password(self._storage.url)} while "
                    "it was run: run it again to begin anew"
                ) from None
            raise

    def _is_deleted(self) -> bool:
        """Whether the study is not in the database any more."""
        try:
            self._storage.get_study_name_from_id(self._study._study_id)
        except KeyError:
            return True
        return False

    def others_at_work(self, wanted: int) -> int:
        """How many of the ``wanted`` positions other workers are measuring, as far as can be told."""
        return sum(self._history.position(trial.number) < wanted for trial in alive(self._study, self._running()))

    def _running(self) -> list[FrozenTrial]:
        return self._history.refresh().unfinished(TrialState.RUNNING)

    def _taken(self) -> set[int]:
        """Positions that are settled, or at which a live worker works."""
        running = self._history.unfinished(TrialState.RUNNING)
        live = {self._history.position(trial.number) for trial in alive(self._study, running)}
        return self._history.settled | live

    def _retry_open(self, wanted: int) -> None:
        """Enqueue every open position below ``wanted``."""
        wanted_again = [position for position in self._history.open_positions if position < wanted]
        for position in wanted_again:
            self._enqueue_again(position)
        if wanted_again:
            self._history.refresh()

    def _enqueue_again(self, position: int) -> None:
        """A waiting trial at the position, with the candidate it had, if it had one; unless another worker did so."""
        attributes: dict[str, Any] = {RETRY_OF: position}
        last = None
        trials = self._history.at(position)
        for trial in trials:
            attributes |= {key: trial.user_attrs[key] for key in INHERITED if key in trial.user_attrs}
            last = candidate_of(trial) or last
        self._enqueue(last, attributes, RETRY_OF, known=sum(RETRY_OF in trial.user_attrs for trial in trials))

    def _enqueue(self, candidate: Candidate | None, attributes: dict[str, Any], key: str, known: int) -> None:
        """A waiting trial, unless other workers made one: there are more trials with its ``key`` than ``known``."""
        parameters = {} if candidate is None else self._encode(candidate)
        template = optuna.trial.create_trial(
            state=TrialState.WAITING, user_attrs=attributes, system_attrs={FIXED_PARAMETERS: parameters}
        )
        self._storage.enqueue_once(self._study._study_id, template, key, known)
