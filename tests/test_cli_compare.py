"""``autodiffusion-opt compare``: tables, JSON, pictures and pages, and what is measured again."""

from __future__ import annotations

import importlib.util
import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image

import autodiffusion_opt as ado
from autodiffusion_opt.objective import Score
from autodiffusion_opt.report.comparison import sheets
from autodiffusion_opt.report.plots import LABEL_GAP, _label_beside, draw, page
from autodiffusion_opt.study.comparison import OptimizerComparison

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, study_text: str) -> str:
    """Small studies of two optimizers with two seeds each, and one of two steps; the database."""
    place = tmp_path_factory.mktemp("compared")
    (place / "small.toml").write_text(study_text.replace("trials = 14", "trials = 10"))
    url = f"sqlite:///{place}/studies.db"
    changes: tuple[tuple[str, int], ...] = (("optimizer=random", 0), ("optimizer=random", 1), ("space.steps=2", 0))
    for change, seed in (*changes, ("optimizer=evolution", 0), ("optimizer=evolution", 1)):
        ado.Study.load(place / "small.toml", storage=url, seed=seed, overrides=(change,)).run(progress=False)
    return url


def plain(url: str, name: str, *, steps: int = 3, seed: int = 0, trials: int = 9, **settings: Any) -> None:
    """A study without a pipeline: the value is the mean time."""
    ado.Study(
        name,
        space={"kind": "time-steps", "steps": steps},
        objective=ado.CandidateMetric(mean_time, identity="mean", name="mean <b>$x$", **settings),
        optimizer="random",
        model_info=ado.ModelInfo(train_steps=1000),
        trials=trials,
        seed=seed,
        storage=url,
    ).run(progress=False)


def mean_time(candidate: ado.Candidate) -> float:
    return sum(candidate.times) / len(candidate.times)


def test_optimizers_as_a_table_and_as_json(searched: str, call: Call) -> None:
    code, out, err = call("compare", "small*optimizer*", "--storage", searched)
    assert (code, err) == (0, "")
    for text in ("optimizer", "images to within 5 %", "evolution", "random", "own = leading", "of own"):
        assert text in out
    code, out, _ = call("compare", "small*optimizer*", "--storage", searched, "--within", "1,50", "--json")
    told = json.loads(out)
    assert (code, told["compared"], told["value"], told["axis"]) == (0, "optimizers", "fid", "images")
    assert {entry["optimizer"] for entry in told["optimizers"]} == {"evolution", "random"}
    assert all(set(entry["within"]) == {"1", "50"} for entry in told["optimizers"])
    assert all(study["images"] <= 200 and study["rescored"] is None for study in told["studies"])
    finals = [study["winner"]["value"] for study in told["studies"]]
    assert told["best"]["value"] == min(finals)
    assert {name: (entry["final"]["low"], entry["final"]["high"]) for name, entry in enumerate(told["optimizers"])} == {
        0: (min(finals[:2]), max(finals[:2])),
        1: (min(finals[2:]), max(finals[2:])),
    }


@pytest.mark.slow
def test_winners_are_measured_again_on_shared_noise(searched: str, call: Call) -> None:
    words = ("compare", "small*optimizer*", "--storage", searched, "--verify", "--images", 20, "--repeats", 2)
    code, out, _ = call(*words, "--json")
    told = json.loads(out)
    assert (code, told["rescoring"]) == (0, {"images": 20, "repeats": 2})
    scored = {study["study"]: study for study in told["studies"]}
    verified = json.loads(
        call(
            *("verify", "small+optimizer=random", "--storage", searched, "--images", 20, "--repeats", 2, "--json"),
        )[1]
    )
    study = scored["small+optimizer=random"]
    assert study["rescored"]["values"] == verified["best"]["values"]
    assert study["own_rescored"]["values"] == verified["baselines"]["own"]["values"]
    assert any("'s winner (" in sentence for sentence in told["sentences"])
    code, out, _ = call(*words)
    assert code == 0
    for text in ("fresh noise, mean", "std", "names are without what all share: small", "own = leading"):
        assert text in out


def test_numbers_of_steps_are_a_front(searched: str, call: Call) -> None:
    names = ("small+space.steps=2", "small+optimizer=evolution")
    code, out, _ = call("compare", *names, "--storage", searched, "--json")
    told = json.loads(out)
    assert (code, told["compared"], told["cost"]) == (0, "steps", "nfe")
    assert [study["winner"]["nfe"] for study in told["studies"]] == [2, 4]
    assert told["front"][0] == names[0]
    words = ("--verify", "--images", 20, "--repeats", 3)
    code, out, _ = call("compare", *names, "--storage", searched, *words)
    assert code == 0
    assert "front" in out
    assert "paired over repeats" in out or "dominated by" in out


def test_what_cannot_be_measured_again_is_in_no_front(searched: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from autodiffusion_opt.objective.image_objective import ImageObjective

    def measure(self: Any, candidate: ado.Candidate, **_: Any) -> Any:
        if len(candidate.steps) == 2:
            raise ado.EvaluationError("no image is finite")
        yield Score({"fid": 3.0}, images=20, seconds=0.0)

    monkeypatch.setattr(ImageObjective, "measure", measure)
    names = ["small+space.steps=2", "small+optimizer=evolution"]
    compared = ado.compare(names, searched, verify=True, images=20, repeats=2)
    assert [study.name for study in compared.front] == names[1:]  # type: ignore[union-attr]
    (sheet,) = sheets(compared)
    assert ["not measured" in row for row in sheet.rows] == [True, False]
    draw(compared)


@pytest.mark.slow
def test_a_study_with_no_candidate_within_its_bounds_never_comes_near(url: str, call: Call) -> None:
    for name, trials in (("baselines", 2), ("searched", 60)):
        plain(url, name, seed=trials, trials=trials, at_most={"mean <b>$x$": 250})
    compared = ado.compare("*", url)
    assert isinstance(compared, OptimizerComparison)
    (summary,) = compared.optimizers
    assert (summary.final.low, summary.final.high) == (compared.best.searched, math.inf)
    assert (summary.within[20.0].seeds, summary.within[20.0].of) == (1, 2)
    assert summary.winner.name == "searched"
    assert "to none" in call("compare", "*", "--storage", url)[1]
    assert None in json.loads(call("compare", "*", "--storage", url, "--json")[1])["studies"][0]["curve"]["best"]
    draw(compared)
    code, _, err = call("compare", "baselines", "--storage", url)
    assert code == 2
    assert "none of the 2 complete trials of 'baselines' keeps to its bounds" in err


def test_a_study_made_in_python_cannot_be_measured_again_from_here(url: str, call: Call) -> None:
    plain(url, "a")
    code, _, err = call("compare", "a", "--storage", url, "--verify")
    assert code == 2
    assert "came from Python" in err


# Pictures.


@pytest.mark.slow
def test_a_picture_of_each_kind_is_written(searched: str, call: Call, tmp_path: Path) -> None:
    for ending in ("png", "svg", "html"):
        for names in (["small*optimizer*"], ["small*steps*", "small+optimizer=random"]):
            path = tmp_path / f"plot.{ending}"
            code, out, err = call("compare", *names, "--storage", searched, "-o", path)
            assert (code, err) == (0, f"wrote {path}\n")
            assert out
            if ending == "png":
                with Image.open(path) as picture:
                    assert picture.width > 1000
            elif ending == "svg":
                assert ElementTree.parse(path).getroot().tag.endswith("svg")
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix == ".tmp") == []


def test_a_picture_is_the_same_every_time(searched: str, call: Call, tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        assert call("compare", "small*optimizer*", "--storage", searched, "-o", tmp_path / "plot.svg")[0] == 0
        contents.append((tmp_path / "plot.svg").read_bytes())
    assert contents[0] == contents[1]


def test_curves_are_steps_with_a_band_and_the_baseline_is_a_line(searched: str) -> None:
    compared = ado.compare("small*optimizer*", searched)
    (axes,) = draw(compared).axes
    curves = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert (len(curves), len(axes.lines), len(axes.collections)) == (2, 3, 2)
    assert axes.get_xlabel() == "images generated"
    assert axes.get_ylabel() == "fid (less is better)"
    assert {text.get_text() for text in axes.texts} == {"evolution", "random", "own"}
    own = next(study.own for study in compared.studies if study.own is not None)
    flat = next(line for line in axes.lines if line.get_drawstyle() != "steps-post")
    assert set(flat.get_ydata()) == {own.value}


@pytest.mark.parametrize("values", [[1.0] * 9, [0.0, 5.0, 5.01, 5.02, 10.0]])
def test_labels_beside_the_axes_do_not_overlap(values: list[float]) -> None:
    axes = Figure().add_subplot()
    axes.set_ylim(0, 10)
    _label_beside(axes, [(value, str(index), "black") for index, value in enumerate(values)])
    heights = sorted(text.xy[1] for text in axes.texts if isinstance(text, Annotation))
    assert len(heights) == len(values)
    assert all(after - before > LABEL_GAP - 1e-9 for before, after in pairwise(heights))
    assert heights[-1] <= 1


class Text(HTMLParser):
    """What a page shows, and its tags."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.shown: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(content)

    def handle_data(self, data: str) -> None:
        self.shown.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]


def test_a_page_needs_nothing_beside_it_and_escapes_names(url: str, call: Call, tmp_path: Path) -> None:
    plain(url, "<script>a</script>")
    plain(url, "$b$ & [red]", steps=2)
    path = tmp_path / "page.html"
    code, out, _ = call("compare", "*", "--storage", url, "-o", path)
    assert code == 0
    assert "[red]" in out
    content = Text(path.read_text(encoding="utf-8"))
    assert "script" not in content.tags
    assert "b" not in content.tags
    assert {"svg", "table"} <= set(content.tags)
    assert "<script>a</script>" in content.shown
    assert "$b$ & [red]" in content.shown
    assert all(link.startswith("#") for link in content.links)


def test_a_page_says_what_the_terminal_says(searched: str) -> None:
    compared = ado.compare("small*optimizer*", searched)
    shown = Text(page(compared, "<?xml?><svg/>")).shown
    for sheet in sheets(compared):
        assert {cell for row in sheet.rows for cell in row if cell} <= set(shown)
    assert set(compared.sentences) <= set(shown)


@pytest.mark.slow
def test_a_curve_without_a_value_at_first_is_drawn(url: str) -> None:
    plain(url, "a", direction="maximize")
    (axes,) = draw(ado.compare("a", url)).axes
    assert axes.get_ylabel().endswith("(more is better)")
    assert axes.get_xlabel() == "trials finished"
    assert all(math.isfinite(float(value)) for line in axes.lines for value in line.get_ydata())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing",), "must be one of: small"),
        (("small*", "--within", "five"), "such as 5,20; got 'five'"),
        (("small*optimizer*", "-o", "plot.pdf"), "-o must end in .png, .svg, .html; got plot.pdf"),
        (("small*optimizer*", "-o", "nowhere/plot.png"), "-o: the folder nowhere must exist"),
    ],
)
def test_mistakes(words: tuple[str, ...], message: str, searched: str, call: Call) -> None:
    code, out, err = call("compare", *words, "--storage", searched)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err


def test_without_matplotlib_the_command_that_installs_it_is_told(
    searched: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    code, out, err = call("compare", "small*optimizer*", "--storage", searched, "-o", "plot.png")
    assert (code, out) == (2, "")
    assert err == "error: a picture needs matplotlib: pip install 'autodiffusion-opt[plots]'\n"
    assert call("compare", "small*optimizer*", "--storage", searched)[0] == 0
