"""CompVis' unconditional checkpoints as ``LDMPipeline``: the same numbers as straight-line networks, none left over."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel, VQModel
from peers import adm, ldm

import autodiffusion_opt as ado
from autodiffusion_opt import UserError
from autodiffusion_opt.sampling.adm.weights import sources
from autodiffusion_opt.sampling.ldm import presets
from autodiffusion_opt.sampling.ldm.convert import build, convert
from autodiffusion_opt.sampling.ldm.presets import LDM4, PRESETS
from autodiffusion_opt.sampling.ldm.weights import first_stage_sources, parts_of
from autodiffusion_opt.sampling.renaming import renamed

PRESET = PRESETS[LDM4]
SMALL_LAYOUT = (32, 3, 4)
TIMES = torch.tensor([3.0, 700.25], dtype=torch.float64)


def noise(channels: int, size: int) -> torch.Tensor:
    return torch.randn((2, channels, size, size), generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.fixture
def states() -> tuple[adm.State, adm.State, adm.State]:
    return ldm.small_states()


@pytest.fixture
def file(tmp_path: Path, states: tuple[adm.State, ...], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkpoint, whose layout is known."""
    monkeypatch.setitem(presets.PRESETS, SMALL_LAYOUT, ldm.small_preset())
    torch.save({"state_dict": ldm.checkpoint(states[0], states[2], states[1])}, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


@torch.no_grad()
def test_a_converted_unet_computes_what_the_original_does(
    states: tuple[adm.State, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.models.embeddings.Timesteps.forward", adm.precise_waves)
    plain, averages, first_stage = states
    for checkpoint, sampled in (
        (ldm.checkpoint(plain, first_stage, averages), averages),
        (ldm.checkpoint(plain, first_stage), plain),
    ):
        ours = build(ldm.small_preset(), parts_of(checkpoint)).unet.double()(noise(3, 16), TIMES).sample
        theirs = ldm.unet(sampled, noise(3, 16), TIMES)
        assert theirs.std() > 0.1
        assert (ours - theirs).abs().max() < 1e-10


@torch.no_grad()
def test_the_new_order_of_queries_keys_and_values_is_far_off(
    states: tuple[adm.State, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.models.embeddings.Timesteps.forward", adm.precise_waves)
    plain, _, first_stage = states
    ours = build(ldm.small_preset(), parts_of(ldm.checkpoint(plain, first_stage))).unet.double()
    theirs = adm.unet(plain, ldm.SMALL, "new", noise(3, 16), TIMES)
    assert (ours(noise(3, 16), TIMES).sample - theirs).abs().max() > 1e-2


@torch.no_grad()
def test_a_converted_first_stage_computes_what_the_original_does(states: tuple[adm.State, ...]) -> None:
    plain, _, first_stage = states
    ours = build(ldm.small_preset(), parts_of(ldm.checkpoint(plain, first_stage))).vqvae.double()
    latents = ldm.encoded(first_stage, ldm.SMALL_VQ, noise(3, 32))
    assert latents.std() > 0.1
    assert (ours.encode(noise(3, 32)).latents - latents).abs().max() < 1e-10
    images = ldm.decoded(first_stage, ldm.SMALL_VQ, noise(3, 16))
    assert images.std() > 0.1
    assert (ours.decode(noise(3, 16)).sample - images).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("kind", "config", "sizes", "named", "originals", "targets", "parameters"),
    [
        (UNet2DModel, PRESET.unet, adm.shapes(ldm.LDM4), lambda model: sources(model, "legacy"), 368, 432, 274_056_163),
        (VQModel, PRESET.first_stage, ldm.first_stage_shapes(ldm.VQ_F4), first_stage_sources, 205, 205, 55_322_782),
    ],
    ids=["unet", "first-stage"],
)
def test_every_weight_of_the_published_model_has_its_place(
    kind: Any, config: Any, sizes: Any, named: Any, originals: int, targets: int, parameters: int
) -> None:
    with torch.device("meta"):
        model = kind(**config)
        state = {name: torch.empty(size) for name, size in sizes.items()}
    filled = renamed(state, model, named(model))
    assert {key: weight.shape for key, weight in filled.items()} == {
        key: weight.shape for key, weight in model.state_dict().items()
    }
    assert (len(state), len(filled)) == (originals, targets)
    assert sum(weight.numel() for weight in filled.values()) == parameters == sum(w.numel() for w in state.values())


def test_all_that_is_wrong_with_the_names_in_a_file_is_told(states: tuple[adm.State, ...]) -> None:
    plain, averages, first_stage = states
    checkpoint = ldm.checkpoint(plain, first_stage, averages)
    with pytest.raises(UserError, match=r"must hold no other weights; got extra, model_emb\.x"):
        parts_of({**checkpoint, "extra": torch.zeros(1), "model_emb.x": torch.zeros(1)})
    lost = {name: weight for name, weight in checkpoint.items() if name != "model_ema.diffusion_modelout2bias"}
    with pytest.raises(UserError, match="must have one moving average; that is not so of diffusion_modelout2bias"):
        parts_of(lost)
    lost = {name: weight for name, weight in checkpoint.items() if name != "first_stage_model.quant_conv.bias"}
    with pytest.raises(UserError, match=r"do not fit VQModel: missing: quant_conv\.bias"):
        build(ldm.small_preset(), parts_of(lost))
    with pytest.raises(UserError, match="its betas are others"):
        build(ldm.small_preset(), parts_of({**checkpoint, "betas": checkpoint["betas"] * 1.01}))


@pytest.mark.parametrize("has_averages", [True, False])
def test_a_converted_file_opens_as_the_pipeline_that_its_weights_make(
    file: Path, states: tuple[adm.State, ...], has_averages: bool, tmp_path: Path, call: Callable[..., Any]
) -> None:
    plain, averages, first_stage = states
    checkpoint = ldm.checkpoint(plain, first_stage, averages if has_averages else None)
    torch.save({"state_dict": checkpoint, "epoch": 3}, file)
    code, out, _ = call("convert", "ldm", file, "-o", tmp_path / "model", "--json")
    written = json.loads(out)
    assert (code, written["pipeline"], written["ema"]) == (0, "LDMPipeline", has_averages)
    assert set(written["parameters"]) == {"unet", "vqvae"}
    assert {path.suffix for path in (tmp_path / "model").rglob("*") if path.is_file()} == {".json", ".safetensors"}
    made = build(ldm.small_preset(), parts_of(checkpoint))
    made.set_progress_bar_config(disable=True)
    loaded = ado.load_pipeline(str(tmp_path / "model"), device="cpu")
    images = [
        pipeline(generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np").images
        for pipeline in (loaded, made)
    ]
    assert images[0].shape == (1, 32, 32, 3)
    assert abs(images[0] - images[1]).max() < 1e-5
    assert images[0].std() > 0.1


def test_a_safetensors_file_with_the_same_names_is_read(file: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(torch.load(file, weights_only=True)["state_dict"], tmp_path / "model.safetensors")
    assert convert(tmp_path / "model.safetensors", tmp_path / "out")["ema"] is True


class _Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class with the name of one of PyTorch Lightning's, which is gone before a file is read."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    kind = type("ModelCheckpoint", (), {"__module__": module.__name__, "__setstate__": lambda self, state: 1 / 0})
    module.ModelCheckpoint = kind  # type: ignore[attr-defined]
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    return kind


def test_what_lightning_keeps_beside_the_weights_is_passed_over_and_not_run(
    file: Path, lightning: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback, allowed = lightning(), torch.serialization.get_safe_globals()
    callback.best = 3
    state = torch.load(file, weights_only=True)["state_dict"]
    torch.save({"state_dict": state, "callbacks": {lightning: {"best": 1}}, "extra": [callback]}, file)
    for name in list(sys.modules):
        if name.startswith("pytorch_lightning"):
            monkeypatch.delitem(sys.modules, name)
    assert convert(file, tmp_path / "out")["pipeline"] == "LDMPipeline"
    assert torch.serialization.get_safe_globals() == allowed


def test_any_other_object_is_refused_by_name_and_how_to_go_on_is_told(file: Path, tmp_path: Path) -> None:
    state = torch.load(file, weights_only=True)["state_dict"]
    torch.save({"state_dict": state, "callbacks": _Runs(tmp_path / "ran")}, file)
    with pytest.raises(
        UserError, match=r"objects that are not read: builtins\.getattr, pathlib.*\. Get a file of weights alone"
    ):
        convert(file, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def _head(width: int, channels: int, blocks: int) -> dict[str, torch.Tensor]:
    """Of a file's weights, what tells the published models apart."""
    name = "model.diffusion_model.input_blocks"
    state = {f"{name}.{number}.0.in_layers.0.weight": torch.zeros(1) for number in range(1, blocks)}
    return {**state, f"{name}.0.0.weight": torch.zeros(width, channels, 3, 3)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_head(192, 4, 15), "must be one of LDM-4 .*; it is LDM-8 of LSUN churches"),
        (_head(64, 4, 9), "it is of no published layout: 64 channels wide, 4 in, 9 input blocks"),
        (
            {**_head(320, 4, 12), "cond_stage_model.x": torch.zeros(1)},
            "has conditions .*: convert sd",
        ),
        (_head(224, 3, 12), "the weights do not fit UNet2DModel: missing"),
        ({"weight": torch.zeros(1)}, "must be a checkpoint of latent-diffusion"),
        ({"state_dict": 3}, "must hold names and weights"),
    ],
)
def test_other_files_are_refused_by_name(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "model.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["text.ckpt", "text.safetensors", "missing.ckpt", "missing.safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    if name.startswith("text"):
        (tmp_path / name).write_text("no weights")
    with pytest.raises(UserError, match=name):
        convert(tmp_path / name, tmp_path / "out")


def test_a_classifier_is_refused(file: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    code, out, err = call("convert", "ldm", file, "--classifier", file, "-o", tmp_path / "model")
    assert (code, out) == (2, "")
    assert "ldm is not guided by a classifier" in err
