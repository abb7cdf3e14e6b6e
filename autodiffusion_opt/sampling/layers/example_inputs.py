"""Inputs of a denoiser's forward pass, made from its config: batch 1, the real sizes, on the meta device.

Numbers of text tokens and default sizes are those of diffusers' pipelines for the model, named beside each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.layers.meta_copy import plain_config

Inputs = dict[str, Any]
Config = Mapping[str, Any]
_MAKERS: dict[str, Callable[[Config], Inputs]] = {}


def make_inputs(denoiser: torch.nn.Module) -> Inputs:
    """Keyword arguments for the denoiser's ``forward``.

    Raises:
        UserError: for a class that is not known here, or a config that does not say the sample size.
    """
    maker = _maker_of(denoiser)
    if maker is None:
        raise UserError(
            f"{type(denoiser).__name__}: its inputs cannot be made from its config; give list_layers the "
            f"keyword arguments of its forward as inputs=. Known are: {', '.join(sorted(_MAKERS))}"
        )
    return maker(plain_config(denoiser))


def can_make_inputs(denoiser: torch.nn.Module) -> bool:
    """Whether the inputs of a denoiser of this class are known from its config."""
    return _maker_of(denoiser) is not None


def _maker_of(denoiser: torch.nn.Module) -> Callable[[Config], Inputs] | None:
    return next((_MAKERS[cls.__name__] for cls in type(denoiser).__mro__ if cls.__name__ in _MAKERS), None)


def _maker(name: str) -> Callable[[Callable[[Config], Inputs]], Callable[[Config], Inputs]]:
    def register(function: Callable[[Config], Inputs]) -> Callable[[Config], Inputs]:
        _MAKERS[name] = function
        return function

    return register


def _floats(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def _integers(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.long, device="meta")


def _sample(config: Config) -> torch.Tensor:
    """``(1, channels, height, width)``"""
    size = config["sample_size"]
    if size is None:
        raise UserError("the denoiser's config does not say its sample_size; give list_layers inputs=")
    height, width = (size, size) if isinstance(size, int) else size
    return _floats(1, config["in_channels"], height, width)


@_maker("UNet2DModel")
def _unet(config: Config) -> Inputs:
    return {"sample": _sample(config), "timestep": _integers(1)} | _classes(config)


def _classes(config: Config) -> Inputs:
    kind = config.get("class_embed_type")
    if kind is None and config.get("num_class_embeds") is None:
        return {}
    if kind == "identity":  # a vector as wide as the time embedding, 4 times the first block
        width = config.get("time_embedding_dim") or 4 * config["block_out_channels"][0]
        return {"class_labels": _floats(1, width)}
    if kind in ("projection", "simple_projection"):
        return {"class_labels": _floats(1, config["projection_class_embeddings_input_dim"])}
    return {"class_labels": _integers(1)}


@_maker("UNet2DConditionModel")
def _unet_condition(config: Config) -> Inputs:
    width = config.get("encoder_hid_dim") or config["cross_attention_dim"]
    width = width if isinstance(width, int) else width[-1]
    text = {"encoder_hidden_states": _floats(1, 77, width)}  # CLIP's 77 tokens
    return _unet(config) | _added(config, width) | text


def _added(config: Config, width: int) -> Inputs:
    kind = config.get("addition_embed_type")
    if kind == "text_time":  # SDXL: a pooled text and six numbers (sizes and crop)
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        return {"added_cond_kwargs": {"text_embeds": _floats(1, pooled), "time_ids": _floats(1, 6)}}
    if kind == "image":  # Kandinsky 2.2
        return {"added_cond_kwargs": {"image_embeds": _floats(1, width)}}
    if kind in (None, "text"):
        return {}
    raise UserError(f"inputs for addition_embed_type={kind!r} cannot be made; give list_layers inputs=")


@_maker("DiTTransformer2DModel")
def _dit(config: Config) -> Inputs:
    return {"hidden_states": _sample(config), "timestep": _integers(1), "class_labels": _integers(1)}


@_maker("PixArtTransformer2DModel")
def _pixart(config: Config) -> Inputs:
    # PixArt-α has 120 tokens; PixArt-Σ, which is told by its config's False, has 300.
    tokens = 300 if config["use_additional_conditions"] is False else 120
    width = config["caption_channels"] or config["cross_attention_dim"]
    return {
        "hidden_states": _sample(config),
        "timestep": _integers(1),
        "encoder_hidden_states": _floats(1, tokens, width),
        "added_cond_kwargs": {"resolution": _floats(1, 2), "aspect_ratio": _floats(1, 1)},
    }


@_maker("HunyuanDiT2DModel")
def _hunyuan(config: Config) -> Inputs:
    positions = (_sample(config).shape[-1] // config["patch_size"]) ** 2
    rotary = _floats(positions, config["attention_head_dim"])  # cosines and sines
    tokens, tokens_t5 = config["text_len"], config["text_len_t5"]
    inputs = {
        "hidden_states": _sample(config),
        "timestep": _floats(1),
        "encoder_hidden_states": _floats(1, tokens, config["cross_attention_dim"]),
        "text_embedding_mask": _integers(1, tokens),
        "encoder_hidden_states_t5": _floats(1, tokens_t5, config["cross_attention_dim_t5"]),
        "text_embedding_mask_t5": _integers(1, tokens_t5),
        "image_rotary_emb": (rotary, rotary),
    }
    if config["use_style_cond_and_image_meta_size"]:  # six sizes and a style
        inputs |= {"image_meta_size": _floats(1, 6), "style": _integers(1)}
    return inputs


@_maker("SD3Transformer2DModel")
def _sd3(config: Config) -> Inputs:
    return {
        "hidden_states": _sample(config),
        "timestep": _integers(1),
        "encoder_hidden_states": _floats(1, 77 + 256, config["joint_attention_dim"]),  # CLIP and T5
        "pooled_projections": _floats(1, config["pooled_projection_dim"]),
    }


# Tokens of a 1024-pixel image: latents of 128, packed 2 by 2; 512 tokens of T5.
_PACKED, _T5 = 64 * 64, 512


@_maker("FluxTransformer2DModel")
def _flux(config: Config) -> Inputs:
    pooled = {"pooled_projections": _floats(1, config["pooled_projection_dim"])}
    return _packed(config) | pooled | ({"guidance": _floats(1)} if config["guidance_embeds"] else {})


@_maker("ChromaTransformer2DModel")
def _packed(config: Config) -> Inputs:
    return {
        "hidden_states": _floats(1, _PACKED, config["in_channels"]),
        "timestep": _floats(1),
        "encoder_hidden_states": _floats(1, _T5, config["joint_attention_dim"]),
        "img_ids": _floats(_PACKED, 3),
        "txt_ids": _floats(_T5, 3),
    }


@_maker("SanaTransformer2DModel")
def _sana(config: Config) -> Inputs:
    inputs = {
        "hidden_states": _sample(config),
        "timestep": _integers(1),
        "encoder_hidden_states": _floats(1, 300, config["caption_channels"]),
    }
    return inputs | ({"guidance": _floats(1)} if config.get("guidance_embeds") else {})


@_maker("AuraFlowTransformer2DModel")
def _auraflow(config: Config) -> Inputs:
    return {
        "hidden_states": _sample(config),
        "timestep": _floats(1),
        "encoder_hidden_states": _floats(1, 256, config["joint_attention_dim"]),
    }
