"""Small pipelines of further image models, as in :mod:`peers.current_pipelines`."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from peers import pipelines
from peers.current_pipelines import (
    HEADS,
    IMAGE,
    ROPE,
    TOKENS,
    WIDTH,
    both,
    both_masked,
    current,
    flow,
    mask,
    text,
    with_text,
)
from peers.pipelines import vae


@current
def chroma() -> Any:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        **HEADS,
        joint_attention_dim=WIDTH,
        axes_dims_rope=ROPE,
        approximator_num_channels=8,
        approximator_hidden_dim=8,
        approximator_layers=1,
    )
    pipeline = diffusers.ChromaPipeline(flow(), vae(shift_factor=0.0), None, None, transformer)
    places = torch.zeros(TOKENS, 3)

    def encode(prompt: Any) -> Any:
        positive, kept, negative, _ = both_masked(prompt)
        return positive, places, kept.bool(), negative, places, kept.bool()

    return with_text(pipeline, encode), IMAGE


@current
def auraflow() -> Any:
    transformer = diffusers.AuraFlowTransformer2DModel(
        **HEADS,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    return with_text(diffusers.AuraFlowPipeline(None, None, vae(), transformer, flow()), both_masked), IMAGE


@current
def hunyuan_dit() -> Any:
    transformer = diffusers.HunyuanDiT2DModel(
        **HEADS,
        sample_size=4,
        in_channels=4,
        patch_size=2,
        hidden_size=16,
        num_layers=4,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=8,
        text_len=TOKENS,
        text_len_t5=TOKENS,
        activation_fn="gelu-approximate",
    )
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    pipeline = diffusers.HunyuanDiTPipeline(
        vae(), None, None, transformer, scheduler, None, None, requires_safety_checker=False
    )

    def encode(prompt: Any) -> Any:
        return *both(prompt), mask(prompt), mask(prompt)

    return with_text(pipeline, encode), IMAGE | {"use_resolution_binning": False}


@current
def longcat_image() -> Any:
    transformer = diffusers.LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        **HEADS,
        joint_attention_dim=WIDTH,
        axes_dims_rope=list(ROPE),
    )
    pipeline = diffusers.LongCatImagePipeline(flow(), vae(16, shift_factor=0.0), None, None, None, transformer)
    call = IMAGE | {"enable_prompt_rewrite": False}
    return with_text(pipeline, lambda prompt: (text(prompt), torch.zeros(TOKENS, 3))), call


@current
def deepfloyd_if() -> Any:
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=WIDTH,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_proj",
        attention_head_dim=4,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
    )
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=True)
    pipeline = diffusers.IFPipeline(None, None, unet, scheduler, None, None, None, requires_safety_checker=False)
    return with_text(pipeline, both), {}


def stable_diffusion_as(kind: Any) -> tuple[Any, dict[str, Any]]:
    parts = pipelines.BUILDERS["stable_diffusion"]().components
    parts["scheduler"] = diffusers.DDIMScheduler(clip_sample=False)
    return kind(**parts, requires_safety_checker=False), {}


@current
def panorama() -> Any:
    return stable_diffusion_as(diffusers.StableDiffusionPanoramaPipeline)[0], {"height": 64, "width": 64}


@current
def self_attention_guidance() -> Any:
    return stable_diffusion_as(diffusers.StableDiffusionSAGPipeline)


@current
def stable_diffusion_pag() -> Any:
    parts = pipelines.BUILDERS["stable_diffusion"]().components
    return diffusers.StableDiffusionPAGPipeline(**parts, requires_safety_checker=False), {"pag_scale": 0.0}
