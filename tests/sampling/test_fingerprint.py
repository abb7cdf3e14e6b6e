"""The fingerprint: the same for the same weights and settings, another where either changed."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peers import pipelines
from peers.samples import load

from autodiffusion_opt import Candidate, load_pipeline
from autodiffusion_opt.sampling import fingerprint as module
from autodiffusion_opt.sampling.apply import install
from autodiffusion_opt.sampling.fingerprint import fingerprint, fingerprint_object


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a saved pipeline."""
    return Path(shutil.copytree(pipelines.saved("ddim"), tmp_path / "own"))


@pytest.fixture
def pipeline() -> Any:
    return load("ddim")


def test_a_folder_has_the_same_fingerprint_wherever_it_lies(folder: Path, pipeline: Any, tmp_path: Path) -> None:
    before = fingerprint(pipeline, str(folder))
    moved = folder.rename(tmp_path / "elsewhere")
    assert fingerprint(load_pipeline(str(moved), device="cpu"), str(moved)) == before
    assert fingerprint(load("ddpm"), str(pipelines.saved("ddpm"))) != before


@pytest.mark.parametrize("where", [0, -1])
def test_changed_weights_change_it(where: int, folder: Path, pipeline: Any) -> None:
    before = fingerprint(pipeline, str(folder))
    weights = next(folder.rglob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[where] ^= 1
    weights.write_bytes(content)
    assert fingerprint(pipeline, str(folder)) != before


@pytest.mark.parametrize("where", [0, 7, 8, 15, -1])
def test_of_a_large_file_both_ends_and_the_size_count(
    where: int, folder: Path, pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 8)
    large = folder / "large.bin"
    large.write_bytes(bytes(16))
    before = fingerprint(pipeline, str(folder))
    large.write_bytes(bytes(17))
    assert fingerprint(pipeline, str(folder)) != before
    content = bytearray(16)
    content[where] = 1
    large.write_bytes(content)
    assert fingerprint(pipeline, str(folder)) != before


def test_a_renamed_file_changes_it_but_a_readme_or_a_hidden_folder_does_not(folder: Path, pipeline: Any) -> None:
    before = fingerprint(pipeline, str(folder))
    (folder / "README.md").write_text("a model")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "hub.json").write_text("{}")
    assert fingerprint(pipeline, str(folder)) == before
    next(folder.rglob("*.safetensors")).rename(folder / "unet" / "other.safetensors")
    assert fingerprint(pipeline, str(folder)) != before


def test_the_schedulers_settings_count(folder: Path) -> None:
    one = load_pipeline(str(folder), device="cpu")
    other = load_pipeline(str(folder), device="cpu", scheduler_settings={"set_alpha_to_one": False})
    assert fingerprint(one, str(folder)) != fingerprint(other, str(folder))


def test_a_hub_model_is_known_by_its_resolved_commit_revision_and_variant(pipeline: Any) -> None:
    def hub(commit: str = "abc", revision: str | None = None, variant: str | None = None) -> str:
        config = {"_name_or_path": f"/hub/models--owner--name/snapshots/{commit}"}
        return fingerprint(
            SimpleNamespace(scheduler=pipeline.scheduler, config=config), "owner/name", revision, variant
        )

    assert hub() == hub()
    assert len({hub(), hub("abd"), hub(revision="main"), hub(variant="fp16"), hub(revision="fp16")}) == 5


def test_an_objects_fingerprint_is_that_of_its_weights_and_its_scheduler(pipeline: Any) -> None:
    before = fingerprint_object(pipeline)
    assert fingerprint_object(load("ddim")) == before
    assert fingerprint_object(load("ddpm")) != before
    with install(pipeline, Candidate.from_time_steps([900, 300], removed=[[0], []])):
        assert fingerprint_object(pipeline) == before
    assert fingerprint_object(pipeline) == before
    changed = copy.deepcopy(pipeline)
    changed.scheduler.register_to_config(set_alpha_to_one=False)
    assert fingerprint_object(changed) != before


@pytest.mark.parametrize("name", ["conv_in.bias", "conv_out.weight", "time_embedding.linear_1.weight"])
def test_a_changed_weight_of_an_object_changes_it(name: str, pipeline: Any) -> None:
    before = fingerprint_object(pipeline)
    with torch.no_grad():
        pipeline.unet.get_parameter(name).view(-1)[0] += 1
    assert fingerprint_object(pipeline) != before


def test_of_a_large_weight_evenly_spread_values_count(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VALUES", 4)
    weight = pipeline.unet.conv_in.weight.view(-1)
    before, stride = fingerprint_object(pipeline), len(weight) // 4
    with torch.no_grad():
        weight[1] += 1
    assert fingerprint_object(pipeline) == before
    with torch.no_grad():
        weight[3 * stride] += 1
    assert fingerprint_object(pipeline) != before
