"""What the terminal shows: tables on stdout, progress on stderr."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TextIO

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.study.config import StudyConfig
from autodiffusion_opt.study.run import Watch, baseline_trials
from autodiffusion_opt.trials.history import STAGE, candidate_of, completed, value_of
from autodiffusion_opt.study.verify import Rescored

UNIFORM = "leading"
WIDE = 160


def out() -> Console:
    """The console of results."""
    return _console(sys.stdout)


def err() -> Console:
    """The console of progress and status."""
    return _console(sys.stderr)


def _console(file: TextIO) -> Console:
    """Wide where nobody looks: a table in a file or a pipe is not folded to 80 columns."""
    return Console(file=file, highlight=False, width=None if file.isatty() else WIDE)


class Bar:
    """Progress on stderr: a bar on a terminal, a line every ten seconds elsewhere. A :data:`Progress` to call."""

    INTERVAL = 10.0

    def __init__(self) -> None:
        self.console = err()
        self._bar = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._task: TaskID | None = None
        self._what = ""
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, what: str, done: int, of: int, text: str | None = None) -> None:
        """Show it, with the time left unless ``text`` says something else.

        The bar appears at the first call: what others print before that is left alone.
        """
        counts = f"{what} {done}/{of}" if of else what
        text = self._left(what, done, of) if text is None else text
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(counts, total=None, text=text)
        self._bar.update(self._task, description=counts, completed=done, total=of or None, text=text)
        if not self.console.is_terminal and time.monotonic() - self._said >= self.INTERVAL:
            self._said = time.monotonic()
            self.console.print(f"{counts}  {text}".rstrip())

    def _left(self, what: str, done: int, of: int) -> str:
        if what != self._what:
            self._what, self._began = what, time.monotonic()
        return f"{clock((of - done) * (time.monotonic() - self._began) / done)} left" if done else ""


class LiveWatch(Watch):
    """A study's bar: trial n/N, best, its factor to the uniform baseline, current value, images/s, time left."""

    def __init__(self) -> None:
        self._bar = Bar()
        self._best = self._uniform = math.inf
        self._done = self._start_done = self._wanted = self._images = self._before = 0
        self._start = time.monotonic()
        self._value = math.nan

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def preparing(self, what: str, done: int, of: int) -> None:
        """What comes before the first trial."""
        self._bar(what, done, of)

    def started(self, plan: StudyConfig, trials: list[FrozenTrial], wanted: int) -> None:
        """Take over what SQL holds."""
        self._take(trials)
        self._start_done, self._wanted, self._start = self._done, wanted, time.monotonic()
        if 0 < self._done < wanted:
            self._bar.console.print(f"{plan.name}: continuing after {self._done} of {wanted} trials")
        self._show()

    def proposed(self, number: int, candidate: Candidate) -> None:
        """The trial's images are counted from nothing."""
        self._before += self._images
        self._images = 0

    def images(self, done: int, of: int) -> None:
        """Images of the current trial."""
        self._images = done
        self._show()

    def finished(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> None:
        """One more trial, and those of other workers."""
        self._take(trials)
        value = value_of(trial)
        self._value = math.nan if value is None else value
        self._show()

    def _take(self, trials: list[FrozenTrial]) -> None:
        """What SQL holds: how many trials, the best, the uniform baseline."""
        values = [value_of(trial) for trial in completed(trials)]
        self._done = len(values)
        self._best = min((value for value in values if value is not None), default=math.inf)
        uniform = baseline_trials(trials).get(UNIFORM)
        value = None if uniform is None else value_of(uniform)
        self._uniform = math.inf if value is None else value

    def _show(self) -> None:
        self._bar("trial", self._done, self._wanted, self._text())

    def _text(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        parts = []
        if math.isfinite(self._best):
            parts.append(f"best {self._best:.4g}")
        if math.isfinite(self._uniform) and math.isfinite(self._best):
            parts.append(f"({self._best / self._uniform:.2f} of uniform's {self._uniform:.4g})")
        if math.isfinite(self._value):
            parts.append(f"now {self._value:.4g}")
        parts.append(f"{(self._before + self._images) / seconds:.0f} images/s")
        run = self._done - self._start_done
        if run:
            parts.append(f"{clock((self._wanted - self._done) * seconds / run)} left")
        return "  ".join(parts)


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def run_summary(trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """What ``run --json`` prints."""
    ranked, baselines = completed(trials), baseline_trials(list(trials))
    best = ranked[0]
    uniform = baselines.get(UNIFORM)
    reference = None if uniform is None else value_of(uniform)
    value = value_of(best)
    return {
        "trials": len(ranked),
        "best": {"trial": best.number, "value": value, "candidate": _dict(best)},
        "baselines": {name: value_of(trial) for name, trial in baselines.items()},
        "factor": value / reference if reference and value is not None else None,
    }


def run_table(trials: Sequence[FrozenTrial]) -> Table:
    """Baselines and the best, with each one's share of the uniform baseline's value."""
    ranked, baselines = completed(trials), baseline_trials(list(trials))
    uniform = value_of(baselines[UNIFORM]) if UNIFORM in baselines else None
    table = Table("", "value", "of uniform", "NFE", "time steps")
    for name, trial in baselines.items():
        table.add_row(name, *_row(trial, uniform))
    table.add_row("best", *_row(ranked[0], uniform), style="bold")
    return table


def best_table(trials: Sequence[FrozenTrial]) -> Table:
    """Rank, value and candidate."""
    table = Table("rank", "trial", "value", "origin", "time steps")
    for rank, trial in enumerate(trials, 1):
        origin = str(trial.user_attrs.get("origin", ""))
        table.add_row(str(rank), str(trial.number), _number(value_of(trial)), origin, str(candidate_of(trial)))
    return table


def rescored_table(found: Mapping[str, Rescored]) -> Table:
    """Mean ± spread of each, and its share of the uniform baseline's mean."""
    uniform = found[UNIFORM].mean if UNIFORM in found else None
    table = Table("", "mean", "std", "of uniform", "time steps")
    for name, one in found.items():
        share = f"{one.mean / uniform:.3f}" if uniform else ""
        table.add_row(
            name, _number(one.mean), _number(one.std), share, str(one.candidate), style="bold" if name == "best" else ""
        )
    return table


def states(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """How many trials there are in each state, retried ones (failed) included."""
    return {state.name.lower(): sum(trial.state == state for trial in trials) for state in TrialState}


def last_stage(trials: Sequence[FrozenTrial]) -> str | None:
    """The stage of the newest trial that has one."""
    found = [trial.user_attrs[STAGE] for trial in trials if STAGE in trial.user_attrs]
    return str(found[-1]) if found else None


def _row(trial: FrozenTrial, uniform: float | None) -> tuple[str, str, str, str]:
    value = value_of(trial)
    share = f"{value / uniform:.3f}" if uniform and value is not None else ""
    nfe = str(trial.user_attrs.get("score", {}).get("nfe", ""))
    return _number(value), share, nfe, str(candidate_of(trial))


def _dict(trial: FrozenTrial) -> dict[str, Any] | None:
    candidate = candidate_of(trial)
    return None if candidate is None else candidate.to_dict()


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"
