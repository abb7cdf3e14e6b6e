"""What notebooks draw: a study's plots, and a candidate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

import autodiffusion_opt as ado


def test_a_study_draws_itself(url: str, study_file: Callable[..., Path]) -> None:
    study = ado.Study.load(study_file(images="images = 10"), storage=url)
    study.run(trials=9, progress=False)
    assert len(study.plot_convergence().data) > 3
    assert "best" in str(study.plot_schedule().data[-1].y[0])
    assert len(study.plot_front().data) == 2
    picture = study.plot_images(count=4)
    assert picture.width > picture.height > 60
    with pytest.raises(ado.UserError, match="none of the best candidates of 'small' removes a layer"):
        study.plot_layers()


@pytest.mark.parametrize("removed", [None, [[1, 2], [], [3]]])
def test_a_candidate_draws_a_bar_a_step_in_the_order_of_time(removed: list[list[int]] | None) -> None:
    candidate = ado.Candidate.from_time_steps([900, 300, 4.5], removed)
    drawn = ElementTree.fromstring(f"<div>{candidate._repr_html_()}</div>")
    bars = drawn.findall("svg/rect")
    places = [float(bar.get("x", "")) for bar in bars]
    assert places == sorted(places)
    assert [bar.findtext("title") for bar in bars] == list(map(str, candidate.steps))
    heights = [float(bar.get("height", "")) for bar in bars]
    assert (heights[0] < heights[2] < heights[1]) if removed else (len(set(heights)) == 1)


def test_a_partial_step_is_drawn_as_an_empty_bar() -> None:
    candidate = ado.Candidate((ado.Step(900), ado.Step(400, branch=0)))
    drawn = ElementTree.fromstring(f"<div>{candidate._repr_html_()}</div>")
    assert [bar.get("fill") for bar in drawn.findall("svg/rect")] == ["currentColor", "none"]
