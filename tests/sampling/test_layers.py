"""Layers: how many there are, in what order, what they cost, and that the numbers are right on real runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import Attention
from marks import slow_but
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.layers import (
    count_layers,
    install_bypass,
    list_layers,
    register_layer_kind,
    total_flops,
)
from autodiffusion_opt.sampling.layers.meta_copy import make_meta_copy

DOWN, UP = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
ADM: dict[str, Any] = {
    "resnet_time_scale_shift": "scale_shift",
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "attn_norm_num_groups": 32,
    "out_channels": 6,
    "attention_head_dim": 64,
}
ADM_IMAGENET_64 = ADM | {
    "sample_size": 64,
    "block_out_channels": (192, 384, 576, 768),
    "layers_per_block": 3,
    "down_block_types": (DOWN, *("AttnDownBlock2D",) * 3),
    "up_block_types": (*("AttnUpBlock2D",) * 3, UP),
    "num_class_embeds": 1000,
}
ADM_LSUN_256 = ADM | {
    "sample_size": 256,
    "block_out_channels": (256, 256, 512, 512, 1024, 1024),
    "layers_per_block": 2,
    "down_block_types": (*(DOWN,) * 3, *("AttnDownBlock2D",) * 3),
    "up_block_types": (*("AttnUpBlock2D",) * 3, *(UP,) * 3),
}
DDPM_CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
}
SDXL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
DIT_XL_2 = {
    "num_layers": 28,
    "sample_size": 32,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
}
SD3_MEDIUM = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}

HUNYUAN_DIT = {"num_layers": 40, "in_channels": 4, "patch_size": 2, "sample_size": 128} | {
    "activation_fn": "gelu-approximate",
    "hidden_size": 1408,
    "attention_head_dim": 88,
}

# Counts of the pretrained models, read off their configs (and, for ADM, off the original code).
KNOWN = {
    "ADM ImageNet 64": (diffusers.UNet2DModel, ADM_IMAGENET_64, {"residual": 36, "attention": 22}),
    "ADM LSUN 256": (diffusers.UNet2DModel, ADM_LSUN_256, {"residual": 42, "attention": 16}),
    "ddpm-cifar10": (diffusers.UNet2DModel, DDPM_CIFAR10, {"residual": 22, "attention": 6}),
    "SD 1.5": (
        diffusers.UNet2DConditionModel,
        {"sample_size": 64, "cross_attention_dim": 768},
        {"residual": 22, "transformer": 16},
    ),
    "SDXL": (diffusers.UNet2DConditionModel, SDXL, {"residual": 17, "transformer": 11}),
    "DiT-XL/2": (diffusers.DiTTransformer2DModel, DIT_XL_2, {"transformer": 28}),
    "PixArt-α": (diffusers.PixArtTransformer2DModel, {"caption_channels": 4096}, {"transformer": 28}),
    "SD3-medium": (diffusers.SD3Transformer2DModel, SD3_MEDIUM, {"transformer": 24}),
    "Flux": (diffusers.FluxTransformer2DModel, {"guidance_embeds": True}, {"transformer": 19 + 38}),
    "Sana": (diffusers.SanaTransformer2DModel, {}, {"transformer": 20}),
    "HunyuanDiT": (diffusers.HunyuanDiT2DModel, HUNYUAN_DIT, {"transformer": 40}),
    "AuraFlow": (diffusers.AuraFlowTransformer2DModel, {}, {"transformer": 4 + 32}),
}


def on_meta(kind: type, config: dict[str, Any]) -> torch.nn.Module:
    with torch.device("meta"):
        return kind(**config)


@pytest.mark.parametrize("name", slow_but(KNOWN, "ADM ImageNet 64", "SD 1.5", "DiT-XL/2", "SD3-medium"))
def test_the_known_models_have_their_known_layers(name: str) -> None:
    kind, config, counts = KNOWN[name]
    denoiser = on_meta(kind, config)
    layers = list_layers(denoiser)
    assert Counter(layer.kind for layer in layers) == counts
    assert [layer.index for layer in layers] == list(range(len(layers)))
    assert len({layer.path for layer in layers}) == len(layers) == count_layers(denoiser)
    assert all(layer.removable and layer.saved_flops > 0 for layer in layers)
    assert sum(layer.flops for layer in layers) < total_flops(denoiser)


def test_adm_imagenet_64_costs_what_its_convolutions_cost() -> None:
    denoiser = on_meta(diffusers.UNet2DModel, ADM_IMAGENET_64)
    first = list_layers(denoiser)[0]
    # At 64 by 64 pixels: two 3×3 convolutions 192 -> 192, and the time's projection to scale and shift.
    assert first.path == "down_blocks.0.resnets.0"
    assert first.flops == 2 * (2 * 192 * 192 * 9 * 64 * 64) + 2 * (4 * 192) * (2 * 192)
    assert first.bypass_flops == 0
    assert first.parameters == 2 * (192 * 192 * 9 + 192) + 2 * (2 * 192) + (4 * 192 + 1) * 2 * 192
    # The first block of the last stage takes 384 + 192 channels to 192: its shortcut remains.
    wider = next(layer for layer in list_layers(denoiser) if layer.path == "up_blocks.3.resnets.0")
    assert wider.bypass_flops == 2 * (384 + 192) * 192 * 64 * 64


def small_unet(**changes: Any) -> diffusers.UNet2DModel:
    torch.manual_seed(0)
    config = ADM | {
        "sample_size": 16,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": (DOWN, "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", UP),
        "norm_num_groups": 4,
        "attn_norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    return diffusers.UNet2DModel(**(config | changes)).eval()


SAMPLE = {"sample": torch.zeros(1, 3, 16, 16), "timestep": 3}


def test_layers_are_in_the_order_of_execution_and_not_of_the_modules() -> None:
    denoiser = small_unet()
    layers = list_layers(denoiser)
    ran: list[str] = []
    for layer in layers:
        denoiser.get_submodule(layer.path).register_forward_pre_hook(
            lambda module, args, path=layer.path: ran.append(path)
        )
    with torch.no_grad():
        denoiser(**SAMPLE)
    modules = [path for path, _ in denoiser.named_modules() if path in set(ran)]
    assert [layer.path for layer in layers] == ran
    assert sorted(modules) == sorted(ran)
    assert modules != ran


def state(module: torch.nn.Module) -> list[tuple[str, list[str], list[int]]]:
    """Of every module: its path, the names in its ``__dict__``, and which objects its containers hold."""
    held = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "forward")
    return [
        (path, sorted(vars(inner)), [id(value) for name in held for value in _values(vars(inner).get(name))])
        for path, inner in module.named_modules()
    ]


def _values(held: Any) -> list[Any]:
    return list(held.values()) if isinstance(held, dict) else []


def test_listing_leaves_a_real_model_untouched() -> None:
    denoiser = small_unet()
    before, weights = state(denoiser), {name: value.clone() for name, value in denoiser.state_dict().items()}
    random = torch.get_rng_state()
    list_layers(denoiser)
    assert state(denoiser) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, weights[name]) for name, value in denoiser.state_dict().items())


def measured(denoiser: torch.nn.Module, inputs: dict[str, Any]) -> int:
    # torch's counter knows no FLOPs of the fused attention that some processors choose.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        denoiser(**inputs)
    return counter.get_total_flops()


def test_removing_all_layers_at_half_of_the_steps_saves_what_the_list_says() -> None:
    denoiser = small_unet()
    layers, whole = list_layers(denoiser), total_flops(denoiser)
    everything = {layer.index for layer in layers}
    step, counts = [0], []
    with install_bypass(denoiser, [(), everything, (), everything], lambda: step[0]):
        for step[0] in range(4):
            counts.append(measured(denoiser, SAMPLE))
    least = whole - sum(layer.flops - layer.bypass_flops for layer in layers)
    assert counts == [whole, least, whole, least]
    assert least < 0.3 * whole
    assert measured(denoiser, SAMPLE) == whole


def test_each_layer_saves_what_the_list_says() -> None:
    denoiser = small_unet()
    whole = measured(denoiser, SAMPLE)
    for layer in list_layers(denoiser):
        with install_bypass(denoiser, [{layer.index}], lambda: 0):
            assert whole - measured(denoiser, SAMPLE) == layer.saved_flops


def test_given_inputs_set_the_cost_and_not_the_order() -> None:
    denoiser = small_unet()
    own = list_layers(denoiser)
    larger = {"sample": torch.zeros(2, 3, 32, 32), "timestep": 3}
    layers = list_layers(denoiser, larger)
    assert [layer.path for layer in layers] == [layer.path for layer in own]
    assert total_flops(denoiser, larger) == measured(denoiser, larger)
    assert list_layers(denoiser) == own  # and the other listing is not mistaken for this one


def test_a_listing_is_made_again_when_the_denoiser_is_rebuilt() -> None:
    denoiser = small_unet()
    before = count_layers(denoiser)
    del denoiser.mid_block.attentions[0], denoiser.mid_block.resnets[1]
    assert count_layers(denoiser) == before - 2
    assert total_flops(denoiser) == measured(denoiser, SAMPLE)


class Halve(torch.nn.Module):
    """A block of somebody else's."""

    def __init__(self, keep: bool = True) -> None:
        super().__init__()
        self.keep = keep
        self.mix = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mix(x) if self.keep else self.mix(x)[..., :2]


class Halves(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = Halve(), Halve()
        self.table = torch.ones(4)  # a tensor that is neither parameter nor buffer
        self.end = Halve(keep=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.first(self.last(self.first(x * self.table))))


@pytest.fixture
def known_halve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autodiffusion_opt.sampling.layers.kinds._KINDS", {})

    @register_layer_kind(Halve, "mixer")
    def _(module: Halve, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.usefixtures("known_halve")
def test_a_block_of_anybody_is_a_layer_once_it_is_registered() -> None:
    denoiser, x = Halves(), torch.randn(3, 4)
    layers = list_layers(denoiser, {"x": x})
    assert [(layer.path, layer.kind) for layer in layers] == [
        ("first", "mixer"),  # runs twice: one layer, at its first place, with the cost of both
        ("last", "mixer"),
        ("end", "mixer"),
    ]
    assert [layer.flops for layer in layers] == [2 * 96, 96, 96]
    assert [layer.removable for layer in layers] == [True, True, False]  # the last changes the shape
    with install_bypass(denoiser, [{0, 1}], lambda: 0):
        assert torch.equal(denoiser(x), denoiser.end(x))
    with pytest.raises(UserError, match=r"cannot be removed: 2 \(end\)"):
        install_bypass(denoiser, [{2}], lambda: 0)


@pytest.mark.usefixtures("known_halve")
def test_a_block_whose_bypass_changes_the_type_cannot_be_removed() -> None:
    register_layer_kind(Shortcut, "shortcut", lambda module, x: x.half())
    (layer,) = list_layers(torch.nn.Sequential(Shortcut()), {"input": torch.zeros(3, 4)})
    assert not layer.removable


def test_an_attention_without_a_skip_path_cannot_be_removed() -> None:
    inputs = {"input": torch.zeros(1, 5, 8)}
    for residual in (True, False):
        block = Attention(query_dim=8, heads=1, dim_head=8, residual_connection=residual)
        (layer,) = list_layers(torch.nn.Sequential(block), inputs)
        assert (layer.kind, layer.removable) == ("attention", residual)


@pytest.mark.usefixtures("known_halve")
def test_a_block_at_two_places_is_one_layer() -> None:
    shared = Halve()
    denoiser = torch.nn.Sequential(torch.nn.Sequential(shared), torch.nn.Sequential(Halve(), shared))
    layers = list_layers(denoiser, {"input": torch.zeros(3, 4)})
    assert [(layer.path, layer.flops) for layer in layers] == [("0.0", 192), ("1.0", 96)]


@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_copy_without_weights_is_in_evaluation_mode_whatever_the_denoiser_is(rebuilt: bool) -> None:
    denoiser = small_unet().train()
    if rebuilt:
        del denoiser.mid_block.attentions[0], denoiser.mid_block.resnets[1]
    copied = make_meta_copy(denoiser)
    assert denoiser.training
    assert not any(module.training for module in copied.modules())
    assert all(weight.is_meta for weight in copied.parameters())


class Shortcut(torch.nn.Module):
    """A block of which something is still computed when it is bypassed."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.narrow, self.skip = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.skip(x) + self.narrow(self.widen(x))


@pytest.mark.usefixtures("known_halve")
def test_flops_are_those_counted_by_hand() -> None:
    """3 rows: a linear layer from a to b is 2·3·a·b."""
    register_layer_kind(Shortcut, "shortcut", lambda module, x: module.skip(x))
    denoiser = torch.nn.Sequential(torch.nn.Linear(2, 4), Shortcut(), Halve(), torch.nn.Linear(4, 2))
    inputs = {"input": torch.zeros(3, 2)}
    shortcut, halve = list_layers(denoiser, inputs)
    assert (shortcut.path, shortcut.flops, shortcut.bypass_flops, shortcut.saved_flops) == ("1", 480, 96, 384)
    assert (halve.path, halve.flops, halve.bypass_flops, halve.saved_flops) == ("2", 96, 0, 96)
    assert (shortcut.parameters, halve.parameters) == (40 + 36 + 20, 20)
    assert total_flops(denoiser, inputs) == 48 + 480 + 96 + 48


@pytest.mark.usefixtures("known_halve")
def test_inputs_that_cannot_be_made_are_asked_for() -> None:
    with pytest.raises(UserError, match=r"Halves: its inputs cannot be made.*inputs="):
        list_layers(Halves())


def test_a_denoiser_without_known_layers_says_how_to_add_them() -> None:
    with pytest.raises(UserError, match="Linear has none: register"):
        list_layers(torch.nn.Linear(2, 2), {"input": torch.zeros(1, 2)})


def test_a_kind_may_refuse_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autodiffusion_opt.sampling.layers.kinds._KINDS", {})
    register_layer_kind(Halve, "mixer", lambda module, x: x, removable=lambda module: False)
    assert not any(layer.removable for layer in list_layers(Halves(), {"x": torch.zeros(1, 4)}))


def test_a_sample_size_that_the_config_does_not_say_is_asked_for() -> None:
    with pytest.raises(UserError, match="sample_size"):
        list_layers(small_unet(sample_size=None))


def test_images_need_not_be_square() -> None:
    denoiser = small_unet(sample_size=(8, 32))
    assert total_flops(denoiser) == measured(denoiser, {"sample": torch.zeros(1, 3, 8, 32), "timestep": 3})


@pytest.mark.slow
def test_a_loaded_ip_adapter_does_not_hinder_the_listing() -> None:
    denoiser = on_meta(diffusers.UNet2DConditionModel, {"sample_size": 64, "cross_attention_dim": 768})
    before = list_layers(denoiser)
    denoiser.register_to_config(encoder_hid_dim_type="ip_image_proj")  # as load_ip_adapter does
    assert list_layers(denoiser) == before


@pytest.mark.usefixtures("known_halve")
def test_a_model_without_a_config_is_copied_without_what_hangs_on_it() -> None:
    denoiser, x = Halves(), torch.randn(3, 4)
    before = list_layers(denoiser, {"x": x})
    denoiser.first.forward = denoiser.first._old_forward = _fail  # as accelerate wraps it
    denoiser.first._hf_hook = (number for number in ())  # what cannot be copied
    assert list_layers(denoiser, {"x": x}) == before


def _fail(*_: Any) -> None:
    raise AssertionError("run")
