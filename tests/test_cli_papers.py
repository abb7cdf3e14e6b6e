"""``convert``: published checkpoints become folders, on small random ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peers import adm

import autodiffusion_opt as ado
from autodiffusion_opt.cli import papers
from autodiffusion_opt.sampling.adm import presets

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
    assert set(papers.PRESETS) == set(presets.PRESETS)


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
