"""What is told while a study runs."""

from __future__ import annotations

from optuna.trial import FrozenTrial

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.study.config import StudyConfig
from autodiffusion_opt.trials.history import History


class Callback:
    """Is told of a running study; every method may be overridden. An exception from a method stops the run."""

    def progress(self, what: str, done: int, total: int) -> None:
        """A :class:`~autodiffusion_opt.progress.Progress`: model, layers, reference, the current trial's images."""

    def started(self, config: StudyConfig, history: History, wanted: int) -> None:
        """The study is open; ``history`` has the trials in SQL."""

    def proposed(self, number: int, candidate: Candidate) -> None:
        """A trial begins."""

    def finished(self, trial: FrozenTrial, history: History) -> None:
        """A trial is finished, in SQL; ``history`` has all there are now, other workers' too."""
