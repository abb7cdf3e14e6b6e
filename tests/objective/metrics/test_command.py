"""A program of the user's own: what it is given, what it may answer, and what goes wrong with programs."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autodiffusion_opt import Candidate, EvaluationError, ModelInfo, Study, UserError
from autodiffusion_opt.config import build
from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.objective.metrics.command import CommandConfig, Program
from autodiffusion_opt.sampling.conditions import Labels, Prompts, Unconditional
from autodiffusion_opt.sampling.generate import ImageSampler

CANDIDATE = Candidate.from_time_steps([900, 300])
INK = """
import json, pathlib, sys
from PIL import Image
*options, folder, prompts = sys.argv[1:]
entries = json.load(open(prompts))
values = [sum(Image.open(pathlib.Path(folder, entry["file"])).convert("L").tobytes()) / 64 for entry in entries]
print("loading ...")
print(json.dumps({"worst": min(values), "value": sum(values) / len(values), "options": len(options)}))
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Writes a program; the words that call it."""

    def write(text: str, name: str = "program.py") -> list[str]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return [sys.executable, str(path)]

    return write


def objective(pipeline: Any, command: list[str], base: Path | None = None, **more: Any) -> Any:
    table = {"kind": "command", "command": command, "images": 7, "version": "1", "direction": "maximize"} | more
    sampler = ImageSampler(pipeline, micro_batch=5, batch_size=5)
    config = build(METRICS["command"].Config, table, "here")
    return config.objective(sampler, ModelInfo(train_steps=1000), base or Path())


def values(measured: Any, candidate: Candidate = CANDIDATE, **more: Any) -> dict[str, float]:
    *_, score = measured.measure(candidate, **more)
    return dict(score.values)


def test_the_programs_numbers_come_back_that_of_the_table_first(digits: Any, write: Any) -> None:
    measured = objective(digits, [*write(INK), "an option with spaces", "$HOME; `date`"])
    images = torch.cat(list(ImageSampler(digits, micro_batch=5).images(CANDIDATE, range(7), 0))).double()
    found = values(measured)
    assert list(found) == ["value", "worst", "options"]
    each = images.mean(dim=(1, 2, 3))
    assert found == pytest.approx({"value": each.mean().item(), "worst": each.min().item(), "options": 2})
    assert dict(measured.directions) == {"value": "maximize"}
    assert dict(objective(digits, write(INK), name="worst", direction="minimize").directions) == {"worst": "minimize"}


def test_each_candidate_has_a_folder_of_its_own_that_is_removed(digits: Any, write: Any) -> None:
    command = write('import sys, os, json; print(json.dumps({"value": len(os.listdir(sys.argv[1]))}));'
                    'open("seen", "a").write(sys.argv[1] + "\\n")')  # fmt: skip
    measured = objective(digits, command)
    assert [values(measured, images=count)["value"] for count in (7, 3)] == [7, 3]
    folders = Path("seen").read_text().split()
    assert len(set(folders)) == 2
    assert not any(Path(folder).exists() for folder in folders)


def test_a_single_number_is_enough(digits: Any, write: Any) -> None:
    assert values(objective(digits, write("print(0.25)"))) == {"value": 0.25}


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_png_files_without_loss(channels: int, tmp_path: Path, write: Any) -> None:
    given = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, channels, 6, 9), dtype=np.uint8))
    metric, _ = a_metric(write, tmp_path, Unconditional())
    for block in given.split(3):
        metric.add(block)
    files = sorted(metric._images.iterdir())
    assert [file.name for file in files] == [f"{index:06d}.png" for index in range(4)]
    read = [np.array(Image.open(file)).reshape(6, 9, channels).transpose(2, 0, 1) for file in files]
    assert np.array_equal(np.stack(read), given.numpy())


def a_metric(write: Any, folder: Path, conditions: Any) -> tuple[Any, Program]:
    command = write('import sys, shutil; shutil.copy(sys.argv[2], "copied.json"); print(1)')
    table = {"kind": "command", "command": command, "images": 5, "version": "1", "direction": "maximize"}
    config = build(CommandConfig, table, "here")
    program = Program(config, conditions, folder)
    return METRICS["command"](config, program), program


@pytest.mark.parametrize(
    ("conditions", "wanted"),
    [
        (Unconditional(), [{"prompt": None}] * 3),
        (Prompts(['a "cat"', "größer ✓"]), [{"prompt": 'a "cat"'}, {"prompt": "größer ✓"}, {"prompt": 'a "cat"'}]),
        (Labels([4, 2]), [{"prompt": None, "label": Labels([4, 2]).label(i)} for i in range(3)]),
    ],
)
def test_the_file_of_prompts_says_what_each_image_is_of(
    conditions: Any, wanted: list[dict[str, Any]], tmp_path: Path, write: Any
) -> None:
    metric, _ = a_metric(write, tmp_path, conditions)
    metric.add(torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    assert metric.value() == {"value": 1}
    entries = json.loads((tmp_path / "copied.json").read_text())
    assert entries == [{"file": f"{index:06d}.png"} | entry for index, entry in enumerate(wanted)]


def test_a_program_in_a_folder_with_spaces_beside_the_file_that_names_it(digits: Any, tmp_path: Path) -> None:
    base = tmp_path / "my studies"
    (base / "my programs").mkdir(parents=True)
    program = base / "my programs" / "score it.sh"
    program.write_text('#!/bin/sh\ntest "$1" = "two words" && test -f "$3" && test -d "$2" && echo 3\n')
    program.chmod(0o755)
    measured = objective(digits, ["my programs/score it.sh", "two words"], base)
    assert values(measured) == {"value": 3}


# What goes wrong.


def test_a_program_that_fails_shows_what_it_wrote_to_stderr(digits: Any, write: Any) -> None:
    measured = objective(digits, write('import sys; print(3); sys.exit("no weights in /models")'))
    with pytest.raises(EvaluationError, match="ended with exit code 1; it wrote to stderr: no weights in /models"):
        values(measured)
    with pytest.raises(EvaluationError, match="ended with exit code 4; it wrote nothing to stderr"):
        values(objective(digits, write("import sys; sys.exit(4)")))


def test_of_a_long_stderr_the_end_is_shown(digits: Any, write: Any) -> None:
    measured = objective(digits, write('import sys; print("x" * 10**6 + "the end", file=sys.stderr); sys.exit(1)'))
    with pytest.raises(EvaluationError, match=r"xthe end$") as error:
        values(measured)
    assert len(str(error.value)) < 2500


@pytest.mark.slow
def test_a_program_that_takes_too_long_is_stopped_with_its_children(digits: Any, write: Any) -> None:
    text = """
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open("child", "w").write(str(child.pid))
    print("still loading", file=sys.stderr, flush=True)
    time.sleep(60)
    """
    measured = objective(digits, write(text), timeout=3)
    begun = time.monotonic()
    with pytest.raises(EvaluationError, match=r"was not done after 3 seconds, and was stopped; .* still loading"):
        values(measured)
    assert time.monotonic() - begun < 20
    child = int(Path("child").read_text())
    for _ in range(100):
        if not is_running(child):
            break
        time.sleep(0.05)
    assert not is_running(child)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ("", "must print JSON, .* as its last line; got nothing"),
        ("fine", "must print JSON, .* as its last line; got 'fine'"),
        ('{"value": 1', "must print JSON, .* as its last line; got "),
        ('{"score": 1}', "must give a value named 'value'; got score"),
        ('{"value": "high"}', "must give numbers; value is 'high'"),
        ('{"value": null}', "must give numbers; value is None"),
        ("[1, 2]", r"must give numbers; value is \[1, 2\]"),
        ("NaN", r"value is not a number \(NaN\)"),
        ('{"value": 1, "other": NaN}', r"other is not a number \(NaN\)"),
        ("Infinity", "must give finite numbers; value is inf"),
    ],
)
def test_what_is_no_number_in_json_is_refused(printed: str, message: str, digits: Any, write: Any) -> None:
    with pytest.raises(EvaluationError, match=message):
        values(objective(digits, write(f"print({printed!r})")))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("no-such-program", "'no-such-program' is not there: there is no program no-such-program on the PATH"),
        ("programs/none", "'programs/none' is not there: there is no file .*/programs/none that can be run"),
    ],
)
def test_a_program_that_is_not_there_is_told_before_the_first_trial(word: str, message: str, digits: Any) -> None:
    with pytest.raises(UserError, match=message):
        objective(digits, [word])


def test_a_program_that_disappears_or_is_none_is_told(digits: Any, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x00not a program")
    program.chmod(0o755)
    measured = objective(digits, [str(program)])
    with pytest.raises(EvaluationError, match="cannot be started: Exec format error"):
        values(measured)
    program.unlink()
    with pytest.raises(EvaluationError, match="cannot be started: No such file"):
        values(measured)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"command": "python score.py"}, "command: .*valid tuple"),
        ({"command": []}, "command: .*at least 1"),
        ({"version": ""}, "version: .*at least 1"),
        ({"timeout": 0}, "timeout: .*greater than 0"),
        ({"direction": "up"}, "direction must be one of: maximize, minimize; got 'up'"),
    ],
)
def test_a_table_that_says_something_wrong_is_refused(changes: dict[str, Any], message: str, digits: Any) -> None:
    with pytest.raises(UserError, match=message):
        objective(digits, **({"command": ["true"]} | changes))


def test_images_that_are_no_png_are_refused(tmp_path: Path, write: Any) -> None:
    metric, _ = a_metric(write, tmp_path, Unconditional())
    with pytest.raises(UserError, match="must have 1 or 3 channels to be PNG files; got 4"):
        metric.add(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


def test_a_study_with_a_program_is_not_resumed_with_another_version(digits: Any, write: Any, url: str) -> None:
    command = write(INK)

    def study(version: str) -> Study:
        table = {"kind": "command", "command": command, "images": 5, "version": version, "direction": "minimize"}
        parts: dict[str, Any] = {"space": {"kind": "time-steps", "steps": 2}, "objective": table, "optimizer": "random"}
        return Study("s", pipeline={"model": digits, "micro_batch": 5}, trials=3, storage=url, **parts)

    results = study("1").run(progress=False)
    assert [result.value for result in results] == sorted(result.value for result in results)
    assert study("1").problem.fingerprint != study("2").problem.fingerprint
    with pytest.raises(UserError, match=r"objective.version: '1' -> '2'"):
        study("2").run(progress=False)


def test_the_program_sees_no_terminal_and_the_variables_of_this_process(digits: Any, write: Any) -> None:
    command = write('import os, sys; print(len(sys.stdin.read()) + ("PATH" in os.environ))')
    assert os.environ["PATH"]
    assert values(objective(digits, command)) == {"value": 1}
