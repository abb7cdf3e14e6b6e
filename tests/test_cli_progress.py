"""What the command line shows while it works: on stderr, a bar or lines."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autodiffusion_opt.study.progress_bar import Bar, StudyBar, speed

Write = Callable[..., Path]
Call = Callable[..., tuple[int, str, str]]


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time flies: what waits ten seconds for its next line has waited them."""
    monkeypatch.setattr("autodiffusion_opt.study.progress_bar.Bar.INTERVAL", 0.0)


@pytest.mark.usefixtures("slow")
def test_progress_without_a_terminal(ran: tuple[Path, str], study_file: Write, url: str, call: Call) -> None:
    code, _, err = call("run", study_file(), "--storage", url, "--trials", 2)
    assert code == 0
    for line in ("loading digits", "trial 0/2", "trial 1/2  best ", "(1.00 of own's"):
        assert line in err, err
    _, out, err = call("verify", "small", "--storage", ran[1], "--images", 20, "--repeats", 1, "--json")
    assert "re-scoring images 20/" in err
    assert json.loads(out)
    _, _, err = call("sample", "small", "--storage", ran[1], "-n", 15)
    assert "sampling images 10/60" in err  # of own, best, uniform and teacher
    assert "sampling images 60/60" in err
    _, _, err = call("export", "small", "--storage", ran[1], "-o", "folder")
    assert "loading digits" in err


def test_the_bar_of_a_worker_counts_the_trials_of_all(ran: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from autodiffusion_opt import Study
    from autodiffusion_opt.trials.history import History
    from autodiffusion_opt.trials.studies import find_study

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    study = Study.load(ran[0], storage=ran[1])
    stored = find_study(study.storage, "small")
    assert stored is not None
    whole = History(stored).refresh()
    part = History(stored)
    for number in range(3):
        part._take(whole.trials[number])
    with StudyBar() as bar:
        bar.started(study.config, part, 14)
        assert "continuing after 3 of 14 trials" in screen.getvalue()
        for number in range(3, 9):  # one of them is this worker's
            part._take(whole.trials[number])
        bar.finished(whole.trials[3], part)
    best = min(whole.trials[number].values[0] for number in range(9))
    shown = screen.getvalue()
    assert "trial 9/14" in shown
    assert f"best {best:.4g}" in shown
    assert f"now {whole.trials[3].values[0]:.4g}" in shown


def test_no_bar_is_shown_where_nobody_looks_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from autodiffusion_opt.study.callback import Callback
    from autodiffusion_opt.study.progress_bar import shown

    def kind(progress: bool | Callback | None) -> type:
        with shown(progress) as callback:
            return type(callback)

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert [kind(progress) for progress in (None, False, True)] == [Callback, Callback, StudyBar]
    monkeypatch.setattr(sys, "stderr", Screen())
    assert [kind(progress) for progress in (None, False, True)] == [StudyBar, Callback, StudyBar]
    own = Callback()
    with shown(own) as callback:
        assert callback is own


@pytest.mark.parametrize(("text", "shown"), [(None, "0:00 left"), ("best 7", "best 7")])
def test_progress_on_a_terminal(text: str | None, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with Bar() as bar:
        assert screen.getvalue() == ""  # not before there is something to show
        for done in range(3):
            bar("measuring reference", done, 2, text)
    assert "measuring reference 2/2" in screen.getvalue()
    assert shown in screen.getvalue()


@pytest.mark.parametrize(
    ("images", "seconds", "said"),
    [
        (120, 10.0, "12 images/s"),
        (25, 10.0, "2.5 images/s"),
        (10, 10.0, "1.0 images/s"),
        (3, 10.0, "3.33 s/image"),
        (1, 75.0, "75 s/image"),
    ],
)
def test_the_speed_of_a_slow_model_is_in_seconds_an_image(images: int, seconds: float, said: str) -> None:
    assert speed(images, seconds) == said


def test_on_a_narrow_terminal_the_count_is_whole_and_the_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "60")
    with Bar() as bar:
        bar("trial", 9, 10, "best 227.2  (0.98 of own's 231.5)  now 246.3  62 images/s  0:01 left")
    assert "trial 9/10  best 227.2  (0.98 of own's 231.5)" in screen.getvalue()
