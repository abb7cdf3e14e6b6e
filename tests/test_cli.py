"""The command line: every verb, and every mistake with a message, exit code 2 and no traceback."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from marks import slow_but
from PIL import Image

from autodiffusion_opt import Candidate, cli
from autodiffusion_opt.cli import options
from autodiffusion_opt.trials.database import without_password

Write = Callable[..., Path]
Call = Callable[..., tuple[int, str, str]]
TABLES = {"own", "linspace", "trailing", "quadratic", "karras", "exponential", "beta", "log-snr"}


@pytest.fixture
def best_file(ran: tuple[Path, str], call: Call, tmp_path: Path) -> Path:
    """What ``best -o`` writes."""
    path = tmp_path / "best.json"
    assert call("best", "small", "--storage", ran[1], "-o", path)[0] == 0
    return path


def test_run(study_file: Write, url: str, call: Call) -> None:
    path = study_file()
    code, out, err = call("run", path, "--storage", url, "--trials", 9)
    assert code == 0
    assert "own = leading" in out
    assert "best" in out
    assert f"next: autodiffusion-opt verify small --storage {without_password(url)}" in out
    code, out, err = call("run", path, "--storage", url, "--trials", 10, "--json")
    summary = json.loads(out)
    assert code == 0
    assert "continuing after 9 of 10 trials" in err
    assert (summary["study"], summary["trials"], set(summary["baselines"])) == ("small", 10, TABLES)
    assert summary["best"]["value"] == summary["best"]["values"]["fid"] <= min(summary["baselines"].values())
    assert summary["factor"] == pytest.approx(summary["best"]["value"] / summary["baselines"]["own"])
    assert summary["factor_of"] == "own"
    assert Candidate.from_dict(summary["best"]["candidate"])


def test_run_with_another_seed(study_file: Write, url: str, call: Call) -> None:
    code, out, _ = call("run", study_file(), "--storage", url, "--trials", 1, "--seed", 4, "--json")
    assert (code, json.loads(out)["study"]) == (0, "small-seed4")


def test_run_with_other_values_is_a_study_of_its_own(study_file: Write, url: str, call: Call) -> None:
    words = ("--storage", url, "--trials", 1, "--set", "space.steps=2", "--set", "objective.images=10")
    code, out, _ = call("run", study_file(), *words, "--json")
    assert (code, json.loads(out)["study"]) == (0, "small+space.steps=2+objective.images=10")
    code, out, _ = call("best", "small+space.steps=2+objective.images=10", "--storage", url, "--json")
    assert (code, len(json.loads(out)[0]["candidate"]["steps"])) == (0, 2)
    code, _, err = call("run", study_file(), "--set", "space.step=2")
    assert code == 2
    assert "Did you mean 'steps'?" in err


def test_run_on_another_device(study_file: Write, url: str, call: Call) -> None:
    code, _, err = call("run", study_file(), "--storage", url, "--device", "cuda:77")
    assert code == 2
    assert "got 'cuda:77'" in err
    for verb in (("verify", "small", "--images", 10, "--repeats", 1), ("sample", "small", "-n", 2)):
        assert call("run", study_file(), "--storage", url, "--trials", 1)[0] == 0
        code, _, err = call(*verb, "--storage", url, "--device", "cuda:77")
        assert code == 2
        assert "got 'cuda:77'" in err


@pytest.mark.slow
def test_run_stores_where_the_variable_says(study_file: Write, url: str, call: Call, monkeypatch: Any) -> None:
    monkeypatch.setenv("AUTODIFFUSION_STORAGE", url)
    assert call("run", study_file(), "--trials", 1, "--device", "cpu")[0] == 0
    assert Path(url.removeprefix("sqlite:///")).is_file()
    monkeypatch.delenv("AUTODIFFUSION_STORAGE")
    assert call("run", study_file(), "--trials", 1)[0] == 0
    assert Path("studies/studies.db").is_file()


def test_a_timeout_before_the_first_trial(study_file: Write, url: str, call: Call) -> None:
    code, _, err = call("run", study_file(), "--storage", url, "--timeout", 1e-9)
    assert code == 2
    assert "'small' has no complete trial after the timeout" in err


def test_status(ran: tuple[Path, str], call: Call) -> None:
    code, out, _ = call("status", "--storage", ran[1])
    assert code == 0
    assert "14/14" in out
    code, out, _ = call("status", "--storage", ran[1], "--json")
    (row,) = json.loads(out)
    assert (row["study"], row["wanted"], row["optimizer"]) == ("small", 14, "evolution")
    assert (row["trials"]["complete"], row["trials"]["running"]) == (14, 0)
    assert row["best"] <= row["best_baseline"]["value"]
    assert row["best_baseline"]["name"] in TABLES
    assert row["last_activity"].startswith("20")
    assert call("status", ran[0], "--storage", ran[1], "--json")[1] == out
    code, _, err = call("status", "small", "smal", "--storage", ran[1])
    assert (code, "Did you mean 'small'?" in err) == (2, True)


def test_status_of_an_empty_storage(url: str, call: Call) -> None:
    from autodiffusion_opt.trials.opening import open_storage

    open_storage(url)
    code, _, err = call("status", "--storage", url)
    assert code == 0
    assert "no study" in err
    assert json.loads(call("status", "--storage", url, "--json")[1]) == []


def test_best(ran: tuple[Path, str], call: Call, best_file: Path) -> None:
    code, out, _ = call("best", ran[0], "--storage", ran[1], "-k", 3, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert [row["value"] for row in rows] == sorted(row["value"] for row in rows)
    assert Candidate.load(best_file) == Candidate.from_dict(rows[0]["candidate"])
    source = json.loads(best_file.read_text())["source"]
    assert (source["study"], source["trial"], source["values"]) == ("small", rows[0]["trial"], rows[0]["values"])
    assert rows[0]["values"] == {"fid": rows[0]["value"]}
    assert call("best", "small", "--storage", ran[1])[0] == 0


def test_sample(ran: tuple[Path, str], call: Call, best_file: Path, tmp_path: Path) -> None:
    pictures = [tmp_path / f"{name}.png" for name in ("file", "named", "seed", "study")]
    for given, path in zip((("small",), (best_file, "--study", ran[0])), (pictures[3], pictures[1]), strict=True):
        code, out, _ = call("sample", *given, "--storage", ran[1], "-n", 5, "-o", path, "--no-teacher")
        assert (code, out.strip()) == (0, str(path))
    call("sample", best_file, "--storage", ran[1], "-n", 5, "-o", pictures[0], "--no-teacher")
    call("sample", best_file, "--storage", ran[1], "-n", 5, "-o", pictures[2], "--no-teacher", "--seed", 1)
    by_file, named, reseeded, by_study = (Image.open(path).tobytes() for path in pictures)
    assert by_file == named != reseeded
    assert by_study != by_file  # its captions have the values that the study measured


@pytest.mark.parametrize("how", slow_but(["study", "file"], "study"))
def test_verify(how: str, ran: tuple[Path, str], call: Call, best_file: Path) -> None:
    given = "small" if how == "study" else best_file
    words = ("verify", given, "--storage", ran[1], "--images", 20, "--repeats", 2)
    code, out, _ = call(*words, "--json")
    result = json.loads(out)
    assert code == 0
    told = {"differences", "flattered_by", "sentences"}
    assert set(result) == {"images", "repeats", "best", "baselines"} | told
    assert (result["images"], result["repeats"]) == (20, 2)
    assert set(result["baselines"]) == TABLES
    for scored in (result["best"], *result["baselines"].values()):
        first, second = scored["values"]
        assert scored["mean"] == pytest.approx((first + second) / 2)
        assert scored["std"] == pytest.approx(abs(first - second) / 2**0.5)
    assert Candidate.from_dict(result["best"]["candidate"]) == Candidate.load(best_file)
    code, out, _ = call(*words)
    assert code == 0
    assert "best" in out


@pytest.mark.slow
@pytest.mark.usefixtures("scans")
def test_a_relative_reference_is_found_again(tmp_path: Path, study_text: str, url: str, call: Call) -> None:
    """Relative to the study's file in run, and in what comes after it, whatever the working folder."""
    path = tmp_path / "own.toml"
    path.write_text(study_text.replace('reference = "digits"', 'reference = "scans"'))
    assert call("run", path, "--storage", url, "--trials", 1)[0] == 0
    code, _, err = call("verify", "own", "--storage", url, "--images", 4, "--repeats", 1)
    assert (code, err) == (0, "")
    assert call("best", "own", "--storage", url, "-o", "own.json")[0] == 0
    code, _, err = call("verify", "own.json", "--images", 4, "--repeats", 1)
    assert (code, err) == (0, "")


@pytest.mark.slow
def test_verify_of_several_of_another_model_and_for_infinitely_many_images(
    ran: tuple[Path, str], call: Call, best_file: Path
) -> None:
    words = ("verify", "small", "--storage", ran[1], "--images", 20, "--repeats", 2)
    code, out, _ = call(*words, "--top", 3, "--extrapolate", "--json")
    told = json.loads(out)
    assert code == 0
    assert set(told["top"]) == {"rank 2", "rank 3"}
    assert math.isfinite(told["best"]["extrapolated"])
    assert math.isfinite(told["flattered_by"])
    code, out, _ = call(*words, "--model", "digits")
    assert code == 0
    assert "of own" in out
    assert "paired over repeats" in out
    assert "too good" not in out  # the search's value is of another model
    code, _, err = call(*words, "--model", "./nowhere")
    assert (code, "must be an embedded name" in err) == (2, True)
    code, _, err = call("verify", best_file, "--top", 2)
    assert (code, "--top is for a study" in err) == (2, True)


def test_verify_makes_5000_images_three_times_unless_told() -> None:
    defaults = {option.name: option.default for option in cli.verify.params}
    assert (defaults["images"], defaults["repeats"]) == (5000, 3)


# A value of each option of ``run``; a flag has none.
GIVEN = {
    "--trials": ["9"],
    "--timeout": ["0.1"],
    "--storage": ["sqlite:///x y.db"],
    "--device": ["cpu"],
    "--seed": ["4"],
    "--set": ["space.steps=6", 'pipeline.model="a b"'],
    "--optimizer": ["optuna:tpe,random"],
    "--repeats": ["2"],
    "--workers": ["3"],
    "--patience": ["1234567.5"],
    "--wait": [],
    "--dry-run": [],
    "--quiet": [],
    "--json": [],
}


def test_continue_with_says_all_that_was_given() -> None:
    options = {parameter.opts[-1] for parameter in cli.run.params if parameter.opts[0].startswith("-")}
    assert set(GIVEN) == options
    for names in [*([name] for name in GIVEN), list(GIVEN)]:
        words = ["my study.toml"]
        for name in names:
            words += [word for value in GIVEN[name] for word in (name, value)] or [name]
        context = cli.run.make_context("run", list(words))
        said = shlex.split(cli.running.continued(context))
        assert said[:3] == ["autodiffusion-opt", "run", "my study.toml"]
        assert cli.run.make_context("run", said[2:]).params == context.params
        assert len(said) == len(words) + 2


def test_continue_with_has_no_password_and_short_numbers() -> None:
    words = ["digits-4", "--storage", "postgresql://me:secret@host/name", "--timeout", "60"]
    assert cli.running.continued(cli.run.make_context("run", words)) == (
        "autodiffusion-opt run digits-4 --timeout 60 --storage 'postgresql://me:***@host/name'"
    )


def test_json_has_no_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    options.print_result(True, {"a": [math.inf, 1.5, {"b": -math.inf, "c": math.nan}]}, None)
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5, {"b": None, "c": None}]}


def test_status_names_the_best_baseline(ran: tuple[Path, str], call: Call) -> None:
    (row,) = json.loads(call("status", "--storage", ran[1], "--json")[1])
    summary = json.loads(call("run", ran[0], "--storage", ran[1], "--json")[1])
    baselines = summary["baselines"]
    name = min(baselines, key=lambda key: baselines[key])
    assert row["best_baseline"] == {"name": name, "value": baselines[name]}


def test_a_password_does_not_go_to_a_log() -> None:
    assert options.storage_words("postgresql://me:secret@host/name") == " --storage 'postgresql://me:***@host/name'"


# What is wrong with the study's file -> part of the message.
def test_the_command_itself(tmp_path: Path) -> None:
    """Installed, in a process of its own: exit code and message."""
    command = [sys.executable, "-c", "from autodiffusion_opt.cli import main; main()"]
    wrong = subprocess.run([*command, "run", "digts-4"], cwd=tmp_path, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Did you mean 'digits-4'?" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True).returncode == 0


def complete(url: str) -> int:
    """How many complete trials SQL holds, asked beside the process that writes."""
    try:
        with sqlite3.connect(f"file:{url.removeprefix('sqlite:///')}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 128 + signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_an_interrupted_run_keeps_its_trials_and_leaves_none_running(
    number: int, code: int, study_file: Write, url: str, call: Call
) -> None:
    path = study_file()
    # Where the tests themselves run in the background, they and their children are started to ignore it.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heed}; from autodiffusion_opt.cli import main; main()"]
    words = ["run", str(path), "--storage", url, "--trials", "100000"]
    child = subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if complete(url) >= 2:
            break
        time.sleep(0.1)
    os.kill(child.pid, number)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (code, "")
    assert f"Continue with: autodiffusion-opt run {path} --trials 100000 --storage {url}" in err
    assert "Traceback" not in err
    shutil.copy(url.removeprefix("sqlite:///"), "copy.db")  # the one file, without what SQLite may have put beside it
    assert complete("sqlite:///copy.db") == complete(url)
    (row,) = json.loads(call("status", "--storage", url, "--json")[1])
    assert row["trials"]["running"] == 0
    done = row["trials"]["complete"]
    assert done >= 2
    code, out, _ = call("run", path, "--storage", url, "--trials", done + 2, "--json")
    assert code == 0
    assert json.loads(out)["trials"] == done + 2
    (row,) = json.loads(call("status", "--storage", url, "--json")[1])
    assert row["trials"]["running"] == 0
