"""Inputs made from a config: as many tokens, and samples as large, as diffusers' pipelines give the model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from marks import slow_but
from peers import denoisers

from autodiffusion_opt.sampling.layers import list_layers
from autodiffusion_opt.sampling.layers.example_inputs import make_inputs
from autodiffusion_opt.sampling.layers.meta_copy import plain_config

# Shapes of (sample, text). SD: CLIP's 77 tokens. PixArt-Σ, Sana: 300. SD3: 77 of CLIP, then 256 of T5. AuraFlow: 256.
# Flux, Chroma: latents of 128 packed 2 by 2, 512 tokens of T5. HunyuanDiT: as its config says.
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = {
    "ADM": ((1, 3, 8, 8), None),
    "SD": ((1, 4, 8, 8), (1, 77, 8)),
    "DiT": ((1, 4, 8, 8), None),
    "PixArt": ((1, 4, 8, 8), (1, 300, 8)),
    "SD3": ((1, 4, 8, 8), (1, 333, 8)),
    "Flux": ((1, 4096, 4), (1, 512, 8)),
    "Chroma": ((1, 4096, 4), (1, 512, 8)),
    "Sana": ((1, 4, 8, 8), (1, 300, 8)),
    "AuraFlow": ((1, 4, 8, 8), (1, 256, 8)),
    "HunyuanDiT": ((1, 4, 8, 8), (1, 5, 8)),
}


@pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")  # diffusers' own, in 0.42
@pytest.mark.parametrize("name", SHAPES)
def test_a_sample_and_a_text_are_as_large_as_the_pipeline_s(name: str) -> None:
    inputs = make_inputs(denoisers.made(name)[0])
    sample, text = (inputs.get(key) for key in ("hidden_states", "encoder_hidden_states"))
    shape, text_shape = SHAPES[name]
    assert tuple((inputs["sample"] if sample is None else sample).shape) == shape
    assert (None if text is None else tuple(text.shape)) == text_shape
    assert all(value.is_meta for value in inputs.values() if isinstance(value, torch.Tensor))


def test_pixart_alpha_has_fewer_tokens_than_sigma() -> None:
    """They are told apart by ``use_additional_conditions``: Σ's is False."""
    for conditions, tokens in ((False, 300), (True, 120), (None, 120)):
        config = {"in_channels": 4, "sample_size": 8, "caption_channels": 8, "use_additional_conditions": conditions}
        inputs = make_inputs(PixArtTransformer2DModel(config))
        assert tuple(inputs["encoder_hidden_states"].shape) == (1, tokens, 8)


class PixArtTransformer2DModel(torch.nn.Module):
    """Inputs are made by the class's name and the config alone."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config


@pytest.mark.parametrize(("hidden", "kind"), [(None, None), (32, "text_proj")])
def test_the_config_before_an_ip_adapter_was_loaded_is_restored(hidden: int | None, kind: str | None) -> None:
    config = {"encoder_hid_dim": hidden, "encoder_hid_dim_type": "ip_image_proj", "sample_size": 64}
    restored = plain_config(SimpleNamespace(config=config))
    assert restored == {"encoder_hid_dim": hidden, "encoder_hid_dim_type": kind, "sample_size": 64}
    assert config["encoder_hid_dim_type"] == "ip_image_proj"


@pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", slow_but(denoisers.NETWORKS, "ADM", "SD", "Flux"))
def test_layers_are_counted_inside_of_inference_mode_as_well(name: str) -> None:
    """Where the ranking of layers runs."""
    with torch.inference_mode():
        listed = list_layers(denoisers.made(name)[0])
    assert listed == list_layers(denoisers.made(name)[0])
