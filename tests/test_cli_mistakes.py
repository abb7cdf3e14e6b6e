"""Mistakes of a user: each is told in a sentence, with exit code 2 and no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[..., Path]
Call = Callable[..., tuple[int, str, str]]

WRONG_STUDIES = {
    "key": (("batch_size = 10", "batch_sise = 10"), "Did you mean 'batch_size'?"),
    "kind": (('kind = "fid"', 'kind = "fidd"'), "Did you mean 'fid'?"),
    "scheduler": (('scheduler = "ddim"', 'scheduler = "dimm"'), "Did you mean 'ddim'?"),
    "scheduler class": (('scheduler = "ddim"', 'scheduler = "DDIMSheduler"'), "Did you mean 'DDIMScheduler'?"),
    "setting": (('scheduler = "ddim"', "scheduler_settings = {steps_offse = 1}"), "Did you mean 'steps_offset'?"),
    "model": (('model = "digits"', 'model = "digit"'), "Did you mean 'digits'?"),
    "folder": (('model = "digits"', 'model = "./no-such"'), "must be an embedded name"),
    "device": (('device = "cpu"', 'device = "cpuu"'), "device must be auto, cpu, or a GPU"),
    "no GPU": (('device = "cpu"', 'device = "cuda:77"'), "device must be auto, cpu, or a GPU"),
    "features": (('features = "digits"', 'features = "digitz"'), "Did you mean 'digits'?"),
    "reference": (('reference = "digits"', 'reference = "nothing"'), "'nothing' is not there"),
    "no images": (('reference = "digits"', 'reference = "."'), "must hold at least 2 images"),
    "no steps": (("steps = 4", "steps = 0"), "greater than or equal to 1; got 0"),
    "too many steps": (("steps = 4", "steps = 1001"), "at most 1000"),
    "no TOML": (("trials = 14", "trials = = 14"), "must be a TOML file"),
    "continuous": (("steps = 4", 'steps = 4\ntimes = "continuos"'), "Did you mean 'continuous'?"),
    "call": (("batch_size = 10", "batch_size = 10\ncall = {heigth = 8}"), "heigth"),
}


@pytest.mark.parametrize("name", WRONG_STUDIES)
def test_a_wrong_study(name: str, tmp_path: Path, study_text: str, url: str, call: Call) -> None:
    (old, new), message = WRONG_STUDIES[name]
    path = tmp_path / "small.toml"
    assert old in study_text
    path.write_text(study_text.replace(old, new))
    code, out, err = call("run", path, "--storage", url)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "digts-4"], "Did you mean 'digits-4'?"),
        (["run", "no/such.toml"], "there is no file no/such.toml"),
        (["run", "digits-4", "--trials", "0"], "0 is not in the range x>=1"),
        (["run", "digits-4", "--trials", "many"], "'many' is not a valid integer"),
        (["run", "digits-4", "--storage", "garbage"], "storage must be a URL"),
        (["run", "digits-4", "--storage", "sqlite:////proc/no/such.db"], "cannot be created"),
        (["status", "--storage", "sqlite:///none.db"], "does not exist; run a study first"),
        (["best", "small", "--storage", "sqlite:///here.toml"], "file is not a database"),
        (["show", "digits-44"], "Did you mean 'digits-4'?"),
        (["show", "binary"], "UTF-8"),
        (["ls", "space"], "spaces"),
        (["verify", "none.json"], "none.json: cannot be read"),
        (["verify", "plain.json"], "name a study that does with --study"),
        (["verify", "plain.json", "--study", "digts-4"], "Did you mean 'digits-4'?"),
        (["verify", "broken.json", "--study", "digits-4"], "broken.json: a candidate must be JSON"),
        (["verify", "binary.json", "--study", "digits-4"], "it is not text"),
        (["verify", "late.json", "--study", "here.toml", "--images", "4"], "got 5000"),
        (["verify", "layer.json", "--study", "here.toml", "--images", "4"], "got 999"),
        (["verify", "scale.json", "--study", "here.toml", "--images", "4"], "guidance_scale"),
        (["sample", "late.json", "--study", "here.toml", "-n", "2"], "got 5000"),
        (["sample", "layer.json", "--study", "here.toml", "-n", "2"], "got 999"),
        (["sample", "plain.json", "--study", "here.toml", "-n", "2", "-o", "no/grid.png"], "the folder no must exist"),
        (["sample", "plain.json", "--study", "here.toml", "-n", "2", "-o", "grid.what"], "cannot be written"),
        (["verify", "digits-4", "--images", "1"], "1 is not in the range x>=2"),
        (["verify", "source.json"], "source.json"),
        (["rum"], "No such command 'rum'"),
    ],
)
def test_wrong_words(words: list[str], message: str, study_text: str, call: Call) -> None:
    Path("here.toml").write_text(study_text)
    for name, text in {
        "plain": '{"steps": [900, 100]}',
        "broken": '{"steps": [900',
        "late": '{"steps": [5000, 100]}',
        "layer": '{"steps": [{"time": 900, "removed": [999]}, 100]}',
        "scale": '{"steps": [900, 100], "guidance_scale": 2}',
        "source": '{"steps": [900, 100], "source": {"definition": [1]}}',
    }.items():
        Path(f"{name}.json").write_text(text)
    Path("binary.json").write_bytes(b"\xff\xfe\x00")
    Path("binary").write_bytes(b"\xff\xfe\x00")
    code, _, err = call(*words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_study_that_is_not_in_the_storage(ran: tuple[Path, str], call: Call) -> None:
    for words in (["best", "smal"], ["verify", "smal"], ["sample", "smal"]):
        code, _, err = call(*words, "--storage", ran[1])
        assert code == 2
        assert "Did you mean 'small'?" in err


def test_a_changed_definition(ran: tuple[Path, str], study_file: Write, call: Call) -> None:
    code, _, err = call("run", study_file(images="images = 30"), "--storage", ran[1])
    assert code == 2
    assert "objective.images: 20 -> 30" in err
