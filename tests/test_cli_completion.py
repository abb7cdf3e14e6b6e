"""What a shell completes, through click's own classes of completion, and a shell itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete
from marks import slow_but
from test_imports import heavy_modules

from autodiffusion_opt import cli
from autodiffusion_opt.recommended import RECOMMENDED
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.studies import create_study
from autodiffusion_opt.zoo import EMBEDDED

SHELLS = (BashComplete, ZshComplete, FishComplete)


def completed(*words: str, incomplete: str = "") -> dict[str, str]:
    """What is offered after ``words``, with its type."""
    shell = ShellComplete(cli.app, {}, "autodiffusion-opt", "_AUTODIFFUSION_OPT_COMPLETE")
    return {item.value: item.type for item in shell.get_completions(list(words), incomplete)}


@pytest.fixture
def stored(url: str) -> str:
    """A database with studies, some of whose names a shell cannot be given."""
    from optuna.study import StudyDirection

    storage = open_storage(url)
    for name in ("mine", "mine too", "other", "two\nlines"):
        create_study(storage, name, {"fid": StudyDirection.MINIMIZE})
    return url


def test_names_of_studies_come_from_the_storage_and_for_run_from_the_catalogue_too(stored: str) -> None:
    for verb in ("best", "export", "compare", "report", "rm", "rename", "copy"):
        assert set(completed(verb, "--storage", stored)) == {"mine", "mine too", "other"}
        assert set(completed(verb, "--storage", stored, incomplete="mi")) == {"mine", "mine too"}
    names = completed("run", "--storage", stored)
    assert {"digits-4", "dit-4", "mine", "mine too"} <= set(names)
    assert set(names.values()) == {"plain"}
    assert set(completed("run", incomplete="digits-joint-r")) == {"digits-joint-ranked"}


def test_the_storage_of_the_variable_is_asked(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTODIFFUSION_STORAGE", stored)
    assert set(completed("best", incomplete="o")) == {"other"}


def test_candidates_models_optimizers_and_what_show_knows_are_completed(stored: str) -> None:
    assert set(completed("sample", "--storage", stored, incomplete="sd15-plms")) == {"sd15-plms-4", "sd15-plms-6"}
    assert set(completed("verify", "--storage", stored, incomplete="mine")) == {"mine", "mine too"}
    assert set(completed("init")) == set(EMBEDDED)
    assert completed("init", incomplete="../we") == {"../we": "dir"}
    assert set(completed("run", "digits-4", "--optimizer")) == set(RECOMMENDED)
    assert set(completed("run", "digits-4", "--optimizer", incomplete="local,ran")) == {"local,random"}
    assert {"four-steps", "digits-fid", "digits-4", "local"} <= set(completed("show"))
    assert set(completed("ls", incomplete="s")) == {"spaces", "studies"}
    assert "digits-4" in completed("verify", "x.json", "--study", incomplete="digits")


def test_a_path_is_left_to_the_shell() -> None:
    assert completed("run", incomplete="./my") == {"./my": "file"}


@pytest.mark.parametrize(
    "url", ["sqlite:///none.db", "garbage", "sqlite:///broken.db", "postgresql://x:1/y", "grpc://x:1"]
)
def test_a_storage_that_cannot_be_read_offers_nothing_and_is_not_made(url: str) -> None:
    Path("broken.db").write_text("no database, but text of some length")
    assert completed("best", "--storage", url) == {"": "file"}
    assert not Path("none.db").exists()


def test_completion_imports_neither_torch_nor_diffusers(tmp_path: Path) -> None:
    script = (
        "from autodiffusion_opt import cli; from click.shell_completion import ShellComplete; "
        "complete = ShellComplete(cli.app, {}, 'a', 'A'); "
        "[complete.get_completions([verb], '') for verb in ('run', 'best', 'show', 'init', 'sample')]"
    )
    assert heavy_modules(script, tmp_path) == []


@pytest.mark.parametrize("shell", slow_but(SHELLS, BashComplete))
def test_each_shell_is_given_a_script_and_answers(shell: type[ShellComplete], tmp_path: Path) -> None:
    """As the documented lines ask for them: in a process of the program itself."""
    program = "import sys; sys.argv[0] = 'autodiffusion-opt'; from autodiffusion_opt.cli import main; main()"

    def ask(instruction: str, **more: str) -> str:
        environment = {**os.environ, "_AUTODIFFUSION_OPT_COMPLETE": f"{shell.name}_{instruction}", **more}
        asked = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert asked.returncode == 0, asked.stderr
        return asked.stdout

    if shell is not BashComplete or shutil.which("bash"):  # click asks bash for its version
        assert "_AUTODIFFUSION_OPT_COMPLETE" in ask("source")
    words = "autodiffusion-opt run digits-joint-f"
    last = "digits-joint-f" if shell is FishComplete else "2"
    assert "digits-joint-flops" in ask("complete", COMP_WORDS=words, COMP_CWORD=last)
