"""The published checkpoints that are converted, and the names of those that are not.

Settings are those of ``models/ldm/*/config.yaml`` and ``configs/latent-diffusion/`` of
https://github.com/CompVis/latent-diffusion. How many heads an attention has cannot be read off its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Of a UNet: conv_in's width, its input channels, and the number of input blocks.
Layout = tuple[int, int, int]


@dataclass(frozen=True)
class LatentPreset:
    """What is known of a checkpoint, beside its weights.

    Attributes:
        name: to show.
        unet: the configuration of diffusers' ``UNet2DModel``.
        first_stage: the configuration of diffusers' ``VQModel``.
        scheduler: the configuration of ``DDIMScheduler``.
    """

    name: str
    unet: Mapping[str, Any]
    first_stage: Mapping[str, Any]
    scheduler: Mapping[str, Any]


# DDIM as CompVis': its times are one more than multiples of T // N, and it ends at the first training time's ᾱ.
_SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "timestep_spacing": "leading",
    "steps_offset": 1,
}

LDM4: Layout = (224, 3, 12)
PRESETS: dict[Layout, LatentPreset] = {
    LDM4: LatentPreset(
        name="LDM-4 (VQ-f4; FFHQ, CelebA-HQ or LSUN bedrooms, 256 pixels)",
        unet={
            "sample_size": 64,
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": (224, 448, 672, 896),
            "layers_per_block": 2,
            "down_block_types": ("DownBlock2D", *("AttnDownBlock2D",) * 3),
            "up_block_types": (*("AttnUpBlock2D",) * 3, "UpBlock2D"),
            "attention_head_dim": 32,
            "norm_num_groups": 32,
            "attn_norm_num_groups": 32,
            "norm_eps": 1e-5,
        },
        first_stage={
            "sample_size": 256,
            "block_out_channels": (128, 256, 512),
            "layers_per_block": 2,
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
            "latent_channels": 3,
            "num_vq_embeddings": 8192,
            "scaling_factor": 1.0,
        },
        scheduler=_SCHEDULER,
    ),
}

NAMES: dict[Layout, str] = {
    (192, 4, 15): "LDM-8 of LSUN churches, whose attentions have eight heads at every width, which UNet2DModel has not",
}
