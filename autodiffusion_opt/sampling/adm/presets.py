"""The published checkpoints that are converted, and the names of those that are not.

Settings are those that https://github.com/openai/guided-diffusion lists for each file. Which order the weights of an
attention are in, and which noise a model was trained with, cannot be read off its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autodiffusion_opt.sampling.renaming import QkvOrder

# Of (conv_in's width, input channels, whether it has classes, number of input blocks): OpenAI's other models.
Layout = tuple[int, int, bool, int]

# Shared by all of ADM's UNets, in diffusers' words. Without attn_norm_num_groups the middle attention has no norm.
_SHARED: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 6,  # ε and its variance
    "attention_head_dim": 64,
    "norm_num_groups": 32,
    "attn_norm_num_groups": 32,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
}
# DDIM as guided-diffusion's: it ends at ᾱ = 1, on times that are multiples of T // N.
_SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "timestep_spacing": "leading",
    "steps_offset": 0,
}


@dataclass(frozen=True)
class Preset:
    """What is known of a checkpoint, beside its weights.

    Attributes:
        unet: the configuration of diffusers' ``UNet2DModel``.
        qkv: the order of its attentions' weights: ``new``, all queries, keys and values in turn; ``legacy``, those of
            one head after those of another.
        scheduler: the configuration of ``DDIMScheduler``.
        classifier: the configuration of its ``NoisyClassifier``, whose order is ``legacy``; None: it has none.
        file: the checkpoint's name; that of the classifier.
    """

    unet: Mapping[str, Any]
    qkv: QkvOrder
    scheduler: Mapping[str, Any]
    classifier: Mapping[str, Any] | None
    file: str
    classifier_file: str | None = None


PRESETS: dict[str, Preset] = {
    "adm64": Preset(
        unet={
            **_SHARED,
            "sample_size": 64,
            "block_out_channels": (192, 384, 576, 768),
            "layers_per_block": 3,
            "down_block_types": ("ResnetDownsampleBlock2D", *("AttnDownBlock2D",) * 3),
            "up_block_types": (*("AttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
            "num_class_embeds": 1000,
        },
        qkv="new",
        scheduler={**_SCHEDULER, "beta_schedule": "squaredcos_cap_v2"},
        classifier={"sample_size": 64, "block_out_channels": (128, 256, 384, 512), "layers_per_block": 4},
        file="64x64_diffusion.pt",
        classifier_file="64x64_classifier.pt",
    ),
    "lsun256": Preset(
        unet={
            **_SHARED,
            "sample_size": 256,
            "block_out_channels": (256, 256, 512, 512, 1024, 1024),
            "layers_per_block": 2,
            "down_block_types": (*("ResnetDownsampleBlock2D",) * 3, *("AttnDownBlock2D",) * 3),
            "up_block_types": (*("AttnUpBlock2D",) * 3, *("ResnetUpsampleBlock2D",) * 3),
        },
        qkv="legacy",
        scheduler={**_SCHEDULER, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        classifier=None,
        file="lsun_bedroom.pt, lsun_cat.pt or lsun_horse.pt",
    ),
}

NAMES: dict[Layout, str] = {
    (192, 3, True, 16): "adm64 (ImageNet 64)",
    (256, 3, False, 18): "lsun256",
    (256, 3, True, 15): "ImageNet 128",
    (256, 3, True, 18): "ImageNet 256, class-conditional",
    (128, 3, True, 21): "ImageNet 512",
    (192, 6, True, 18): "the upsampler from 64 to 256",
    (192, 6, True, 21): "the upsampler from 128 to 512",
}
CLASSIFIER_NAMES: dict[int, str] = {  # by number of input blocks
    20: "the classifier of ImageNet 64",
    15: "the classifier of ImageNet 128",
    18: "the classifier of ImageNet 256",
    21: "the classifier of ImageNet 512",
}
