"""What README.md and docs/ say is run, validated, linked and up to date.

Python blocks after a line ``<!-- test -->`` are run, those of a page one after the other in one namespace. TOML blocks
are validated as what their first comment says they are. `docs/make_reference.py` makes keys.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from autodiffusion_opt import catalogue
from autodiffusion_opt.cli import app
from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.objective.features import FEATURES
from autodiffusion_opt.optimizer import OPTIMIZERS
from autodiffusion_opt.sampling.load import SHORT_NAMES
from autodiffusion_opt.sampling.schedule import accepted
from autodiffusion_opt.space import SPACES
from autodiffusion_opt.study.config import build_objective, build_space, load_study_config

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"(<!-- (?P<mark>\w+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")


def blocks(page: Path, language: str, mark: str | None = None) -> list[tuple[int, str]]:
    """(line, text) of a page's fenced blocks in a language; with a mark, those that a comment marks with it."""
    text = page.read_text(encoding="utf-8")
    return [
        (text[: block.start("text")].count("\n") + 1, block["text"])
        for block in FENCED.finditer(text)
        if block["language"] == language and mark in (None, block["mark"])
    ]


def links(page: Path) -> list[str]:
    """Where a page's links and pictures point, without those in its fenced blocks."""
    return [link["target"] for link in LINK.finditer(FENCED.sub("", page.read_text(encoding="utf-8")))]


def with_blocks(language: str, mark: str | None = None) -> list[Path]:
    return [page for page in PAGES if blocks(page, language, mark)]


# One process for all pages, since torch takes seconds to import; not this one, since pages register kinds.
RUNNER = """
import json, os, sys, tempfile, traceback, warnings
warnings.simplefilter("error", UserWarning)
import torch
torch.set_num_threads(1)
errors = {}
for name, parts in json.load(sys.stdin).items():
    os.chdir(tempfile.mkdtemp(dir=os.environ["PLACE"]))
    os.environ["AUTODIFFUSION_STORAGE"] = "sqlite:///default.db"
    namespace = {"__name__": "__main__"}
    try:
        for line, text in parts:
            exec(compile("\\n" * (line - 1) + text, name, "exec", dont_inherit=True), namespace)
    except BaseException:
        errors[name] = traceback.format_exc()
print("\\n" + json.dumps(errors))
"""


@pytest.fixture(scope="module")
def errors_of_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Page -> traceback, of the pages whose marked Python blocks fail."""
    given = {page.name: blocks(page, "python", "test") for page in with_blocks("python", "test")}
    environment = {**os.environ, "PLACE": str(tmp_path_factory.mktemp("pages"))}
    ran = subprocess.run(
        [sys.executable, "-c", RUNNER], input=json.dumps(given), env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    errors: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("page", with_blocks("python", "test"), ids=lambda page: page.name)
def test_marked_python_blocks_run(page: Path, errors_of_pages: dict[str, str]) -> None:
    assert page.name not in errors_of_pages, errors_of_pages[page.name]


def test_pages_that_teach_python_have_marked_blocks() -> None:
    assert {"README.md", "python.md", "extending.md"} <= {page.name for page in with_blocks("python", "test")}


@pytest.mark.parametrize("page", with_blocks("python"), ids=lambda page: page.name)
def test_all_python_blocks_are_python(page: Path) -> None:
    for line, text in blocks(page, "python"):
        compile("\n" * (line - 1) + text, page.name, "exec")


@pytest.mark.parametrize("page", with_blocks("toml"), ids=lambda page: page.name)
def test_toml_blocks_are_valid(page: Path, tmp_path: Path) -> None:
    for _, text in blocks(page, "toml"):
        name = text.splitlines()[0].removeprefix("# ").partition(":")[0].strip()
        table = tomllib.loads(text)
        if name == "pyproject.toml":
            check_entry_points(table)
        elif name.startswith("spaces/"):
            build_space(table, name)
        elif name.startswith("objectives/"):
            build_objective(table, name)
        else:
            assert name.startswith("studies/"), f"the first line must be a comment with the block's file; got {name!r}"
            file = tmp_path / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
            load_study_config(str(file))


def check_entry_points(table: dict[str, Any]) -> None:
    groups = {registry.group for registry in (METRICS, FEATURES, OPTIMIZERS, SPACES)}
    assert set(table["project"]["entry-points"]) == groups


def test_toml_blocks_that_are_wrong_are_found(tmp_path: Path) -> None:
    page = tmp_path / "wrong.md"
    page.write_text('```toml\n# spaces/wrong.toml\nkind = "joint"\nn_maximum = 72\n```\n')
    with pytest.raises(Exception, match="n_maximum is unknown"):
        test_toml_blocks_are_valid(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path) -> None:
    targets = [target.partition("#")[0] for target in links(page) if "://" not in target]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / target).resolve() for target in links(README)}
    assert [page.name for page in PAGES if page != README and page.resolve() not in linked] == []


def test_readme_is_read_in_two_minutes() -> None:
    assert len(README.read_text(encoding="utf-8").split()) < 750


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "docs"], ids=lambda page: page.name)
def test_a_page_begins_with_its_title_and_what_it_is_about(page: Path) -> None:
    title, empty, sentence, *_ = page.read_text(encoding="utf-8").splitlines()
    assert title.startswith("# ")
    assert empty == ""
    assert sentence.startswith("This page ")
    assert sentence.endswith(".")


def test_key_reference_is_what_the_classes_say() -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_reference.py"), "--check"], capture_output=True, text=True
    )
    assert ran.returncode == 0, f"python docs/make_reference.py > docs/keys.md\n{ran.stdout}{ran.stderr}"


def test_extending_page_says_how_long_its_snippets_are() -> None:
    page = ROOT / "docs" / "extending.md"
    snippets = [text.splitlines() for _, text in blocks(page, "python", "test")]
    lengths = [sum(bool(line) and not line.startswith(("import ", "from ")) for line in lines) for lines in snippets]
    said = [
        int(number) for number in re.findall(r"^\| an? .* \| (\d+) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    features = int(re.findall(r"^\| features .* \| (\d+) \|", page.read_text(encoding="utf-8"), re.MULTILINE)[0])
    assert [said[0], features, *said[1:3]] == lengths[:4]


def test_schedulers_page_lists_exactly_those_accepted() -> None:
    table = (ROOT / "docs" / "schedulers.md").read_text(encoding="utf-8").split("## Why")[0]
    assert set(re.findall(r"\w+Scheduler\b", table)) == set(accepted())
    short_names = {
        name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall("`(.*?)`", row)
    }
    assert short_names == set(SHORT_NAMES)


def test_readme_lists_exactly_the_verbs() -> None:
    section = README.read_text(encoding="utf-8").split("| verb | does |")[1].split("\n\n")[0]
    rows = [row.split("|")[1] for row in section.splitlines()[2:]]
    assert {word.split()[0] for row in rows for word in re.findall("`(.*?)`", row)} == set(app.commands)


def test_options_of_run_in_the_readme_exist() -> None:
    help_text = CliRunner().invoke(app, ["run", "--help"]).output
    (row,) = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| `run ")]
    options = re.findall(r"--\w+", row)
    assert options
    assert [option for option in options if option not in help_text] == []


def test_commands_that_ci_runs_name_studies_of_the_catalogue() -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "readme_commands.py"), str(README)], capture_output=True, text=True
    )
    commands = ran.stdout.splitlines()
    assert commands[0] == "pip install -e . && autodiffusion-opt run studies/digits-4.toml"
    studies = {entry.name for entry in catalogue.entries(["studies"])}
    assert {name for command in commands for name in re.findall(r"studies/([\w-]+)\.toml", command)} <= studies
