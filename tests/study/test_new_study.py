"""A study that is written for a model: it loads, runs, and says what its keys may be."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from marks import slow_but
from peers import pipelines

from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.optimizer import OPTIMIZERS
from autodiffusion_opt.sampling.conditions import check_conditions, class_count, load_conditions
from autodiffusion_opt.sampling.config import PipelineConfig
from autodiffusion_opt.sampling.description import describe
from autodiffusion_opt.sampling.load import load_pipeline
from autodiffusion_opt.space import SPACES
from autodiffusion_opt.study.config import StudyFile, load_study_config
from autodiffusion_opt.study.keys import keys_of
from autodiffusion_opt.study.new_study import MICRO_BATCHES, PAIRED_IMAGES, NewStudy, as_written, toml
from autodiffusion_opt.zoo import EMBEDDED

Call = Callable[..., tuple[int, str, str]]
# A consistency model in diffusers' own pipeline of them: labels that it takes are not needed, and it has a solver of
# its own. The others stand for their kinds.
PIPELINES = [name for name in pipelines.BUILDERS if name != "adm_guided"]
MODELS = [*EMBEDDED, *PIPELINES]


def model_of(name: str) -> str:
    return name if name in EMBEDDED else str(pipelines.saved(name))


def written(name: str, folder: Path, **more: Any) -> Path:
    path = folder / "new.toml"
    path.write_text(NewStudy(model_of(name), describe(model_of(name)), **more).text())
    return path


@pytest.mark.parametrize("name", slow_but(MODELS, "digits-dit", "ddpm", "stable_diffusion"))
def test_it_loads_and_fits_its_model(name: str, tmp_path: Path) -> None:
    config = load_study_config(str(written(name, tmp_path)))
    table = config.pipeline
    assert table is not None
    pipeline = load_pipeline(table.model, scheduler=table.scheduler, device="cpu")
    conditions = load_conditions(config.objective.conditions, pipeline)
    check_conditions(pipeline, conditions)
    described = describe(model_of(name))
    assert described.pipeline == type(pipeline).__name__
    assert described.takes_labels == (config.objective.conditions.kind == "labels")
    assert described.classes == class_count(pipeline)
    for key, value in table.call.items():
        assert described.call[key] in (value, None) or name in EMBEDDED


@pytest.mark.parametrize("name", ["digits", "dit", "stable_diffusion"])
def test_every_key_of_its_tables_is_there_with_what_it_takes(name: str, tmp_path: Path) -> None:
    text = written(name, tmp_path).read_text()
    table = tomllib.loads(text)
    classes = {
        "": StudyFile,
        "pipeline": PipelineConfig,
        "space": SPACES[table["space"]["kind"]],
        "objective": METRICS[table["objective"]["kind"]].Config,
        "optimizer": OPTIMIZERS[table["optimizer"]["kind"]],
    }
    parts = dict(
        zip(
            ["", *re.findall(r"^\[(\S+)\]$", text, re.MULTILINE)],
            re.split(r"^\[\S+\]$", text, flags=re.MULTILINE),
            strict=True,
        )
    )
    for part, config in classes.items():
        for key in keys_of(config).values():
            if key.name in (*classes, "call", "conditions"):
                continue  # tables of their own
            above = re.search(rf"((?:^# .*\n)+)#?{key.name} = ", parts[part], re.MULTILINE)
            assert above is not None, (part, key.name)
            said = above[1].replace("\n# ", " ")
            assert key.name == "kind" or f"[{key.type}" in said


@pytest.mark.parametrize("name", ["digits-dit", "ddpm", "stable_diffusion"])
def test_defaults_that_it_shows_as_comments_are_the_defaults(name: str, tmp_path: Path) -> None:
    path = written(name, tmp_path)
    before = load_study_config(str(path)).definition()
    text = re.sub(r"(?<=\])\n#(\w+ = )", r"\n\1", re.sub(r"(?<=absent by default\])\n#.*", "", path.read_text()))
    assert "\nchannels_last = false\n" in text
    path.write_text(text)
    assert load_study_config(str(path)).definition() == before


def test_examples_of_keys_without_a_default_are_toml(tmp_path: Path) -> None:
    lines = re.findall(r"absent by default\]\n#(.*)", written("stable_diffusion", tmp_path).read_text())
    assert len(lines) > 10
    for line in lines:
        assert tomllib.loads(line)


RUN = ["digits", "digits-dit", "ddpm", "adm", "dit", "ldm", "stable_diffusion", "sd3", "latent_consistency"]


@pytest.mark.parametrize("name", slow_but(RUN, "digits-dit", "ddpm", "stable_diffusion"))
def test_it_runs(name: str, tmp_path: Path, url: str, call: Call) -> None:
    path = tmp_path / "new.toml"
    code, _, err = call("init", model_of(name), "-o", path, "--steps", 2)
    assert (code, err.splitlines()[0]) == (0, f"wrote {path}")
    # Fewer images: nothing else of the file is another.
    few = ("--set", "objective.images=4", "--set", "pipeline.micro_batch=2", "--set", "optimizer.start_from=[]")
    code, out, err = call("run", path, "--storage", url, "--trials", 2, *few, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["trials"] == 2
    assert len(summary["best"]["candidate"]["steps"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "ddpm", "dit", "stable_diffusion"])
@pytest.mark.usefixtures("cache")
def test_it_runs_as_it_is(name: str, tmp_path: Path, url: str, call: Call) -> None:
    path = tmp_path / "new.toml"
    assert call("init", model_of(name), "-o", path)[0] == 0
    code, out, err = call("run", path, "--storage", url, "--trials", 1, "--json")
    assert code == 0, err
    assert json.loads(out)["trials"] == 1


def test_a_model_of_a_hub_is_described_by_its_small_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, call: Call
) -> None:
    """As they lie in the hub's cache, without a connection; then the study runs from there too."""
    home = tmp_path / "hub" / "models--somebody--tiny"
    shutil.copytree(pipelines.saved("ddpm"), home / "snapshots" / "1")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    code, out, err = call("init", "somebody/tiny")
    assert (code, err) == (0, "")
    assert 'model = "somebody/tiny"' in out
    assert describe("somebody/tiny") == describe(str(pipelines.saved("ddpm")))


WRONG_MODELS = {
    "digit": "Did you mean 'digits'?",
    "./nowhere": "there is no folder",
    "somebody/nothing": "model_index.json cannot be had from the hub",
    "empty": "must hold a model_index.json",
    "broken": "cannot be read",
    "list": "must hold a JSON object",
    "unknown": "must be one of diffusers' pipelines, or ADMPipeline; got 'Strange\\n[x]'",
    "headless": "must have one of unet, transformer; DDPMPipeline has neither",
    "unscheduled": "its scheduler must be one of diffusers'; got ['diffusers', 'StrangeScheduler']",
    "edm": "counts its times on a noise scale of its own",
}


def broken_models(folder: Path) -> None:
    """Folders of models that cannot be described, by their names in ``WRONG_MODELS``."""
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    indices: dict[str, Any] = {
        "list": [],
        "unknown": {"_class_name": "Strange\n[x]"},
        "headless": {"_class_name": "DDPMPipeline", **parts, "unet": [None, None]},
        "unscheduled": {"_class_name": "DDPMPipeline", **parts, "scheduler": ["diffusers", "StrangeScheduler"]},
        "edm": {"_class_name": "DDPMPipeline", **parts, "scheduler": ["diffusers", "EDMEulerScheduler"]},
    }
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "model_index.json").write_text("{")
    for name, index in indices.items():
        for part in ("unet", "scheduler"):
            (folder / name / part).mkdir(parents=True)
        (folder / name / "unet" / "config.json").write_text('{"sample_size": 16}')
        (folder / name / "scheduler" / "scheduler_config.json").write_text("{}")
        (folder / name / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("model", WRONG_MODELS)
def test_a_model_that_cannot_be_described_is_told_in_a_sentence(model: str, call: Call) -> None:
    broken_models(Path())
    code, out, err = call("init", model if "/" in model or model == "digit" else f"./{model}")
    assert (code, out) == (2, "")
    assert WRONG_MODELS[model] in err


def test_no_file_is_written_over_unless_it_is_asked_for(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    code, out, err = call("init", "digits", "-o", path)
    assert (code, out, path.read_text()) == (2, "", "mine")
    assert "is there already" in err
    assert call("init", "digits", "-o", path, "--force")[0] == 0
    assert load_study_config(str(path)).trials == 60
    code, _, err = call("init", "digits", "-o", tmp_path / "none" / "mine.toml")
    assert (code, "must exist" in err) == (2, True)


def test_without_a_file_it_goes_to_stdout(call: Call) -> None:
    code, out, err = call("init", "digits")
    assert (code, err) == (0, "")
    assert tomllib.loads(out)["pipeline"]["model"] == "digits"


def test_paths_are_written_from_the_folder_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    shutil.copytree(pipelines.saved("stable_diffusion"), tmp_path / "models" / "digits")  # named as an embedded model
    (tmp_path / "studies").mkdir()
    (tmp_path / "prompts.txt").write_text("a cat\n")
    monkeypatch.chdir(tmp_path)
    given = ("--prompts", "prompts.txt", "--reference", "models")
    for model, file, expected in (
        ("models/digits", "studies/new.toml", "../models/digits"),
        ("models/digits", "models/new.toml", "./digits"),
    ):
        assert call("init", model, "-o", file, *given)[0] == 0
        table = tomllib.loads(Path(file).read_text())
        assert table["pipeline"]["model"] == expected
        assert table["objective"]["reference"] == ("../models" if file.startswith("studies") else ".")
        assert table["objective"]["conditions"] == {"kind": "prompts", "file": "../prompts.txt"}
        load_study_config(file)
    code, _, err = call("init", "models/digits", "--prompts", "none.txt")
    assert (code, "there is no file" in err) == (2, True)
    code, _, err = call("init", "models/digits", "--reference", "none")
    assert (code, "'none' is not there" in err) == (2, True)
    code, _, err = call("init", "digits", "--prompts", "prompts.txt")
    assert (code, "takes no prompts" in err) == (2, True)


def test_absolute_paths_stay(tmp_path: Path) -> None:
    assert as_written("/models/x", tmp_path) == "/models/x"
    assert as_written("~/x", tmp_path) == "~/x"
    assert as_written("x", None) == "x"


@pytest.mark.parametrize(
    "value",
    ['a "b" \\ c', "\n\t\x00\x7f\x1b", "é ∞ 🙂", True, 3, 1e-8, [], [1, 2.5], {"a": {"b": ["c"]}}, ["x" * 60] * 3],
)
def test_values_are_written_as_toml_reads_them(value: Any) -> None:
    assert tomllib.loads(f"value = {toml(value)}")["value"] == value


def test_a_micro_batch_divides_the_images_so_that_none_is_made_in_vain() -> None:
    assert [PAIRED_IMAGES % count for count in MICRO_BATCHES.values()] == [0] * len(MICRO_BATCHES)
