"""Stable Diffusion in a single file, with its authors' names of weights, becomes the pipeline that it was made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import pipelines
from safetensors.torch import save_file

import autodiffusion_opt as ado
from autodiffusion_opt import UserError
from autodiffusion_opt.sampling.adm import weights as unet_names
from autodiffusion_opt.sampling.ldm import weights as latent_names
from autodiffusion_opt.sampling.single_file import convert


def original(pipeline: Any) -> dict[str, torch.Tensor]:
    """The weights of Stable Diffusion as CompVis' files name them."""
    return {name: weight.clone() for name, weight in _original(pipeline)}


def _original(pipeline: Any) -> Iterator[tuple[str, torch.Tensor]]:
    unet, vae = pipeline.unet, pipeline.vae
    blocks = dict(unet_names.block_sources(unet))
    for key, weight in unet.state_dict().items():
        module, _, leaf = key.rpartition(".")
        block = next((path for path in blocks if key.startswith(f"{path}.")), None)
        if block is None:
            name = unet_names._ENDS[module]
        else:
            inner = module.removeprefix(f"{block}.")
            inner = {"conv": "op" if "downsamplers" in block else "conv"}.get(inner, inner)
            name = f"{blocks[block]}.{unet_names._RESIDUAL.get(inner, inner)}"
        yield f"model.diffusion_model.{name}.{leaf}", weight
    sources = latent_names.first_stage_sources(vae)
    for key, weight in vae.state_dict().items():
        module, _, leaf = key.rpartition(".")
        is_matrix = "attentions" in module and weight.ndim == 2  # a convolution of one position there
        yield f"first_stage_model.{sources[module].path}.{leaf}", weight[..., None, None] if is_matrix else weight
    for key, weight in pipeline.text_encoder.state_dict().items():
        prefix = "" if key.startswith("text_model.") else "text_model."
        yield f"cond_stage_model.transformer.{prefix}{key}", weight


@pytest.fixture
def model(tmp_path: Path) -> tuple[Any, Path]:
    """A small random pipeline, and a folder of its configurations without weights."""
    pipeline = pipelines.stable_diffusion()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "whole")
    config = tmp_path / "config"
    shutil.copytree(tmp_path / "whole", config, ignore=shutil.ignore_patterns("*.safetensors"))
    return pipeline, config


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_becomes_the_pipeline_that_it_was_made_of(
    suffix: str, model: tuple[Any, Path], tmp_path: Path, call: Callable[..., Any]
) -> None:
    pipeline, config = model
    state, file = original(pipeline), tmp_path / f"model{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": state, "epoch": 1}, file)
    else:
        save_file(state, file)
    code, out, err = call("convert", "sd", file, "--config", config, "-o", tmp_path / "out", "--json")
    assert code == 0, err
    assert json.loads(out)["pipeline"] == "StableDiffusionPipeline"
    loaded = ado.load_pipeline(str(tmp_path / "out"), device="cpu")
    for part in ("unet", "vae", "text_encoder"):
        made, read = getattr(pipeline, part).state_dict(), getattr(loaded, part).state_dict()
        assert made.keys() == read.keys()
        assert all(torch.equal(made[name], read[name]) for name in made), part


def test_a_file_that_lacks_a_weight_is_refused(model: tuple[Any, Path], tmp_path: Path) -> None:
    pipeline, config = model
    state = original(pipeline)
    for name, part in (
        ("model.diffusion_model.out.2.bias", "unet"),
        ("first_stage_model.quant_conv.bias", "vae"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "text_encoder"),
    ):
        save_file({key: weight for key, weight in state.items() if key != name}, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=rf"must hold [\d,]+ numbers under .* for the {part}; it holds"):
            convert(tmp_path / "model.safetensors", config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_or_no_configuration_is_told(
    model: tuple[Any, Path], tmp_path: Path, call: Callable[..., Any]
) -> None:
    file = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="must be a file; there is none"):
        convert(file, model[1], tmp_path / "out")
    file.write_text("no weights")
    with pytest.raises(UserError, match="must be a file of weights alone"):
        convert(file, model[1], tmp_path / "out")
    with pytest.raises(UserError, match=r"--config: .* must be a folder with the model_index\.json"):
        convert(file, tmp_path, tmp_path / "out")
    code, _, err = call("convert", "sd", file, "-o", tmp_path / "out")
    assert code == 2
    assert "--config" in err
    code, _, err = call("convert", "ldm", file, "--config", model[1], "-o", tmp_path / "out")
    assert code == 2
    assert "--config: ldm" in err


class _Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused(model: tuple[Any, Path], tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "extra": _Runs(tmp_path / "ran")}, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="objects that are not read"):
        convert(tmp_path / "model.ckpt", model[1], tmp_path / "out")
    assert not (tmp_path / "ran").exists()
