"""Loading: models, schedulers and devices by name; every setting works or is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from marks import slow_but
from peers import pipelines
from peers.samples import images_of, load

from autodiffusion_opt import UserError, load_pipeline
from autodiffusion_opt.sampling import load as load_module
from autodiffusion_opt.sampling.config import PipelineConfig
from autodiffusion_opt.sampling.load import (
    _plain,
    check_pipeline,
    denoiser_of,
    load_configured,
    pick_device,
)

# diffusers' own set_timesteps, with NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as error:
        load_pipeline(*args, **kwargs)
    return str(error.value)


def configured(name: str, **settings: Any) -> Any:
    return load_configured(PipelineConfig(model=str(pipelines.saved(name)), device="cpu", **settings))


def test_a_saved_folder_is_the_pipeline_that_was_saved(tmp_path: Path) -> None:
    pipeline = load("ddim")
    pipeline.save_pretrained(tmp_path / "own")
    again = load_pipeline(str(tmp_path / "own"), device="cpu")
    assert torch.equal(images_of(again, "ddim"), images_of(pipeline, "ddim"))


def test_models_that_are_none_are_refused_with_what_would_be_one(tmp_path: Path) -> None:
    assert "must hold a model_index.json" in refused(str(tmp_path))
    assert "Did you mean 'digits'?" in refused("digit")
    assert "must be an embedded name (digits, digits-dit), a folder" in refused("./nowhere")
    assert "must be an embedded name (digits, digits-dit), a folder" in refused(str(tmp_path / "nowhere"))
    assert "'nobody/nothing' cannot be loaded" in refused("nobody/nothing")  # offline
    (tmp_path / "model_index.json").write_text("{")
    assert "cannot be loaded" in refused(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    assert "cannot be loaded" in refused(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}')
    assert "cannot be loaded" in refused(str(tmp_path))


def test_misspelt_schedulers_and_settings_are_refused_with_the_nearest_match() -> None:
    assert "Did you mean 'ddim'?" in refused("digits", scheduler="dimm")
    assert "Did you mean 'DDIMScheduler'?" in refused("digits", scheduler="DDIMSchedler")
    assert "Did you mean 'steps_offset'?" in refused("digits", scheduler_settings={"step_offset": 1})


def test_settings_change_the_models_own_scheduler() -> None:
    own = load_pipeline("digits", device="cpu")
    spaced = load_pipeline("digits", scheduler_settings={"timestep_spacing": "trailing"}, device="cpu")
    assert spaced.scheduler.config.timestep_spacing == "trailing" != own.scheduler.config.timestep_spacing
    assert type(spaced.scheduler) is type(own.scheduler)


def test_plms_is_pndm_without_its_runge_kutta_start() -> None:
    found = load("stable_diffusion", scheduler="plms", scheduler_settings={"steps_offset": 0}).scheduler
    assert (type(found).__name__, found.config.skip_prk_steps, found.config.steps_offset) == ("PNDMScheduler", True, 0)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "meta:3:2"])
def test_devices_that_are_not_there_are_refused(device: str) -> None:
    with pytest.raises(UserError, match="device must be auto, cpu, or a GPU that is there"):
        pick_device(device)


def test_auto_is_the_first_gpu_or_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu").type == "cpu"
    for there, wanted in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert pick_device("auto").type == wanted


def test_an_object_that_is_no_pipeline_is_refused() -> None:
    with pytest.raises(UserError, match=r"must have a scheduler and be called to sample.*got SimpleNamespace"):
        check_pipeline(SimpleNamespace(unet=1))


def test_a_pipeline_without_a_denoiser_is_refused(digits: Any) -> None:
    class Blind:
        scheduler = digits.scheduler

        def __call__(self) -> None:
            """Nothing to call."""

    with pytest.raises(UserError, match="must have one of unet, transformer; Blind has neither"):
        check_pipeline(Blind())


KINDS = ("ddim", "stable_diffusion", "sdxl", "sd3", "flux", "pixart_sigma", "dit")


@pytest.mark.parametrize("name", slow_but(KINDS, "ddim", "sd3"))
def test_bfloat16_gives_nearly_the_images_of_float32_and_the_same_ones_again(name: str) -> None:
    pipeline = configured(name, dtype="bfloat16")
    assert torch.bfloat16 in {weight.dtype for weight in denoiser_of(pipeline).parameters()}
    half, full = images_of(pipeline, name).float(), images_of(load(name), name).float()
    assert (half - full).abs().mean() < 12
    assert torch.equal(half, images_of(pipeline, name).float())


@pytest.mark.parametrize("setting", ["channels_last", "attention_slicing"])
@pytest.mark.parametrize("name", ["ddim", "stable_diffusion"])
def test_memory_settings_change_no_image_by_more_than_a_level(name: str, setting: str) -> None:
    pipeline = configured(name, **{setting: True})
    difference = images_of(pipeline, name).int() - images_of(load(name), name).int()
    assert difference.abs().max() <= 1
    if setting == "channels_last":
        weight = denoiser_of(pipeline).conv_in.weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
    elif name == "stable_diffusion":
        assert pipeline.vae.use_slicing


def test_a_denoiser_is_compiled_when_its_memory_format_and_offload_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiled layers do is in test_compile.py."""
    found = []

    def compile_layers(pipeline: Any, call: Any) -> None:
        last = torch.channels_last
        found.append(
            (pipeline, pipeline.unet.conv_in.weight.is_contiguous(memory_format=last), "offloaded" in vars(pipeline))
        )

    monkeypatch.setattr(load_module, "compile_layers", compile_layers)
    monkeypatch.setattr(load_module, "_offload", lambda pipeline, device: setattr(pipeline, "offloaded", device))
    configured("stable_diffusion")
    assert found == []
    pipeline = configured("stable_diffusion", compile=True, channels_last=True, offload=True)
    assert found == [(pipeline, True, True)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_offload_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="offload = true needs a GPU"):
        configured("ddim", offload=True)


def test_what_hides_or_marks_images_is_taken_off() -> None:
    pipeline = load("stable_diffusion")
    pipeline.safety_checker = object()
    pipeline.register_to_config(requires_safety_checker=True)
    assert _plain(pipeline).safety_checker is None
    assert not pipeline.config.requires_safety_checker
    marked = load("sdxl")
    marked.watermark = object()  # as where the invisible-watermark package is installed
    assert _plain(marked).watermark is None
