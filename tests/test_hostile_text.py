"""Names and paths that hold markup, terminal commands, new lines, HTML or 100,000 characters are shown as text."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from PIL import Image

from autodiffusion_opt.study.progress_bar import Bar
from autodiffusion_opt.text import HIDDEN

Call = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]
NAMES = {
    "markup": "[/red]",
    "emoji": ":smile: [bold]x[/]",
    "escapes": "a\x1b[31mred\x1b]0;title\x07",
    "new lines": "line\n# heading\n\nimport os; os.abort()\n```",
    "html": "<script>alert(1)</script>&amp;<!--",
    "markdown": "`x` | [y](z) **w** ![](v)",
    "direction": "\u202egpj.exe",
    "long": "n" * 100_000,
}


@pytest.fixture(scope="module")
def hostile(ran: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage with the small study under every hostile name."""
    url = f"sqlite:///{tmp_path_factory.mktemp('hostile')}/studies.db"
    for name in NAMES.values():
        optuna.copy_study(from_study_name="small", from_storage=ran[1], to_storage=url, to_study_name=name)
    return url


def check_shown(text: str) -> None:
    """Nothing in it that a terminal obeys, and no line without an end."""
    assert HIDDEN.sub("", text.replace("\n", "")) == text.replace("\n", "")
    assert max(map(len, text.splitlines()), default=0) < 3000


def test_status_shows_every_name_as_text_and_json_has_it_as_it_is(hostile: str, call: Call) -> None:
    code, out, err = call("status", "--storage", hostile)
    assert (code, err) == (0, "")
    check_shown(out)
    assert "[/red]" in out
    assert ":smile: [bold]x[/]" in out
    names = [row["study"] for row in json.loads(call("status", "--storage", hostile, "--json")[1])]
    assert sorted(names) == sorted(NAMES.values())


@pytest.mark.parametrize("kind", NAMES)
def test_best_and_messages_show_the_name_as_text(kind: str, hostile: str, call: Call) -> None:
    code, out, err = call("best", "--storage", hostile, "--", NAMES[kind])
    assert (code, err) == (0, "")
    check_shown(out)
    for words in (("best", "--pick", 99, "-o", "x.json"), ("export", "--pick", 99, "-o", "x"), ("sample", "--study")):
        code, out, err = call(*words, "--storage", hostile, "--", NAMES[kind])
        assert (code, out) == (2, "")
        check_shown(err)
        assert len(err) <= 2000


@pytest.mark.parametrize("kind", NAMES)
def test_an_export_holds_the_name_as_text(kind: str, hostile: str, call: Call, tmp_path: Path) -> None:
    code, _, _ = call("export", "--storage", hostile, "-o", tmp_path / "out", "--", NAMES[kind])
    assert code == 0
    readme = (tmp_path / "out" / "README.md").read_text()
    check_shown(readme)
    assert [line for line in readme.splitlines() if line.startswith("#")] == [readme.splitlines()[0]]
    assert "<script>" not in readme
    script = ast.parse((tmp_path / "out" / "sample.py").read_text())
    imports = [alias.name for node in script.body if isinstance(node, ast.Import) for alias in node.names]
    assert imports == ["json", "torch", "autodiffusion_opt"]
    saved = json.loads((tmp_path / "out" / "candidate.json").read_text())
    assert saved["source"]["study"] == NAMES[kind]


class Elements(HTMLParser):
    """The elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.names.add(tag)


@pytest.mark.slow
def test_comparisons_show_names_as_text(ran: tuple[Path, str], tmp_path: Path, call: Call) -> None:
    """Two seeds of an optimizer that calls itself what it likes."""
    url = f"sqlite:///{tmp_path}/compared.db"
    for seed, name in enumerate((NAMES["html"], NAMES["escapes"])):
        optuna.copy_study(from_study_name="small", from_storage=ran[1], to_storage=url, to_study_name=name)
        study = optuna.load_study(storage=url, study_name=name)
        definition = study.user_attrs["definition"]
        optimizer = {"kind": NAMES["markup"] + NAMES["html"] + NAMES["escapes"] + "漢" * 3000}
        study.set_user_attr("definition", {**definition, "seed": seed, "optimizer": optimizer})
    for picture in ("x.html", "x.png", "x.svg"):
        code, out, err = call("compare", "--storage", url, "-o", picture, "--", NAMES["html"], NAMES["escapes"])
        assert (code, err) == (0, f"wrote {picture}\n")
        check_shown(out)
    page = Path("x.html").read_text()
    assert "script" not in Elements(page).names
    assert not set("\x1b\x07") & set(page)


def test_a_study_file_of_a_hostile_name_is_run_and_found_again(study_file: Write, url: str, call: Call) -> None:
    name = "[red]a\x1b[31m\nb"
    path = study_file(name=name)
    code, out, err = call("run", path, "--storage", url, "--trials", 1)
    assert code == 0
    check_shown(out + err)
    assert "verify $'[red]a\\x1b[31m\\x0ab'" in out
    code, out, err = call("run", path, "--storage", url, "--trials", 2)
    assert code == 0
    assert "[red]a\\x1b[31m\\nb: continuing after 1 of 2 trials" in err


def test_names_that_sql_cannot_hold_are_refused(study_file: Write, url: str, call: Call, study_text: str) -> None:
    code, _, err = call("run", study_file(name="a\udcffb"), "--storage", url)
    assert (code, "a\\udcffb" in err) == (2, True)
    code, _, err = call("run", study_file(), "--storage", url, "--set", f"space.guidance_scale={1}.{'0' * 600}1")
    assert (code, "at most 512 characters" in err) == (2, True)


def test_a_catalogue_of_hostile_files_is_listed_and_shown(call: Call) -> None:
    Path("spaces").mkdir()
    name = "[red]\x1b[31m\na"
    Path(f"spaces/{name}.toml").write_text("# \x1b]0;title\x07 [/red]\nsteps = 4\x1b\n")
    for words in (("ls",), ("show", name)):
        code, out, _ = call(*words)
        assert code == 0
        check_shown(out.replace("\t", ""))
    assert "\\x1b]0;title" in out


def test_the_words_of_a_command_are_shown_as_text(call: Call) -> None:
    hostile = "\x1b[31m[/red]\n" + "x" * 100_000
    for words in (
        (hostile,),
        ("ls", hostile),
        ("best", f"--{hostile}"),
        ("show", hostile),
        ("run", "-k", hostile),
    ):
        code, _, err = call(*words)
        assert code == 2
        check_shown(err)
        assert len(err) <= 2000


def test_a_bar_shows_what_is_done_as_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Bar, "INTERVAL", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with Bar() as bar:
        for kind, name in NAMES.items():
            bar(f"loading {name}", 1, 2, f"{kind} {name}" if kind != "long" else "")
            bar._bar.refresh()
    assert "\x1b]0;title" not in capsys.readouterr().err


def test_a_folder_of_images_of_a_hostile_name_is_shown(call: Call) -> None:
    folder = Path("[red]\x1b[31m\nimages")
    folder.mkdir()
    for index in range(2):
        Image.new("RGB", (8, 8)).save(folder / f"{index}\n[red].png")
    code, out, err = call("reference", "show", folder, "-o", "grid.png")
    assert (code, err) == (0, "")
    check_shown(out)
    (folder / "2\x1b[0m.png").write_text("no image")
    code, _, err = call("reference", "show", folder, "-o", "grid.png")
    assert (code, "2\\x1b[0m.png (no image)" in err) == (2, True)
    check_shown(err)
    shutil.rmtree(folder)


def test_a_password_with_hostile_letters_stays_hidden(call: Call) -> None:
    url = sqlalchemy.URL.create("postgresql", "me", "\x1b[31m:secret", "[/red]", database="x\ny")
    code, _, err = call("status", "--storage", url.render_as_string(hide_password=False))
    assert code == 2
    assert "secret" not in err
    check_shown(err)
