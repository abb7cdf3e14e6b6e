"""Small pipelines of video models, as in :mod:`peers.current_pipelines`: clips of a few frames."""

from __future__ import annotations

from typing import Any

import diffusers
from peers.current_pipelines import (
    HEADS,
    ROPE,
    TOKENS,
    WIDTH,
    both,
    both_masked,
    current,
    embedded,
    flow,
    kandinsky5_text,
    kandinsky5_transformer,
    mask,
    text,
    with_text,
)
from peers.pipelines import text_unet, vae

CLIP = {"height": 32, "width": 32, "num_frames": 5}


def wan_vae() -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def wan_transformer(kind: Any, **more: Any) -> Any:
    return kind(**HEADS, in_channels=16, out_channels=16, text_dim=WIDTH, freq_dim=16, ffn_dim=16, num_layers=3, **more)


@current
def wan() -> Any:
    transformer = wan_transformer(diffusers.WanTransformer3DModel)
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = diffusers.WanPipeline(None, None, wan_vae(), scheduler, transformer=transformer)
    return with_text(pipeline, both), CLIP


@current
def skyreels_v2() -> Any:
    transformer = wan_transformer(diffusers.SkyReelsV2Transformer3DModel)
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
    )
    pipeline = diffusers.SkyReelsV2Pipeline(None, None, transformer, wan_vae(), scheduler)
    return with_text(pipeline, both), CLIP


@current
def ltx() -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, **HEADS, cross_attention_dim=16, num_layers=3, caption_channels=WIDTH
    )
    decoder = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    pipeline = diffusers.LTXPipeline(flow(), decoder, None, None, transformer)
    return with_text(pipeline, both_masked), CLIP


def cogvideox_vae() -> Any:
    return diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )


@current
def cogvideox() -> Any:
    transformer = diffusers.CogVideoXTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=3,
        sample_width=4,
        sample_height=4,
        sample_frames=5,
        max_text_seq_length=TOKENS,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction")
    pipeline = diffusers.CogVideoXPipeline(None, None, cogvideox_vae(), transformer, scheduler)
    return with_text(pipeline, both), CLIP


@current
def mochi() -> Any:
    transformer = diffusers.MochiTransformer3DModel(
        **HEADS,
        num_layers=3,
        pooled_projection_dim=8,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        max_sequence_length=TOKENS,
    )
    decoder = diffusers.AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    pipeline = diffusers.MochiPipeline(flow(), decoder, None, None, transformer)

    def encode(prompt: Any) -> Any:
        positive, kept, negative, _ = both_masked(prompt)
        return positive, kept.bool(), negative, kept.bool()

    return with_text(pipeline, encode), {"height": 32, "width": 32, "num_frames": 7}


@current
def hunyuan_video() -> Any:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        **HEADS,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=8,
        rope_axes_dim=ROPE,
    )
    pipeline = diffusers.HunyuanVideoPipeline(None, None, transformer, hunyuan_vae(), flow(shift=7.0), None, None)
    return with_text(pipeline, lambda prompt: (text(prompt), embedded(prompt, 8), mask(prompt))), CLIP


@current
def latte() -> Any:
    transformer = diffusers.LatteTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=4,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=WIDTH,
        video_length=1,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipeline = diffusers.LattePipeline(None, None, vae(), transformer, scheduler)
    return with_text(pipeline, both), {"height": 32, "width": 32, "video_length": 1}


@current
def animatediff() -> Any:
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2
    )
    unet = text_unet(WIDTH)
    pipeline = diffusers.AnimateDiffPipeline(
        vae(), None, None, unet, adapter, diffusers.DDIMScheduler(clip_sample=False), None, None
    )
    return with_text(pipeline, both), {"height": 64, "width": 64, "num_frames": 4}


def hunyuan_vae() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )


@current
def kandinsky5_video() -> Any:
    pipeline = diffusers.Kandinsky5T2VPipeline(kandinsky5_transformer(), hunyuan_vae(), None, None, None, None, flow())
    return with_text(pipeline, kandinsky5_text), CLIP


@current
def sana_video() -> Any:
    transformer = diffusers.SanaVideoTransformer3DModel(
        **HEADS,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=4,
        qk_norm="rms_norm_across_heads",
    )
    pipeline = diffusers.SanaVideoPipeline(None, None, wan_vae(), transformer, flow())
    call = {"height": 32, "width": 32, "frames": 5, "use_resolution_binning": False}
    return with_text(pipeline, both_masked), call


@current
def wan_vace() -> Any:
    transformer = wan_transformer(diffusers.WanVACETransformer3DModel, vace_layers=[0, 2], vace_in_channels=96)
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipeline = diffusers.WanVACEPipeline(None, None, wan_vae(), scheduler, transformer=transformer)
    return with_text(pipeline, both), CLIP


@current
def animatediff_xl() -> Any:
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2
    )
    unet = text_unet(
        WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )
    pipeline = diffusers.AnimateDiffSDXLPipeline(
        vae(), None, None, None, None, unet, adapter, diffusers.DDIMScheduler(clip_sample=False)
    )

    def encode(prompt: Any) -> Any:
        pooled = embedded(prompt, 8)
        return *both(prompt), pooled, pooled

    return with_text(pipeline, encode), {"height": 64, "width": 64, "num_frames": 4}
