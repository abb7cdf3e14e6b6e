"""A real browser opens the report and the dashboard, and shows what they promise."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from browser import needs_browser, open_page
from optuna_dashboard import _importance

import autodiffusion_opt as ado
from autodiffusion_opt.report.dashboard import server
from autodiffusion_opt.report.page import page
from autodiffusion_opt.study.housekeeping import copy
from autodiffusion_opt.study.results import open_study
from autodiffusion_opt.trials.attributes import DEFINITION
from autodiffusion_opt.trials.opening import open_storage

pytestmark = [pytest.mark.slow, needs_browser]

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=alert(1)> **b** & \"q\""
# A prompt that would close the report's script, fill a template, be a formula, a link or code in Markdown.
HOSTILE_PROMPT = "</script><script>document.title='taken'</script> {{7*7}} $x^2$ `a` [b](javascript:alert(1)) '\""


@pytest.fixture(scope="module")
def hostile(ran: tuple[Path, str]) -> str:
    """The database, with a copy of the small study whose name is HTML, and whose prompt is more than that."""
    storage = open_storage(ran[1])
    copy("small", storage, ran[1], HOSTILE)
    study = open_study(HOSTILE, ran[1]).study
    definition = study.user_attrs[DEFINITION]
    conditions = {"kind": "prompts", "prompts": [HOSTILE_PROMPT]}
    objective = {**definition["objective"], "conditions": conditions}
    study.set_user_attr(DEFINITION, {**definition, "objective": objective})
    return ran[1]


@contextmanager
def serving(url: str) -> Iterator[str]:
    """The address of a dashboard that runs."""
    # Of the process, by a study's number and how many trials it has: another test's study may have the same.
    _importance.param_importance_cache.clear()
    with server(url, "127.0.0.1", 0) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/dashboard"
        finally:
            listening.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def address(hostile: str) -> Iterator[str]:
    """Of a dashboard of the small study and the hostile one."""
    with serving(hostile) as running:
        yield running


@pytest.mark.parametrize("size", ["1200,2000", "390,2000"])
def test_a_report_draws_every_plot_and_image_without_an_error_or_a_request(
    hostile: str, tmp_path: Path, size: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(page([open_study("small", hostile), open_study(HOSTILE, hostile)], hostile))
    loaded = open_page(path.as_uri(), tmp_path, size=size)
    assert (loaded.console, loaded.requests) == ((), ())
    plots = {"comparison", "convergence", "schedule", "times", "front", "importances"}
    assert set(re.findall(r'data-plot="(\w+)"', loaded.dom)) == plots
    count = 1 + 2 * (len(plots) - 1)
    assert f'data-plots="{count}"' in loaded.dom
    assert loaded.dom.count('class="main-svg"') >= count  # plotly drew each
    for text in ("images generated", "fid (less is better)", "log-SNR, ln(α/σ)", "time of step 1"):
        assert text in loaded.dom
    assert (
        len(re.findall(r'<img alt="[^"]+" src="data:image/png;base64,', loaded.dom)) == 4
    )  # own and best, of both studies
    assert "<title>Report of small, &lt;script" in loaded.dom
    assert html.escape(HOSTILE, quote=False).split(" ")[0] in loaded.dom
    assert "<img src=x" not in loaded.dom.replace('"', "")
    assert "<title>taken" not in loaded.dom
    assert "{{7*7}} $x^2$ `a` [b](javascript:alert(1))" in loaded.dom


def test_the_browser_that_tests_use_tells_of_requests_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text('<img src="http://example.org/x.png"><script>nothing.here()</script>')
    loaded = open_page(path.as_uri(), tmp_path)
    assert "nothing is not defined" in "\n".join(loaded.console)
    assert loaded.requests == ("http://example.org/x.png",)


def test_the_dashboard_shows_metric_note_plots_and_the_picture_of_a_trial(address: str, tmp_path: Path) -> None:
    history = open_page(f"{address}/studies/1", tmp_path)
    assert (history.console, history.requests) == ((), ())
    assert "Objective 0" not in history.dom
    assert ">fid<" in history.dom
    for plot in ("schedule", "times", "convergence", "importances"):
        assert f"{plot} (autodiffusion-opt)" in history.dom
    note = open_page(f"{address}/studies/1/note", tmp_path).dom
    assert "own = leading" in note
    assert "autodiffusion-opt verify small" in note
    trial = open_page(f"{address}/studies/1/trials?numbers=0", tmp_path).dom
    assert re.search(r'<img[^>]+src="[^"]*/artifacts/1/1/[0-9a-f-]{36}"', trial)
    for attribute in ("nfe 4", "images 20", "baseline own"):
        assert attribute in re.sub(r"<[^>]+>", " ", trial).replace("  ", " ")


def test_the_dashboard_shows_a_hostile_name_as_text(address: str, tmp_path: Path) -> None:
    loaded = open_page(f"{address}/studies/2/note", tmp_path)
    assert (loaded.console, loaded.requests) == ((), ())
    assert "<title>taken" not in loaded.dom
    assert "onerror=alert(1)&gt;" in loaded.dom
    assert 'src="x"' not in loaded.dom
    assert "{{7*7}} $x^2$ " in re.sub(r"<[^>]+>", "", loaded.dom)
    assert 'href="javascript:' not in loaded.dom
    assert "katex" not in loaded.dom


def test_the_dashboard_shows_the_front_of_two_values_and_that_a_trial_is_beyond_a_bound(tmp_path: Path) -> None:
    def gaps(candidate: ado.Candidate) -> dict[str, float]:
        return {
            "first": -candidate.times[0],
            "last": candidate.times[-1],
            "gap": candidate.times[0] - candidate.times[-1],
        }

    url = f"sqlite:///{tmp_path}/front.db"
    study = ado.Study(
        "front",
        space={"kind": "time-steps", "steps": 3},
        objective=ado.CandidateMetric(gaps, identity="gaps-1", minimise=["first", "last"], at_most={"gap": 800}),
        optimizer="random",
        trials=20,
        storage=url,
        model_info=ado.ModelInfo(train_steps=1000),
    )
    study.run()
    assert any(-trial.values[0] - trial.values[1] > 800 for trial in study.trials())
    with serving(url) as address:
        loaded = open_page(f"{address}/studies/1", tmp_path)
    assert (loaded.console, loaded.requests) == ((), ())
    assert "Pareto Front" in loaded.dom
    assert ">first<" in loaded.dom
    assert ">last<" in loaded.dom
    assert "Infeasible" in loaded.dom  # in the legend of the timeline, where there are such trials


def test_a_parameter_that_decoding_ignores_is_not_in_the_dashboards_charts(tmp_path: Path) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("t3", 0, 999)
        return trial.suggest_int("steps", 1, 2) + trial.suggest_float("t1", 0, 999) + trial.suggest_float("t2", 0, 999)

    url = f"sqlite:///{tmp_path}/ignored.db"
    for name, attributes in (("joint", {DEFINITION: {"space": {"kind": "joint", "n_max": 9}}}), ("others", {})):
        study = optuna.create_study(storage=url, study_name=name, sampler=optuna.samplers.RandomSampler(seed=0))
        for key, value in attributes.items():
            study.set_user_attr(key, value)
        study.optimize(objective, n_trials=20)
    labels = {}
    with serving(url) as address:
        for number in (1, 2):
            dom = open_page(f"{address}/studies/{number}", tmp_path).dom
            labels[number] = {name for name in ("steps", "t1", "t2", "t3") if f">{name}</text>" in dom}
    assert labels == {1: {"steps", "t1", "t2"}, 2: {"steps", "t1", "t2", "t3"}}


NOTED = "$x$ \\frac{1}{2} $$\\int_0^1$$ *b* _i_ `c` | [l](http://e.org) ~~s~~ # h <b> \\(y\\) \\[z\\]"


def test_a_name_of_formulas_and_markdown_is_text_in_the_note(ran: tuple[Path, str], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/noted.db"
    copy("small", open_storage(ran[1]), url, NOTED)
    with serving(url) as address:
        loaded = open_page(f"{address}/studies/1/note", tmp_path)
    assert (loaded.console, loaded.requests) == ((), ())
    heading = re.search(r"<h1[^>]*>(.*?)</h1>", loaded.dom, re.DOTALL)
    assert heading is not None
    shown = heading[1].replace('<a href="http://e.org">http://e.org</a>', "http://e.org")  # an address leads to itself
    assert html.unescape(shown) == NOTED
    assert "katex" not in loaded.dom
