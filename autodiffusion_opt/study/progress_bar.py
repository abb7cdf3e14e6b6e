"""Progress on stderr: a bar in a terminal or a notebook, a line every ten seconds elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.space.baselines import OWN, UNIFORM
from autodiffusion_opt.study.callback import Callback
from autodiffusion_opt.study.config import StudyConfig
from autodiffusion_opt.text import visible
from autodiffusion_opt.trials.history import MEASURED, History, front

WIDE = 160
NARROW = 100


@contextmanager
def shown(progress: bool | Callback | None) -> Iterator[Callback]:
    """The callback that a run tells.

    Args:
        progress: a callback; or whether a bar is shown, None: in a terminal or a notebook.
    """
    if isinstance(progress, Callback):
        yield progress
    elif progress or (progress is None and (sys.stderr.isatty() or _in_notebook())):
        with StudyBar() as bar:
            yield bar
    else:
        yield Callback()


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    running = None if shell is None else shell.get_ipython()
    return running is not None and "IPKernelApp" in running.config


class Bar:
    """A :class:`~autodiffusion_opt.progress.Progress` to call; shows the time left."""

    INTERVAL = 10.0

    def __init__(self) -> None:
        # Wide where nobody looks: a line in a file or a pipe is not folded to 80 columns.
        self.console = Console(
            file=sys.stderr, highlight=False, markup=False, emoji=False, width=None if sys.stderr.isatty() else WIDE
        )
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
        ]
        if self.console.width < NARROW:  # a line that is cut at its end, and not in each column
            columns = [TextColumn("{task.description}  {task.fields[text]}", markup=False)]
        self._bar = Bars(
            *columns,
            console=self.console,
            disable=not (self.console.is_terminal or self.console.is_jupyter),
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

    def __call__(self, what: str, done: int, total: int, text: str | None = None) -> None:
        """Show it, with the time left unless ``text`` says something else.

        The bar appears at the first call: what others print before that is left alone.
        """
        what = visible(what)
        counts = f"{what} {done}/{total}" if total else what
        if what != self._what:
            self._what, self._began = what, time.monotonic()
        if text is None:
            left = (total - done) * (time.monotonic() - self._began) / done if done else 0.0
            text = f"{duration(left)} left" if done else ""
        text = visible(text)
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(counts, total=None, text=text)
        self._bar.update(self._task, description=counts, completed=done, total=total or None, text=text)
        if not self.console.is_terminal and time.monotonic() - self._said >= self.INTERVAL:
            self._said = time.monotonic()
            self.console.print(f"{counts}  {text}".rstrip())


class StudyBar(Callback):
    """A study's bar: trial n/N, best, its share of the uniform baseline, current value, images/s, time left."""

    def __init__(self) -> None:
        self._bar = Bar()
        self._begun = time.monotonic()
        self._done = self._done_at_start = self._wanted = 0
        self._images = self._images_before = 0
        self._best = self._own = self._current = math.nan
        self._front: int | None = None
        self._is_running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def progress(self, what: str, done: int, total: int) -> None:
        """What comes before the first trial; then the images of the current trial."""
        if not self._is_running:
            self._bar(what, done, total)
            return
        self._images = done
        self._show()

    def started(self, config: StudyConfig, history: History, wanted: int) -> None:
        """Take over what SQL holds."""
        self._take(history)
        self._done_at_start, self._wanted, self._begun = self._done, wanted, time.monotonic()
        self._is_running = True
        if 0 < self._done < wanted:
            self._bar.console.print(f"{visible(config.name)}: continuing after {self._done} of {wanted} trials")
        self._show()

    def proposed(self, number: int, candidate: Candidate) -> None:
        """The trial's images are counted from nothing."""
        self._images_before += self._images
        self._images = 0

    def finished(self, trial: FrozenTrial, history: History) -> None:
        """Another trial, and those of other workers."""
        self._take(history)
        self._current = trial.values[0] if trial.state in MEASURED and trial.values else math.nan
        self._show()

    def _take(self, history: History) -> None:
        """How many trials there are, the best and the pipeline's own; of several values, how many are in the front."""
        self._done = len(history.settled)
        if len(history.directions) > 1:
            self._front = len(front(history.trials.values(), history.directions))
            return
        best = history.observations.before(sys.maxsize).best(1)
        if best:
            known = history.complete_with(best[0].candidate)
            self._best = known.values[0] if known is not None else math.nan
        compared = history.baseline(OWN) or history.baseline(UNIFORM)
        self._own = math.nan if compared is None else compared.values[0]

    def _show(self) -> None:
        seconds = max(time.monotonic() - self._begun, 1e-9)
        parts = []
        if self._front is not None:
            parts.append(f"front of {self._front}")
        if math.isfinite(self._best):
            parts.append(f"best {self._best:.4g}")
            if math.isfinite(self._own) and self._own:
                parts.append(f"({self._best / self._own:.2f} of own's {self._own:.4g})")
        if math.isfinite(self._current):
            parts.append(f"now {self._current:.4g}")
        images = self._images_before + self._images
        if images:
            parts.append(speed(images, seconds))
        run = self._done - self._done_at_start
        if run:
            parts.append(f"{duration((self._wanted - self._done) * seconds / run)} left")
        self._bar("trial", self._done, self._wanted, "  ".join(parts))


def speed(images: int, seconds: float) -> str:
    """``12 images/s``; of less than one a second ``3.4 s/image``."""
    if seconds > images:
        return f"{seconds / images:.3g} s/image"
    each_second = images / seconds
    return f"{each_second:,.0f} images/s" if each_second >= 10 else f"{each_second:.1f} images/s"


def duration(seconds: float) -> str:
    """m:ss, or h:mm:ss."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
