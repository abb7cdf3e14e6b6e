"""What a study needs of its storage: Optuna's interface, trials that start and are enqueued once, and patience.

A database that is gone is waited for: its server was restarted, its network failed, its file is locked.
"""

from __future__ import annotations

import functools
import random
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, TypeVar

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from autodiffusion_opt import signals
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.trials import database

T = TypeVar("T")
# Seconds between two attempts to reach a database that is gone: doubled from the first to the last.
FIRST_PAUSE, LAST_PAUSE = 0.1, 10.0


class Storage(BaseStorage):
    """Where studies and their trials are kept.

    Attributes:
        errors: that its calls raise where it cannot be reached.
        url: of the database.
        patience: seconds for which a database that is gone is waited for.
        back_since: when it was back, by the clock of :func:`time.monotonic`; None where it was never gone.
    """

    errors: ClassVar[tuple[type[Exception], ...]]
    url: str
    patience: float = 0.0
    back_since: float | None = None

    def patiently(self, call: Callable[[bool], T]) -> T:
        """What a transaction returns, tried again while the database is gone; signals wait until it is written.

        Args:
            call: makes the transaction. It is given whether an attempt failed before, which may have been written.

        Raises:
            UserError: where the database does not come back in time, or cannot be used.
        """
        lost: float | None = None
        pause = FIRST_PAUSE
        while True:
            try:
                with signals.held_back():
                    self._reach()
                    result = call(lost is not None)
                if lost is not None:
                    self.back_since = time.monotonic()
                    _warn(f"the database is back after {self.back_since - lost:.0f} s")
                return result
            except self.errors as error:
                if not self._may_pass(error):
                    raise UserError(database.what_to_do(error, self.url)) from error
                now = time.monotonic()
                if lost is None:
                    lost = now
                    if self.patience:
                        gone = f"storage {database.without_password(self.url)} is gone: {database.first_line(error)}"
                        _warn(f"{gone}. Waiting for it, up to {self.patience:.0f} s")
                if now + pause > lost + self.patience:
                    raise UserError(
                        f"{database.what_to_do(error, self.url)}; waited {now - lost:.0f} s. Run the study again when "
                        "it can be reached: it goes on"
                    ) from error
            self._let_go()
            time.sleep(pause * (0.5 + random.random() / 2))  # not all workers at once
            pause = min(2 * pause, LAST_PAUSE)

    def _may_pass(self, error: Exception) -> bool:
        """Whether it may work again by itself."""
        return database.may_pass(error, self.url)

    @abstractmethod
    def start(self, study_id: int, trial_id: int | None) -> int | None:
        """Start a waiting trial, or a new one, with this worker's name and a heartbeat.

        Args:
            study_id: of the study.
            trial_id: of a waiting trial; None for a new one.

        Returns:
            The trial's id; None where another worker took the waiting one.
        """

    @abstractmethod
    def enqueue_once(self, study_id: int, template: FrozenTrial, key: str, known: int) -> bool:
        """Create a waiting trial, unless somebody did meanwhile.

        Args:
            study_id: of the study.
            template: the trial.
            key: of its user attributes, which says what is enqueued once.
            known: how many trials with the same value of that attribute the caller has seen.

        Returns:
            Whether it was created.
        """

    @abstractmethod
    def together(self) -> AbstractContextManager[None]:
        """What is set of trials meanwhile, their last state too, is written at the end, in one transaction.

        Until then it is not there to be read.
        """

    @abstractmethod
    def stale_trial_ids(self, study_id: int) -> set[int]:
        """Running trials whose heartbeat stopped; by the database's own clock."""

    @abstractmethod
    def record_heartbeat(self, trial_id: int) -> None:
        """Tell that a trial is being worked at; a database that is gone is left alone until the next time."""

    @abstractmethod
    def new_trials(self, study_id: int, unfinished: set[int], last_id: int) -> list[FrozenTrial]:
        """The trials whose ids are above ``last_id`` or among ``unfinished``."""

    @abstractmethod
    def changed(self, study_id: int, measuring: set[int], proposing: set[int]) -> set[int]:
        """The ids of trials that ran and run no longer or, of those among ``proposing``, that have a candidate now."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the database; it may be used again."""

    @abstractmethod
    def _reach(self) -> None:
        """Raise UserError where it is not what was opened."""

    @abstractmethod
    def _let_go(self) -> None:
        """Of what was connected to a database that is gone."""


def _warn(text: str) -> None:
    """With the time of day, since Python shows an equal warning once."""
    warnings.warn(f"{time.strftime('%H:%M:%S')}: {text}", stacklevel=4)


def patient(method: Callable[..., T]) -> Callable[..., T]:
    """A method that waits for a database that is gone."""

    @functools.wraps(method)
    def call(self: Storage, *arguments: Any, **keywords: Any) -> T:
        return self.patiently(lambda _: method(self, *arguments, **keywords))

    return call
