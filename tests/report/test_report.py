"""The report, its plots and the dashboard's note, without a browser."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autodiffusion_opt.report import figures
from autodiffusion_opt.report.dashboard import note_of, only_own_pages, server
from autodiffusion_opt.report.page import POLICY
from autodiffusion_opt.study import housekeeping
from autodiffusion_opt.study.previews import artifact_folder, preview_id, read_preview
from autodiffusion_opt.study.results import open_study
from autodiffusion_opt.trials.opening import open_storage

Call = Callable[..., tuple[int, str, str]]


def test_a_trial_has_its_costs_as_flat_attributes_and_improving_ones_a_picture(ran: tuple[Path, str]) -> None:
    stored = open_study("small", ran[1])
    best_so_far = float("inf")
    for trial in stored.trials:
        score = trial.user_attrs["score"]
        for name in ("nfe", "layer_runs", "flops", "images", "seconds"):
            assert trial.user_attrs[name] == score[name]
        is_improving = trial.values[0] < best_so_far
        best_so_far = min(best_so_far, trial.values[0])
        wanted = is_improving or "baseline" in trial.user_attrs
        picture = read_preview(trial, ran[1])
        assert (picture is not None) == (wanted and "reused_from" not in trial.user_attrs)
        assert picture is None or len(picture) < 500_000
    assert artifact_folder(ran[1]).is_dir()


def test_pictures_go_with_a_copied_study_and_are_removed_with_the_last(ran: tuple[Path, str], tmp_path: Path) -> None:
    storage, url = open_storage(ran[1]), f"sqlite:///{tmp_path}/other.db"
    housekeeping.copy("small", storage, url)
    copied = open_study("small", url)
    pictures = {trial.number: read_preview(trial, ran[1]) for trial in open_study("small", ran[1]).trials}
    assert {trial.number: read_preview(trial, url) for trial in copied.trials} == pictures
    count = len(list(artifact_folder(url).iterdir()))
    housekeeping.copy("small", open_storage(url), url, "again")
    housekeeping.remove(["small"], open_storage(url))
    assert len(list(artifact_folder(url).iterdir())) == count
    housekeeping.remove(["again"], open_storage(url))
    assert list(artifact_folder(url).iterdir()) == []


def test_the_report_holds_every_part_and_no_address_of_another_place(
    ran: tuple[Path, str], call: Call, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    code, out, _ = call("report", "small", "-o", path, "--storage", ran[1])
    assert (code, out) == (0, f"{path}\n")
    text = path.read_text()
    assert f'content="{POLICY}"' in text
    own_text = re.sub(r"<script>/\*\*.*?</script>", "", text, count=1, flags=re.S)  # without plotly's own
    assert len(own_text) < 300_000
    assert not re.search(r"(src|href)=\"(?!data:)", own_text)
    plots = {
        name: json.loads(content)
        for name, content in re.findall(
            r'data-plot="(\w+)"[^>]*><script type="application/json">(.*?)</script>', own_text, flags=re.S
        )
    }
    assert set(plots) == {"convergence", "schedule", "times", "front", "importances"}
    for part in ("Verified", "Use it", "Provenance and definition", "own = leading", "prefers-color-scheme: dark"):
        assert part in own_text
    assert own_text.count("data:image/png;base64,") == 2


def test_what_verify_measured_is_in_the_report(ran: tuple[Path, str], call: Call, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert call("verify", "small", "--images", 10, "--repeats", 2, "--storage", ran[1])[0] == 0
    assert call("report", "small", "-o", path, "--storage", ran[1])[0] == 0
    assert "2 × 10 images of fresh noise" in path.read_text()


def test_the_schedule_is_drawn_on_log_snr_where_the_model_has_the_steps(ran: tuple[Path, str], problem: Any) -> None:
    stored = open_study("small", ran[1])
    drawn = {trace.y[0].split("  ")[0]: trace for trace in figures.schedule(stored).data}
    own = stored.baselines()["own"].candidate
    assert list(drawn["own = leading"].x) == pytest.approx(list(problem.info.log_snr(own.times)), abs=0.06)
    assert {"best", "rank 2", "linspace"} < set(drawn)


def test_times_of_the_best_are_counted_each_once(ran: tuple[Path, str]) -> None:
    stored = open_study("small", ran[1])
    (bars,) = figures.times(stored).data
    assert sum(bars.y) == sum(len(result.candidate.steps) for result in stored.top(15))


def test_importances_are_of_candidates_not_of_parameters(ran: tuple[Path, str]) -> None:
    (bars,) = figures.importances(open_study("small", ran[1])).data
    assert set(bars.y) <= {f"time of step {index}" for index in range(1, 5)}


def test_names_in_plots_are_text() -> None:
    assert figures.shown("<b>x</b>\x1b") == "&lt;b&gt;x&lt;/b&gt;\\x1b"


def test_the_note_says_how_to_use_the_study(ran: tuple[Path, str]) -> None:
    note = note_of(open_study("small", ran[1]))
    for text in ("14 of 14 trials", "| own = leading |", "`autodiffusion-opt best small -o best.json`", "evolution"):
        assert text in note
    assert '"steps": 4' in note
    assert "null" not in note


def test_a_dashboard_shows_pictures_that_were_kept_after_it_was_started(ran: tuple[Path, str], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/later.db"
    open_storage(url)
    with server(url, "127.0.0.1", 0) as listening:  # no picture yet, and no folder of them
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            housekeeping.copy("small", open_storage(ran[1]), url)
            trial = open_study("small", url).trials[0]
            path = f"artifacts/1/{trial._trial_id}/{preview_id(trial)}"
            with urllib.request.urlopen(f"http://127.0.0.1:{listening.server_port}/{path}") as answer:
                assert answer.read() == read_preview(trial, ran[1])
        finally:
            listening.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:8080", None, 200),
        ("localhost:8080", "http://localhost:8080", 200),
        ("evil.example", None, 403),
        ("127.0.0.1:8080", "http://evil.example", 403),
        ("127.0.0.1:8080", "null", 403),
    ],
)
def test_the_dashboard_answers_no_other_sites_pages(host: str, origin: str | None, status: int) -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"all studies"]

    told: list[str] = []
    environ = {"HTTP_HOST": host} | ({} if origin is None else {"HTTP_ORIGIN": origin})
    only_own_pages(application, "127.0.0.1")(environ, lambda code, headers: told.append(code))
    assert int(told[0].split()[0]) == status
