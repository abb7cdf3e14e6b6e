"""A relative path in a study starts from the folder of the file that names it, whatever the working folder.

Beside every file that a study names there is one of the same name in each folder that it must not be taken from.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from marks import slow_but
from peers import pipelines
from PIL import Image

from autodiffusion_opt import Study, UserError
from autodiffusion_opt.objective import features
from autodiffusion_opt.study.config import StudyConfig, load_study_config
from autodiffusion_opt.study.problem import load_problem, load_sampler
from autodiffusion_opt.study.results import candidate_file, listed_layers, open_study, resolve
from autodiffusion_opt.study.stored_config import stored_config
from autodiffusion_opt.trials.attributes import FILE, FOLDERS

PIPELINE = 'model = "weights"\nmicro_batch = 2\nbatch_size = 2\n'
SPACE = 'kind = "time-steps"\nsteps = 3\n'
OBJECTIVE = 'kind = "fid"\nimages = 4\nfeatures = "pixels"\nreference = "images"\n'
CONDITIONS = '[{}conditions]\nkind = "prompts"\nfile = "prompts.txt"\n'
PARTS = {"pipeline": PIPELINE, "space": SPACE, "objective": OBJECTIVE + CONDITIONS.format("")}
WHOLE = (
    f"trials = 2\noptimizer = 'random'\n[pipeline]\n{PIPELINE}[space]\n{SPACE}[objective]\n{OBJECTIVE}"
    + CONDITIONS.format("objective.")
)


def fill(folder: Path, name: str, prompt: str) -> None:
    """A model, a reference and prompts of the names that the tables give."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(pipelines.saved(name), folder / "weights")
    (folder / "prompts.txt").write_text(prompt)
    (folder / "images").mkdir()
    noise = np.random.default_rng(len(prompt))
    for index in range(3):
        pixels = noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A study in one file, ``whole.toml``; and ``studies/parts.toml``, each part of it in a folder of its own."""
    fill(tmp_path / "here", "ddpm", "what is in the working folder")
    place = tmp_path / "project"
    fill(place, "stable_diffusion", "a cat")
    (place / "whole.toml").write_text(WHOLE)
    fill(place / "studies", "ddpm", "what is beside the study")
    named = "".join(f'{part} = "../{part}/own.toml"\n' for part in (*PARTS, "optimizer"))
    (place / "studies" / "parts.toml").write_text("trials = 2\n" + named)
    for part, text in {**PARTS, "optimizer": 'kind = "random"\n'}.items():
        (place / part).mkdir()
        (place / part / "own.toml").write_text(text)
    shutil.copytree(place / "weights", place / "pipeline" / "weights")
    shutil.copytree(place / "images", place / "objective" / "images")
    shutil.copy(place / "prompts.txt", place / "objective")
    return place


def message(config: StudyConfig) -> str:
    with pytest.raises(UserError) as error:
        load_problem(config)
    return str(error.value)


@pytest.fixture
def wanted(project: Path) -> dict[str, str]:
    """The fingerprint of the study whose paths are all absolute."""
    text = WHOLE
    for name in ("weights", "images", "prompts.txt"):
        text = text.replace(f'"{name}"', f'"{project / name}"')
    (project.parent / "absolute.toml").write_text(text)
    return load_problem(load_study_config(str(project.parent / "absolute.toml"))).fingerprint


@pytest.mark.parametrize("name", slow_but(["whole.toml", "studies/parts.toml"], "studies/parts.toml"))
def test_paths_start_from_the_file_that_names_them_now_and_from_sql(
    name: str, project: Path, wanted: dict[str, str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "here")
    study = Study.load(project / name, storage=url)
    assert study.problem.fingerprint == wanted
    study.run(1)
    monkeypatch.chdir("/")
    path, name = project / name, study.config.name
    stored = open_study(name, url)
    best = tmp_path / "there" / "best.json"
    best.parent.mkdir()
    best.write_text(json.dumps(candidate_file(stored.top(1)[0], name, stored.definition)))
    for given in (name, str(best)):
        config = resolve(given, None, url).config
        assert load_problem(config).fingerprint == wanted
    assert listed_layers(str(path))[0][0].path.startswith("down_blocks")


@pytest.mark.slow
def test_a_definition_has_no_absolute_path_so_that_two_checkouts_share_a_study(
    project: Path, url: str, tmp_path: Path
) -> None:
    Study.load(project / "studies" / "parts.toml", storage=url).run(1)
    other = shutil.copytree(project, tmp_path / "other")
    shutil.rmtree(project)
    assert len(Study.load(other / "studies" / "parts.toml", storage=url).run(2)) == 2
    attributes = open_study("parts", url).study.user_attrs
    assert str(tmp_path) not in json.dumps(attributes["definition"])
    assert attributes[FILE] == str(other / "studies" / "parts.toml")
    assert attributes[FOLDERS] == {part: str(other / part) for part in (*PARTS, "optimizer")}


def test_a_stored_study_that_names_its_file_alone_starts_from_there(project: Path, wanted: dict[str, str]) -> None:
    definition = load_study_config(str(project / "whole.toml")).definition() | {FILE: str(project / "whole.toml")}
    assert load_problem(stored_config("whole", "whole in sqlite:///x.db", definition)).fingerprint == wanted


def test_a_definition_without_a_file_starts_from_the_file_that_it_is_in(project: Path, wanted: dict[str, str]) -> None:
    definition = load_study_config(str(project / "whole.toml")).definition()
    content = {"format": 1, "steps": [900], "source": {"definition": definition}}
    (project / "own.json").write_text(json.dumps(content))
    config = resolve(str(project / "own.json"), None, None).config
    assert load_problem(config).fingerprint == wanted


def test_paths_of_a_python_study_start_from_the_working_folder(
    project: Path, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    table = {"model": "weights", "micro_batch": 2, "batch_size": 2}
    conditions = {"kind": "prompts", "file": "prompts.txt"}
    objective = {"kind": "fid", "images": 4, "features": "pixels", "reference": "images", "conditions": conditions}
    space = {"kind": "time-steps", "steps": 3}
    assert Study("mine", pipeline=table, space=space, objective=objective).problem.fingerprint == wanted
    # Those in a file that it names start from that file.
    named = {"pipeline": "pipeline/own.toml", "objective": "objective/own.toml"}
    assert Study("mine", space="space/own.toml", **named).problem.fingerprint == wanted
    with pytest.raises(UserError, match=rf"there is no file no\.toml \({project}/no\.toml\)"):
        Study("mine", space=space, pipeline="no.toml", objective=objective)


def test_a_model_by_name_alone_is_a_folder_beside_the_study(project: Path, wanted: dict[str, str]) -> None:
    text = WHOLE.replace(f"[pipeline]\n{PIPELINE}", "").replace("trials", 'pipeline = "./weights"\ntrials')
    (project / "whole.toml").write_text(text)
    assert load_sampler(load_study_config(str(project / "whole.toml"))).pipeline.config["unet"]
    assert load_problem(load_study_config(str(project / "whole.toml"))).fingerprint == wanted


def test_a_folder_beside_the_study_hides_a_hub_id_of_its_name(
    project: Path, wanted: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(project / "weights", project / "owner" / "name")
    (tmp_path / "here" / "other" / "name").mkdir(parents=True)
    config = load_study_config(str(project / "whole.toml"), ["pipeline.model=owner/name"])
    assert load_problem(config).fingerprint == wanted
    # One in the working folder does not.
    text = message(load_study_config(str(project / "whole.toml"), ["pipeline.model=other/name"]))
    assert f"there is no folder {project}/other/name, and from the hub: " in text


@pytest.mark.slow
def test_a_change_counts_as_written_in_the_file_that_holds_the_table(project: Path, tmp_path: Path) -> None:
    for place in (project, project / "pipeline", tmp_path / "here"):
        shutil.copytree(project / "weights", place / "more")
    shutil.copytree(project / "images", project / "objective" / "scans")
    for name, folder in (("whole.toml", project), ("studies/parts.toml", project / "pipeline")):
        config = load_study_config(str(project / name), ["pipeline.model=more"])
        assert str(load_sampler(config).pipeline.config["_name_or_path"]) == str(folder / "more")
    changed = load_study_config(str(project / "studies" / "parts.toml"), ["objective.reference=scans"])
    assert load_problem(changed).objective.identity
    # A part that is changed as a whole is named by the study's file.
    changed = load_study_config(str(project / "studies" / "parts.toml"), ["pipeline=../weights"])
    assert str(load_sampler(changed).pipeline.config["_name_or_path"]) == str(project / "studies" / "../weights")


# key=value -> what a message must name, from the folder of the study.
MISSING = {
    "pipeline.model=./none": "there is no folder {}/none",
    "pipeline.model=images": "the folder {}/images must hold a model_index.json",
    "pipeline.model=no/thing": "there is no folder {}/no/thing",
    "objective.reference=none": "there is no {}/none",
    "objective.reference=none.npz": "there is no {}/none.npz",
    "objective.conditions.file=none.txt": "there is no file {}/none.txt",
}


@pytest.mark.parametrize("change", MISSING)
def test_a_message_says_where_was_looked(change: str, project: Path, tmp_path: Path) -> None:
    for name in ("none", "none.npz", "none.txt"):  # what is in the working folder does not count
        (tmp_path / "here" / name).touch()
    text = message(load_study_config(str(project / "whole.toml"), [change]))
    assert MISSING[change].format(project) in text


@pytest.mark.parametrize("part", ["pipeline", "space", "objective", "optimizer"])
def test_the_file_of_a_part_is_looked_for_beside_the_study(part: str, project: Path, tmp_path: Path) -> None:
    (tmp_path / "here" / "own.toml").write_text("")
    with pytest.raises(UserError, match=rf"there is no file own\.toml \({project}/own\.toml\)"):
        load_study_config(str(project / "whole.toml"), [f"{part}=own.toml"])


def test_weights_of_features_start_from_the_objectives_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def load(name: str, device: Any, weights: Path | None, base: Path) -> Any:
        given.append(weights)
        return features.PixelFeatures()

    monkeypatch.setattr(features, "load_extractor", load)
    load_problem(load_study_config(str(project / "studies" / "parts.toml"), ["objective.features_weights=w.pth"]))
    assert given == [project / "objective" / "w.pth"]
