"""How a pipeline is run: types, memory formats, slicing, compiling. What is settable works or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peers import pipelines
from peers.samples import IMAGES, images_of, load

import autodiffusion_opt as ado
from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.load import _plain, denoiser_of, load_definition
from autodiffusion_opt.space.definitions import PipelineConfig

# diffusers' own set_timesteps, with NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


def definition(name: str, **settings: Any) -> Any:
    return load_definition(PipelineConfig(model=str(pipelines.saved(name)), device="cpu", **settings))


@pytest.mark.parametrize("name", ["ddim", "stable_diffusion", "sdxl", "sd3", "flux", "pixart_sigma", "dit"])
def test_bfloat16(name: str) -> None:
    pipeline = definition(name, dtype="bfloat16")
    assert torch.bfloat16 in {weight.dtype for weight in denoiser_of(pipeline).parameters()}
    half, full = images_of(pipeline, name).float(), images_of(load(name), name).float()
    assert (half - full).abs().mean() < 12
    assert torch.equal(half, images_of(pipeline, name).float())


@pytest.mark.parametrize("setting", ["channels_last", "attention_slicing"])
@pytest.mark.parametrize("name", ["ddim", "stable_diffusion"])
def test_memory_settings_change_no_image(name: str, setting: str) -> None:
    pipeline = definition(name, **{setting: True})
    difference = images_of(pipeline, name).int() - images_of(load(name), name).int()
    assert difference.abs().max() <= 1
    if setting == "channels_last":
        weight = denoiser_of(pipeline).conv_in.weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
    elif name == "stable_diffusion":
        assert pipeline.vae.use_slicing


def test_a_compiled_denoiser_takes_times_and_refuses_removed_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: _pretend_compiled(self, compiled))
    pipeline = definition("stable_diffusion", compile=True)
    assert compiled == [pipeline.unet]
    assert images_of(pipeline, "stable_diffusion").shape[0] == IMAGES
    with pytest.raises(UserError, match="is compiled"):
        ado.apply(pipeline, Candidate.from_time_steps([900, 300], removed=[[0], []]))


def _pretend_compiled(module: torch.nn.Module, compiled: list[torch.nn.Module]) -> None:
    """As nn.Module.compile without the compiler, which takes a minute here."""
    compiled.append(module)
    module._compiled_call_impl = module._call_impl


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_offload_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="offload = true needs a GPU"):
        definition("ddim", offload=True)


def test_what_changes_images_is_off() -> None:
    pipeline = load("stable_diffusion")
    assert pipeline.safety_checker is None
    assert not pipeline.config.requires_safety_checker
    marked = load("sdxl")
    marked.watermark = object()  # as where the invisible-watermark package is installed
    assert _plain(marked).watermark is None
