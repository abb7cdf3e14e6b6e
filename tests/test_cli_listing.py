"""``ls`` and ``show``: the catalogue, candidates and optimizers; help that is not cut."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from autodiffusion_opt import cli
from autodiffusion_opt.optimizer import OPTIMIZERS
from autodiffusion_opt.recommended import RECOMMENDED

Call = Callable[..., tuple[int, str, str]]


def test_ls_and_show(call: Call) -> None:
    code, out, _ = call("ls")
    assert code == 0
    for part in ("spaces/\n", "objectives/\n", "studies/\n", "digits-fid", "Four uneven DDIM steps"):
        assert part in out
    code, out, _ = call("ls", "objectives", "--json")
    assert code == 0
    assert {entry["section"] for entry in json.loads(out)} == {"objectives"}
    code, out, _ = call("show", "digits-fid")
    assert (code, out.startswith("# Fréchet")) == (0, True)
    code, out, _ = call("show", "digits-fid", "--json")
    assert json.loads(out)["content"]["kind"] == "fid"


def test_ls_knows_candidates_of_the_working_folder_and_shipped_ones(call: Call) -> None:
    folder = Path("studies/candidates")
    folder.mkdir(parents=True)
    (folder / "mine.json").write_text('{"steps": [900, 20], "comment": "Two steps\\u001b[31m of mine."}')
    (folder / "broken.json").write_text("{")
    code, out, _ = call("ls", "candidates")
    assert code == 0
    assert "  mine                    Two steps\\x1b[31m of mine.\n" in out
    assert "broken                  cannot be read" in out
    assert "sd15-plms-4" in out
    assert call("show", "mine")[1] == (folder / "mine.json").read_text() + "\n"
    shown = json.loads(call("show", "candidates/mine", "--json")[1])
    assert (shown["section"], shown["content"]["steps"]) == ("candidates", [900, 20])


@pytest.mark.parametrize("columns", [60, 30])
def test_ls_folds_descriptions_to_the_columns_it_is_told(
    columns: int, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    whole = call("ls", "optimizers")[1]
    monkeypatch.setenv("COLUMNS", str(columns))
    folded = call("ls", "optimizers")[1]
    assert max(map(len, whole.splitlines())) > 60
    assert max(map(len, folded.splitlines())) <= columns
    assert "".join(folded.split()) == "".join(whole.split())


def test_show_of_a_study_that_was_run_says_where_it_is_to_be_seen(ran: tuple[Path, str], call: Call) -> None:
    code, _, err = call("show", "small")
    assert code == 2
    assert err.endswith("got 'small'. Of a study that was run, see: best STUDY, or show STUDY --trial N\n")


def test_ls_names_optimizers_that_a_study_can_have(call: Call) -> None:
    listed = json.loads(call("ls", "optimizers", "--json")[1])
    assert [row["name"] for row in listed] == list(RECOMMENDED)
    everything = json.loads(call("ls", "optimizers", "--all", "--json")[1])
    assert set(OPTIMIZERS) | set(RECOMMENDED) < {row["name"] for row in everything}
    for name in RECOMMENDED:
        assert OPTIMIZERS[name]  # a kind, or one of a family
        code, out, _ = call("show", name)
        assert code == 0
        assert f'kind = "{name}"' in out
    code, _, err = call("ls", "studies", "--all")
    assert (code, "--all is for optimizers" in err) == (2, True)


def test_help_shows_each_verbs_first_sentence_whole(call: Call) -> None:
    out = call("--help")[1].partition("Commands:")[2]
    assert "..." not in out
    assert set(cli.app.commands) <= set(out.split())


def test_what_continues_an_interrupted_run_has_all_its_flags(
    call: Call, study_file: Callable[..., Path], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autodiffusion_opt.study.run import Study

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "run", interrupted)
    words = ["--trials", "20", "--timeout", "90.5", "--device", "cpu", "--seed", "3", "--optimizer", "random"]
    words += ["--patience", "5", "--wait", "--quiet", "--json", "--set", "space.steps=5", "--storage", url]
    path = study_file()
    code, _, err = call("run", path, *words)
    assert code == 130
    said = shlex.split(err.partition("Continue with: ")[2])
    assert said[:3] == ["autodiffusion-opt", "run", str(path)]
    assert sorted(said[3:]) == sorted(words)  # the order is that of `run --help`


def test_a_quiet_run_says_nothing_on_stderr(call: Call, study_file: Callable[..., Path], url: str) -> None:
    path = study_file(images="images = 10", trials="trials = 8")
    assert call("run", path, "--storage", url, "--trials", 2, "--quiet")[::2] == (0, "")


def test_tables_in_a_pipe_obey_columns(ran: tuple[Path, str], call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert max(map(len, call("best", "small", "--storage", ran[1])[1].splitlines())) > 50
    monkeypatch.setenv("COLUMNS", "40")
    folded = call("best", "small", "--storage", ran[1])[1]
    assert max(map(len, folded.splitlines())) <= 40


def test_a_table_whose_words_would_be_cut_is_shown_row_by_row(
    ran: tuple[Path, str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out = call("status", "--storage", ran[1])[1]
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 60
    lines = dict(line.strip().split(maxsplit=1) for line in out.splitlines())
    assert (lines["study"], lines["done"], lines["optimizer"]) == ("small", "14/14", "evolution")
    monkeypatch.setenv("COLUMNS", "200")
    wide = call("status", "--storage", ran[1])[1]
    assert len(wide.splitlines()) == 5
