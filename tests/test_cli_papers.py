"""``convert`` and ``reproduce``: published checkpoints become folders, tables are measured; on random weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from peers import adm

import autodiffusion_opt as ado
from autodiffusion_opt.cli import papers
from autodiffusion_opt.report.tables import number
from autodiffusion_opt.sampling.adm import presets
from autodiffusion_opt.study.reproduce import EXPERIMENTS

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Files of a small UNet and its classifier, which stand for ImageNet 64's."""
    preset, unet, classifier = adm.small("new")
    monkeypatch.setitem(presets.PRESETS, "adm64", preset)
    monkeypatch.setitem(presets.CLASSIFIER_NAMES, 4, presets.CLASSIFIER_NAMES[20])
    for layout, name in list(presets.NAMES.items()):
        if name.startswith("adm64"):
            monkeypatch.delitem(presets.NAMES, layout)
            monkeypatch.setitem(presets.NAMES, (32, 3, True, 4), name)
    files = tmp_path / "unet.pt", tmp_path / "classifier.pt"
    torch.save(adm.random_state(unet, 1), files[0])
    torch.save(adm.random_state(classifier, 2), files[1])
    return files


def test_the_presets_of_the_command_are_those_there_are() -> None:
    assert set(papers.PRESETS) == {*presets.PRESETS, "ldm", "sd"}


def test_a_converted_checkpoint_is_the_pipeline_that_its_weights_make(
    checkpoints: tuple[Path, Path], tmp_path: Path, call: Call
) -> None:
    unet, classifier = checkpoints
    code, out, _ = call("convert", "adm64", unet, "--classifier", classifier, "-o", tmp_path / "model", "--json")
    assert (code, json.loads(out)["folder"]) == (0, str(tmp_path / "model"))
    assert set(json.loads(out)["parameters"]) == {"unet", "classifier"}
    loaded = ado.load_pipeline(str(tmp_path / "model"), device="cpu")
    arguments = {"class_labels": [1, 3], "num_inference_steps": 3, "output_type": "np"}
    images = [
        pipeline(generator=torch.Generator().manual_seed(0), **arguments).images
        for pipeline in (loaded, adm.small_pipeline()[0])
    ]
    assert (images[0] == images[1]).all()


def test_what_was_converted_is_told(checkpoints: tuple[Path, Path], tmp_path: Path, call: Call) -> None:
    code, out, err = call("convert", "adm64", checkpoints[0], "-o", tmp_path / "model")
    assert code == 0
    assert "ADMPipeline (unet 0." in out
    assert "reading" in err


def test_a_wrong_file_is_a_mistake_of_the_user(checkpoints: tuple[Path, Path], tmp_path: Path, call: Call) -> None:
    code, out, err = call("convert", "lsun256", checkpoints[0], "-o", tmp_path / "model")
    assert (code, out) == (2, "")
    assert "it is adm64 (ImageNet 64). Use: convert adm64" in err
    code, _, err = call("convert", "adm128", checkpoints[0], "-o", tmp_path / "model")
    assert code == 2
    assert "adm64" in err


@pytest.fixture
def imagenet(tmp_path: Path) -> tuple[Path, Path]:
    """A narrow random model with the 58 layers of ImageNet 64's and five classes, and a reference of noise."""
    table = {**presets.PRESETS["adm64"].unet, "sample_size": 16, "block_out_channels": (32,) * 4, "num_class_embeds": 5}
    unet = UNet2DModel(**{**table, "attention_head_dim": 16}).eval()
    classifier = adm.small_pipeline()[0].classifier
    scheduler = DDIMScheduler(**presets.PRESETS["adm64"].scheduler)
    ado.ADMPipeline(unet, scheduler, classifier).save_pretrained(tmp_path / "narrow")
    noise = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", arr_0=noise)
    return tmp_path / "narrow", tmp_path / "noise.npz"


@pytest.mark.slow
def test_reproduce_prints_published_beside_measured(imagenet: tuple[Path, Path], call: Call) -> None:
    weights, reference = imagenet
    words = ["reproduce", "adm-imagenet64", "--weights", weights, "--reference", reference, "--images", 3]
    words += ["--device", "cpu"]
    for change in ("objective.features=pixels", "pipeline.micro_batch=3", "pipeline.batch_size=3"):
        words += ["--set", change]
    code, out, _ = call(*words, "--json")
    assert code == 0
    rows = json.loads(out)["rows"]
    assert [row["published"] for row in rows] == [138.66, 17.86, 11.17, None]
    assert [len(row["candidate"]["steps"]) for row in rows] == [4, 4, 6, 10]
    assert [step["time"] for step in rows[0]["candidate"]["steps"]] == [750, 500, 250, 0]
    measured = [row["measured"] for row in rows]
    assert len(set(measured)) == 4
    assert all(math.isfinite(value) for value in measured)
    code, out, _ = call(*words)
    assert code == 0
    assert "4 steps, uniform" in out
    assert "138.66" in out
    assert number(measured[0]) in out


def test_the_experiments_of_the_command_are_those_there_are() -> None:
    assert set(papers.EXPERIMENTS) == set(EXPERIMENTS)


def test_reproduce_without_the_model_says_which_files_to_get(tmp_path: Path, call: Call) -> None:
    weights, reference = tmp_path / "adm-imagenet64", tmp_path / "noise.npz"
    np.savez(reference, arr_0=np.zeros((2, 16, 16, 3), dtype=np.uint8))
    words = ("--weights", weights, "--reference", reference, "--set", "objective.features=pixels")
    code, out, err = call("reproduce", "adm-imagenet64", *words)
    assert (code, out) == (2, "")
    assert "64x64_diffusion.pt" in err.replace("\n", "")
    assert "autodiffusion-opt convert adm64" in err.replace("\n", " ")
