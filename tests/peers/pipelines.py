"""Small pipelines with random weights, of diffusers' and transformers' own classes: 16×16 or 32×32 images, 8×8 latents.

Each builder returns a pipeline; :func:`saved` writes it to a folder, from which it is loaded like any other.
:data:`TEXT`, :data:`CLASSES` and :data:`CALLS` say how each is called.
"""

from __future__ import annotations

import string
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

PROMPTS = ("a cat", "two dogs", "blue sea", "old house", "rain")
TOKENS = 16  # the longest text of the small tokenizers
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

BUILDERS: dict[str, Callable[[], Any]] = {}


def builder(function: Callable[[], Any]) -> Callable[[], Any]:
    """Registers a builder under its name, with a fixed seed."""

    def build() -> Any:
        torch.manual_seed(0)
        return function()

    BUILDERS[function.__name__] = build
    return build


_PLACE = tempfile.TemporaryDirectory(prefix="autodiffusion-pipelines-")


@cache
def saved(name: str) -> Path:
    """The folder that the pipeline of a builder was written to, once a process."""
    folder = Path(_PLACE.name) / name
    BUILDERS[name]().save_pretrained(folder)
    return folder


# Builders whose pipelines take prompts; the number of classes of those that take labels; arguments of the call.
TEXT = (
    "ldm_text",
    "stable_diffusion",
    "sdxl",
    "sd3",
    "flux",
    "pixart_alpha",
    "pixart_sigma",
    "latent_consistency",
)
CLASSES = {"adm": 3, "adm_guided": 5, "dit": 1000, "consistency": 3}
_PIXART = {"use_resolution_binning": False, "clean_caption": False}
CALLS: dict[str, dict[str, Any]] = {
    "flux": {"height": 16, "width": 16},
    "pixart_alpha": _PIXART,
    "pixart_sigma": _PIXART,
}


def unet(channels: int = 3, size: int = 16, **more: Any) -> Any:
    return diffusers.UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=more.pop("out_channels", channels),
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        **more,
    )


def text_unet(width: int, **more: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=width,
        **more,
    )


def vae(channels: int = 4, blocks: int = 4, **more: Any) -> Any:
    """Decodes (channels, h, w) to (3, 2^(blocks-1) h, ...)."""
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(4,) * blocks,
        norm_num_groups=2,
        layers_per_block=1,
        sample_size=8 * 2 ** (blocks - 1),
        **more,
    )


def clip_tokenizer() -> Any:
    """Letters, each with and without the end of a word."""
    pieces = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = [*pieces, "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(vocabulary)}, merges=[], model_max_length=TOKENS
    )


def clip(width: int = 8, projection: bool = False) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,  # LDM asks for as many, whatever the tokenizer says
        projection_dim=width,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config).eval()


def t5_tokenizer() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    return transformers.T5Tokenizer(
        vocab=[(piece, -float(index)) for index, piece in enumerate(pieces)], extra_ids=0, model_max_length=TOKENS
    )


def t5(width: int = 8) -> Any:
    config = transformers.T5Config(
        vocab_size=32, d_model=width, d_kv=4, d_ff=2 * width, num_layers=1, num_heads=2, tie_word_embeddings=False
    )
    return transformers.T5EncoderModel(config).eval()


@builder
def ddpm() -> Any:
    return diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())


@builder
def ddim() -> Any:
    return diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler())


@builder
def adm() -> Any:
    """Class-conditional and with learned variance, as ADM, in a pipeline that takes no labels."""
    return diffusers.DDIMPipeline(unet(out_channels=6, num_class_embeds=3), diffusers.DDIMScheduler())


@builder
def adm_guided() -> Any:
    """ADM as it is: its own pipeline, and a classifier that guides."""
    from peers.adm import small_pipeline

    return small_pipeline()[0]


@builder
def ldm() -> Any:
    vq = diffusers.VQModel(
        latent_channels=3,
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        num_vq_embeddings=16,
    )
    return diffusers.LDMPipeline(vq, unet(size=8), diffusers.DDIMScheduler(**BETAS, clip_sample=False))


@builder
def ldm_text() -> Any:
    return diffusers.LDMTextToImagePipeline(
        vae(), clip(), clip_tokenizer(), text_unet(8), diffusers.DDIMScheduler(**BETAS, clip_sample=False)
    )


@builder
def stable_diffusion() -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=text_unet(8),
        scheduler=diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@builder
def sdxl() -> Any:
    unet_xl = text_unet(
        16,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip(),
        text_encoder_2=clip(projection=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet_xl,
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS),
    )


@builder
def sd3() -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=8,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=1.5, shift_factor=0.06),
        text_encoder=clip(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(16),
        tokenizer_3=t5_tokenizer(),
    )


@builder
def flux() -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(blocks=2, scaling_factor=0.36, shift_factor=0.11),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


def _pixart(sigma: bool) -> Any:
    return diffusers.PixArtTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=8,
        **({"use_additional_conditions": False} if sigma else {}),
    )


@builder
def pixart_alpha() -> Any:
    return diffusers.PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=vae(),
        transformer=_pixart(sigma=False),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


@builder
def pixart_sigma() -> Any:
    return diffusers.PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=vae(),
        transformer=_pixart(sigma=True),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


@builder
def dit() -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_embeds_ada_norm=1000,
        patch_size=2,
    )
    return diffusers.DiTPipeline(transformer, vae(), diffusers.DDIMScheduler(), id2label={"0": "cat", "1": "dog"})


@builder
def consistency() -> Any:
    """A UNet distilled by consistency (LCM) without text, in the consistency models' pipeline."""
    return diffusers.ConsistencyModelPipeline(unet(num_class_embeds=3), diffusers.LCMScheduler())


@builder
def latent_consistency() -> Any:
    return diffusers.LatentConsistencyModelPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=text_unet(8, time_cond_proj_dim=8),
        scheduler=diffusers.LCMScheduler(**BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
