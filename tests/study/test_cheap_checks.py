"""What is cheap to check is checked before what takes long: no model is loaded in vain, no layer ranked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from autodiffusion_opt.report.grid import check_picture
from autodiffusion_opt.sampling.load import pipeline_class

Call = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]


def never(*given: object, **more: object) -> NoReturn:
    raise AssertionError("this takes long and was not to be done")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a model is read from disk, the test fails."""
    monkeypatch.setattr("autodiffusion_opt.sampling.load._read", never)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("ending", ["xyz", "", "toml", "png.no"])
def test_a_picture_that_cannot_be_written_is_told_before_anything_is_loaded(
    ending: str, ran: tuple[Path, str], call: Call
) -> None:
    for words in (("sample", "small", "--storage", ran[1]), ("reference", "show", "digits", "--features", "digits")):
        code, out, err = call(*words, "-o", f"grid.{ending}")
        assert (code, out) == (2, "")
        assert "its ending must be .png, .jpg" in err
    code, _, err = call("compare", "small", "--storage", ran[1], "-o", f"grid.{ending}", "--verify")
    assert (code, "-o must end in .png, .svg, .html" in err) == (2, True)


@pytest.mark.usefixtures("no_model")
def test_folders_of_outputs_are_looked_at_before_anything_is_loaded(ran: tuple[Path, str], call: Call) -> None:
    Path("file").write_text("")
    Path("folder.png").mkdir()
    stored = ("--storage", ran[1])
    for words, message in (
        (("sample", "small", *stored, "-o", "no/grid.png"), "the folder no must exist"),
        (("sample", "small", *stored, "-o", f"{'x' * 300}.png"), "File name too long"),
        (("export", "small", *stored, "-o", "file/below"), "file is not a folder"),
        (("best", "small", *stored, "-o", "no/best.json"), "the folder no must exist"),
        (("reference", "make", "digits", "--features", "digits", "-o", "no/x.npz"), "the folder no must exist"),
    ):
        code, out, err = call(*words)
        assert (code, out) == (2, "")
        assert message in err


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_told(tmp_path: Path, call: Call) -> None:
    tmp_path.chmod(0o500)
    assert "no permission" in call("sample", "small", "-o", tmp_path / "grid.png")[2]


@pytest.mark.parametrize("ending", ["png", "PNG", "jpg", "webp", "bmp", "tif", "gif"])
def test_the_usual_pictures_may_be_written(ending: str) -> None:
    check_picture(Path(f"grid.{ending}"))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('reference = "digits"', 'reference = "nothing"', "'nothing' is not there"),
        ("batch_size = 10", "batch_size = 10\ncall = {heigth = 8, etta = 0.1}", "got 'heigth'."),
        ("batch_size = 10", "batch_size = 10\ncall = {heigth = 8, etta = 0.1}", "got 'etta'."),
        ("batch_size = 10", "batch_size = 10\ncall = {prompt = 'x'}", "call: prompt cannot be set here"),
        ('device = "cpu"', 'device = "cuda:77"', "device must be auto"),
        ('scheduler = "ddim"', 'scheduler = "dimm"', "Did you mean 'ddim'?"),
        ("images = 20", 'images = 20\nconditions = {kind = "prompts", file = "no.txt"}', "file 'no.txt' is not there"),
    ],
)
def test_what_no_model_is_needed_for_is_told_before_it_is_loaded(
    old: str, new: str, message: str, tmp_path: Path, study_text: str, url: str, call: Call
) -> None:
    (tmp_path / "wrong.toml").write_text(study_text.replace(old, new))
    code, _, err = call("run", tmp_path / "wrong.toml", "--storage", url)
    assert (code, message in err) == (2, True), err


@pytest.mark.parametrize("layers", ["any", "ranked"])
@pytest.mark.parametrize(
    ("budget", "message"),
    [("n_max = 5\nsteps_min = 4", "n_max must be at least 36"), ("max_flops = 0.01", "max_flops must be at least")],
)
def test_a_budget_that_no_candidate_keeps_is_told_before_layers_are_ranked(
    budget: str, message: str, layers: str, tmp_path: Path, study_text: str, url: str, call: Call, monkeypatch: Any
) -> None:
    monkeypatch.setattr("autodiffusion_opt.sampling.ranking.rank_layers", never)
    joint = f'kind = "joint"\nlayers = "{layers}"\n{budget}'
    (tmp_path / "wrong.toml").write_text(study_text.replace('kind = "time-steps"\nsteps = 4', joint))
    code, _, err = call("run", tmp_path / "wrong.toml", "--storage", url)
    assert (code, message in err) == (2, True), err


@pytest.mark.parametrize(
    "text", [None, "", "[" * 10**5, "[]", "{}", '{"_class_name": 7}', '{"_class_name": "Nothing"}']
)
def test_a_folder_whose_class_is_not_known_is_left_to_who_loads_it(text: str | None) -> None:
    if text is not None:
        Path("model_index.json").write_text(text)
    assert pipeline_class(Path()) is None
