"""Small pipelines with random weights whose schedulers count time in a way of their own, each with a call for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from peers import current_pipelines, pipelines, video_pipelines
from peers.pipelines import clip, clip_tokenizer, t5_tokenizer, text_unet, vae
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

Made = tuple[Any, dict[str, Any]]
SVD_SETTINGS = {
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "timestep_spacing": "leading",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
}
PROMPT = {"prompt": "a red square", "height": 32, "width": 32, "output_type": "pt"}


def stable_diffusion(scheduler: Any) -> Made:
    torch.manual_seed(0)
    parts = {"vae": vae(), "text_encoder": clip(), "tokenizer": clip_tokenizer(), "unet": text_unet(8)}
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**parts, **none, scheduler=scheduler), PROMPT


def stable_video() -> Made:
    """Stable Video Diffusion, with the settings of its published scheduler."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=8,
        projection_dim=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,  # what the pipeline makes of any image
        patch_size=112,
    )
    unet = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        num_attention_heads=2,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=8,
        projection_class_embeddings_input_dim=24,
        addition_time_embed_dim=8,
    )
    pipeline = diffusers.StableVideoDiffusionPipeline(
        vae=diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2
        ),
        image_encoder=CLIPVisionModelWithProjection(vision),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(**SVD_SETTINGS),
        feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
    )
    call = {"image": Image.new("RGB", (32, 32), "red"), "height": 32, "width": 32, "num_frames": 2}
    return pipeline, {**call, "decode_chunk_size": 2, "output_type": "pt"}


def omnigen() -> Made:
    torch.manual_seed(0)
    transformer = diffusers.OmniGenTransformer2DModel(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=1,
        in_channels=4,
        time_step_dim=4,
        vocab_size=512,
        pad_token_id=0,
        rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]},
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return diffusers.OmniGenPipeline(transformer, scheduler, vae(), t5_tokenizer()), PROMPT


def sdxl_with(scheduler: Any) -> Made:
    pipeline = pipelines.BUILDERS["sdxl"]()
    pipeline.scheduler = scheduler
    return pipeline, PROMPT


def cogvideox() -> Made:
    """CogVideoX 5B's settings: noise from ᾱ = 0, and v."""
    pipeline, call = video_pipelines.cogvideox()
    pipeline.scheduler = diffusers.CogVideoXDPMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", snr_shift_scale=1.0
    )
    return pipeline, {**call, "prompt": "a red square", "output_type": "pt"}


def sana_sprint() -> Made:
    pipeline, call = current_pipelines.sana()
    settings = {key: value for key, value in pipeline.transformer.config.items() if not key.startswith("_")}
    transformer = diffusers.SanaTransformer2DModel(**settings | {"guidance_embeds": True})
    sprint = diffusers.SanaSprintPipeline(None, None, pipeline.vae, transformer, diffusers.SCMScheduler())
    current_pipelines.with_text(sprint, lambda prompt: current_pipelines.both_masked(prompt)[:2])
    return sprint, {**call, "prompt": "a red square", "output_type": "pt"}


MAKERS: dict[str, Callable[[], Made]] = {
    "cogvideox dpm": cogvideox,
    "stable video": stable_video,
    "omnigen": omnigen,
    "sana sprint": sana_sprint,
    "sdxl EDM euler": lambda: sdxl_with(diffusers.EDMEulerScheduler()),
    "sd kdpm2": lambda: stable_diffusion(diffusers.KDPM2DiscreteScheduler(steps_offset=1)),
    "sd kdpm2 ancestral": lambda: stable_diffusion(diffusers.KDPM2AncestralDiscreteScheduler(steps_offset=1)),
    "sd sa": lambda: stable_diffusion(diffusers.SASolverScheduler(steps_offset=1)),
    "sdxl EDM dpm": lambda: sdxl_with(diffusers.EDMDPMSolverMultistepScheduler()),
}
