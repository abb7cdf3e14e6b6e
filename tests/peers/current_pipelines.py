"""Small pipelines of the current models, of diffusers' own classes with random weights.

Their text encoders are language models of thousands of tokens' vocabulary, and stand outside of what is tested here:
``encode_prompt`` is replaced by random embeddings, the same for the same prompt.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from peers.pipelines import vae

WIDTH, TOKENS = 16, 5
CURRENT: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {}
HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8}
ROPE = (2, 2, 4)
IMAGE = {"height": 32, "width": 32}


def current(function: Callable[[], tuple[Any, dict[str, Any]]]) -> Callable[[], tuple[Any, dict[str, Any]]]:
    def build() -> tuple[Any, dict[str, Any]]:
        torch.manual_seed(0)
        pipeline, call = function()
        for module in pipeline.components.values():
            if isinstance(module, torch.nn.Module):
                module.eval()
                for weight in module.parameters():
                    if not weight.any() and weight.ndim > 1:  # zero at the start of training
                        torch.nn.init.normal_(weight, std=0.1)
        return pipeline, call

    CURRENT[function.__name__] = build
    return build


def embedded(prompt: Any, *shape: int) -> torch.Tensor:
    """(prompts, *shape), the same for the same prompt."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    generators = [torch.Generator().manual_seed(zlib.crc32(text.encode())) for text in prompts]
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def with_text(pipeline: Any, encode: Callable[[Any], Any]) -> Any:
    vars(pipeline)["encode_prompt"] = lambda prompt=None, *_, **__: encode(prompt)
    return pipeline


def text(prompt: Any) -> torch.Tensor:
    return embedded(prompt, TOKENS, WIDTH)


def mask(prompt: Any) -> torch.Tensor:
    return torch.ones(len(text(prompt)), TOKENS, dtype=torch.long)


def both(prompt: Any) -> tuple[Any, ...]:
    """What a prompt is, and what an empty one is."""
    return text(prompt), text([""] * len(text(prompt)))


def both_masked(prompt: Any) -> tuple[Any, ...]:
    positive, negative = both(prompt)
    return positive, mask(prompt), negative, mask(prompt)


def flow(**config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


@current
def qwen_image() -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=3, **HEADS, joint_attention_dim=WIDTH, axes_dims_rope=ROPE
    )
    decoder = diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    pipeline = diffusers.QwenImagePipeline(flow(), decoder, None, None, transformer)
    return with_text(pipeline, lambda prompt: (text(prompt), mask(prompt))), IMAGE


def flux2_parts() -> tuple[Any, Any]:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        **HEADS,
        joint_attention_dim=WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
    )
    decoder = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return transformer, decoder


def ids(prompt: Any) -> torch.Tensor:
    return torch.zeros(len(text(prompt)), TOKENS, 4)


@current
def flux2() -> Any:
    transformer, decoder = flux2_parts()
    pipeline = diffusers.Flux2Pipeline(flow(), decoder, None, None, transformer)
    return with_text(pipeline, lambda prompt: (text(prompt), ids(prompt))), IMAGE


@current
def flux2_klein() -> Any:
    transformer, decoder = flux2_parts()
    pipeline = diffusers.Flux2KleinPipeline(flow(), decoder, None, None, transformer)
    return with_text(pipeline, lambda prompt: (text(prompt), ids(prompt))), IMAGE


@current
def z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[64, 32, 32],
    )
    pipeline = diffusers.ZImagePipeline(flow(), vae(shift_factor=0.0), None, None, transformer)
    return with_text(pipeline, lambda prompt: tuple(list(part) for part in both(prompt))), IMAGE


@current
def lumina2() -> Any:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=24,
        num_layers=3,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128),
        cap_feat_dim=WIDTH,
    )
    pipeline = diffusers.Lumina2Pipeline(transformer, flow(), vae(shift_factor=0.0), None, None)
    return with_text(pipeline, both_masked), IMAGE


@current
def lumina() -> Any:
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=24,
        num_layers=3,
        num_attention_heads=3,
        num_kv_heads=1,
        cross_attention_dim=WIDTH,
    )
    pipeline = diffusers.LuminaPipeline(transformer, flow(), vae(), None, None)
    return with_text(pipeline, both_masked), IMAGE


@current
def cogview4() -> Any:
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        **HEADS,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
        rope_axes_dim=(8, 8),
    )
    pipeline = diffusers.CogView4Pipeline(None, None, vae(), transformer, flow())
    return with_text(pipeline, both), IMAGE


@current
def cogview3_plus() -> Any:
    transformer = diffusers.CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        **HEADS,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
    )
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    return with_text(diffusers.CogView3PlusPipeline(None, None, vae(), transformer, scheduler), both), IMAGE


@current
def hidream() -> Any:
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        **HEADS,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=WIDTH,
        num_routed_experts=2,
        num_activated_experts=2,
        axes_dims_rope=ROPE,
        max_resolution=(32, 32),
        llama_layers=[0, 1, 1, 1],
    )
    pipeline = diffusers.HiDreamImagePipeline(
        flow(), vae(shift_factor=0.0), None, None, None, None, None, None, None, None, transformer
    )

    def encode(prompt: Any) -> Any:
        none = [""] * len(text(prompt))
        t5, pooled = text, lambda texts: embedded(texts, WIDTH)
        llama = lambda texts: embedded(texts, 2, TOKENS, WIDTH).transpose(0, 1)  # noqa: E731
        return t5(prompt), t5(none), llama(prompt), llama(none), pooled(prompt), pooled(none)

    return with_text(pipeline, encode), IMAGE


@current
def bria() -> Any:
    transformer = diffusers.BriaTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, **HEADS, joint_attention_dim=WIDTH, axes_dims_rope=[0, 4, 4]
    )
    pipeline = diffusers.BriaPipeline(transformer, flow(), vae(), None, None)

    def encode(prompt: Any) -> Any:
        return *both(prompt), torch.zeros(TOKENS, 3)

    return with_text(pipeline, encode), IMAGE


@current
def ovis_image() -> Any:
    transformer = diffusers.OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_single_layers=2,
        **HEADS,
        joint_attention_dim=WIDTH,
        axes_dims_rope=ROPE,
    )
    pipeline = diffusers.OvisImagePipeline(flow(), vae(shift_factor=0.0), None, None, transformer)
    places = torch.zeros(TOKENS, 3)
    return with_text(pipeline, lambda prompt: (*both(prompt), places, places)), IMAGE


@current
def prx() -> Any:
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=4, context_in_dim=WIDTH, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=3, axes_dim=[4, 4]
    )
    pipeline = diffusers.PRXPipeline(transformer, flow(), None, None, vae(shift_factor=0.0), default_sample_size=32)

    def encode(prompt: Any) -> Any:
        positive, kept, negative, _ = both_masked(prompt)
        return positive, kept.bool(), negative, kept.bool()

    return with_text(pipeline, encode), IMAGE | {"use_resolution_binning": False}


@current
def hunyuan_image() -> Any:
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        **HEADS,
        mlp_ratio=2.0,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        rope_axes_dim=(4, 4),
    )
    decoder = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=32,
        scaling_factor=1.0,
    )
    pipeline = diffusers.HunyuanImagePipeline(flow(), decoder, None, None, None, None, transformer)
    return with_text(pipeline, lambda prompt: (text(prompt), mask(prompt), text(prompt), mask(prompt))), IMAGE


@current
def kandinsky3() -> Any:
    unet = diffusers.Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=8,
        groups=2,
        attention_head_dim=4,
        layers_per_block=2,
        block_out_channels=(8, 16),
        cross_attention_dim=WIDTH,
        encoder_hid_dim=WIDTH,
    )
    movq = diffusers.VQModel(
        latent_channels=4,
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        num_vq_embeddings=16,
    )
    pipeline = diffusers.Kandinsky3Pipeline(None, None, unet, diffusers.DDPMScheduler(), movq)

    def encode(prompt: Any) -> Any:
        return *both(prompt), mask(prompt), mask(prompt)

    return with_text(pipeline, encode), IMAGE


@current
def kandinsky5_image() -> Any:
    transformer = kandinsky5_transformer()
    pipeline = diffusers.Kandinsky5T2IPipeline(transformer, vae(), None, None, None, None, flow())
    pipeline.resolutions = [(32, 32)]
    return with_text(pipeline, kandinsky5_text), IMAGE


def kandinsky5_transformer() -> Any:
    return diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=16,
        out_visual_dim=4,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 2, 2),
    )


def kandinsky5_text(prompt: Any) -> Any:
    lengths = torch.arange(len(text(prompt)) + 1, dtype=torch.int32) * TOKENS
    return text(prompt), embedded(prompt, WIDTH), lengths


@current
def sana() -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        **HEADS,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
    )
    decoder = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.4,
    )
    pipeline = diffusers.SanaPipeline(None, None, decoder, transformer, flow())
    return with_text(pipeline, both_masked), IMAGE | {"use_resolution_binning": False}
