"""Small denoisers with random weights, one of each architecture whose layers can be bypassed, and inputs for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch


def unet(**changes: Any) -> Any:
    """ADM's layout: residual blocks that go up and down, and with a shortcut."""
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "norm_num_groups": 4,
        "attn_norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    return diffusers.UNet2DModel(**(config | changes))


def unet_inputs(batch: int = 1) -> dict[str, Any]:
    return {"sample": torch.randn(batch, 3, 8, 8), "timestep": 3}


def ncsnpp() -> Any:
    """The layout of score SDEs: FIR resampling by functions, sums divided by √2."""
    return unet(
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        block_out_channels=(32, 64),
        mid_block_scale_factor=2**0.5,
        resnet_time_scale_shift="default",
        norm_num_groups=None,
        attn_norm_num_groups=None,
    )


def unet_condition(**changes: Any) -> Any:
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return diffusers.UNet2DConditionModel(**(config | changes))


def condition_inputs(batch: int = 1) -> dict[str, Any]:
    sample, text = torch.randn(batch, 4, 8, 8), torch.randn(batch, 5, 8)
    return {"sample": sample, "timestep": 3, "encoder_hidden_states": text}


def simple_attention() -> Any:
    """DeepFloyd's and Kandinsky's layout: attention blocks that see text, with their own residual path."""
    return unet_condition(
        down_block_types=("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
    )


HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "sample_size": 8}


def dit() -> Any:
    return diffusers.DiTTransformer2DModel(
        **HEADS, num_layers=3, in_channels=4, out_channels=4, norm_num_groups=4, num_embeds_ada_norm=10
    )


def dit_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([3]),
        "class_labels": torch.tensor([1]),
    }


def pixart() -> Any:
    return diffusers.PixArtTransformer2DModel(
        **HEADS, num_layers=3, caption_channels=8, cross_attention_dim=16, use_additional_conditions=False
    )


def pixart_inputs() -> dict[str, Any]:
    text, conditions = torch.randn(1, 5, 8), {"resolution": None, "aspect_ratio": None}
    inputs = dit_inputs() | {"encoder_hidden_states": text, "added_cond_kwargs": conditions}
    return {name: value for name, value in inputs.items() if name != "class_labels"}


def sd3() -> Any:
    """Of Stable Diffusion 3.5: one block has a second attention; the last one ends the text stream."""
    return diffusers.SD3Transformer2DModel(
        **HEADS,
        num_layers=3,
        in_channels=4,
        out_channels=4,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
        pos_embed_max_size=8,
    )


def sd3_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([3.0]),
        "encoder_hidden_states": torch.randn(1, 5, 8),
        "pooled_projections": torch.randn(1, 8),
    }


PACKED = {"in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 8}


def flux() -> Any:
    return diffusers.FluxTransformer2DModel(
        **PACKED,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )


def flux_inputs() -> dict[str, Any]:
    # As many text tokens as image tokens: swapped streams would pass unnoticed by the shapes.
    return {
        "hidden_states": torch.randn(1, 6, 4),
        "timestep": torch.tensor([0.3]),
        "encoder_hidden_states": torch.randn(1, 6, 8),
        "pooled_projections": torch.randn(1, 8),
        "img_ids": torch.arange(18.0).reshape(6, 3),
        "txt_ids": torch.zeros(6, 3),
    }


def chroma() -> Any:
    return diffusers.ChromaTransformer2DModel(
        **PACKED,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(2, 2, 4),
        approximator_num_channels=8,
        approximator_hidden_dim=8,
        approximator_layers=1,
    )


def chroma_inputs() -> dict[str, Any]:
    return {name: value for name, value in flux_inputs().items() if name != "pooled_projections"}


def sana() -> Any:
    return diffusers.SanaTransformer2DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
    )


def sana_inputs() -> dict[str, Any]:
    return {name: value for name, value in pixart_inputs().items() if name != "added_cond_kwargs"}


def hunyuan() -> Any:
    """The later half of its blocks takes the outputs of the earlier."""
    return diffusers.HunyuanDiT2DModel(
        **HEADS,
        in_channels=4,
        patch_size=2,
        hidden_size=16,
        num_layers=4,
        cross_attention_dim=8,
        cross_attention_dim_t5=8,
        pooled_projection_dim=8,
        text_len=5,
        text_len_t5=5,
        activation_fn="gelu-approximate",
    )


def hunyuan_inputs() -> dict[str, Any]:
    text, mask = torch.randn(1, 5, 8), torch.ones(1, 5, dtype=torch.long)
    return {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([3.0]),
        "encoder_hidden_states": text,
        "text_embedding_mask": mask,
        "encoder_hidden_states_t5": text,
        "text_embedding_mask_t5": mask,
        "image_meta_size": torch.ones(1, 6),
        "style": torch.tensor([0]),
        "image_rotary_emb": (torch.randn(16, 8), torch.randn(16, 8)),
    }


def auraflow() -> Any:
    return diffusers.AuraFlowTransformer2DModel(
        **HEADS,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )


def auraflow_inputs() -> dict[str, Any]:
    inputs = {name: value for name, value in sd3_inputs().items() if name != "pooled_projections"}
    return inputs | {"timestep": torch.tensor([0.3])}


def uvit() -> Any:
    """aMUSEd's: tokens in, logits of tokens out."""
    return diffusers.UVit2DModel(
        hidden_size=16,
        cond_embed_dim=8,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=8,
        vocab_size=12,
        codebook_size=8,
        in_channels=16,
        block_out_channels=16,
        num_res_blocks=2,
        downsample=True,
        upsample=True,
        block_num_heads=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        sample_size=8,
    )


def uvit_inputs() -> dict[str, Any]:
    return {
        "input_ids": torch.arange(64).reshape(1, 8, 8) % 12,
        "encoder_hidden_states": torch.randn(1, 5, 8),
        "pooled_text_emb": torch.randn(1, 8),
        "micro_conds": torch.tensor([[8.0, 8.0, 0.0, 0.0, 6.0]]),
    }


def stable_cascade() -> Any:
    """The prior's: it goes down and up once, and repeats no block."""
    types = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
    return diffusers.models.StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(types, types),
        clip_text_in_channels=8,
        clip_text_pooled_in_channels=8,
        clip_image_in_channels=8,
        switch_level=(False,),
    )


def stable_cascade_inputs() -> dict[str, Any]:
    return {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep_ratio": torch.tensor([0.3]),
        "clip_text_pooled": torch.randn(1, 1, 8),
        "clip_text": torch.randn(1, 5, 8),
        "clip_img": torch.randn(1, 1, 8),
    }


NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "ADM": (unet, unet_inputs),
    "NCSN++": (ncsnpp, unet_inputs),
    "SD": (unet_condition, condition_inputs),
    "SD with linear projections": (lambda: unet_condition(use_linear_projection=True), condition_inputs),
    "simple cross-attention": (simple_attention, condition_inputs),
    "DiT": (dit, dit_inputs),
    "PixArt": (pixart, pixart_inputs),
    "SD3": (sd3, sd3_inputs),
    "Flux": (flux, flux_inputs),
    "Chroma": (chroma, chroma_inputs),
    "Sana": (sana, sana_inputs),
    "AuraFlow": (auraflow, auraflow_inputs),
    "HunyuanDiT": (hunyuan, hunyuan_inputs),
}
# Of pipelines that no candidate runs on, so that their inputs must be given.
GIVEN: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "UVit": (uvit, uvit_inputs),
    "Stable Cascade": (stable_cascade, stable_cascade_inputs),
}


def made(name: str) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(1)
    network, inputs = (NETWORKS | GIVEN)[name]
    return network().eval(), inputs()


def output(denoiser: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        result = denoiser(**inputs) if "input_ids" in inputs else denoiser(**inputs, return_dict=False)[0]
    assert isinstance(result, torch.Tensor)
    return result
