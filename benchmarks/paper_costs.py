"""What the papers' studies cost: FLOPs of all their images, and hours at a speed that is assumed, not measured.

Networks are built on the meta device, so no weights are needed. With guidance by a classifier, its gradient counts as
three of its forward passes; Stable Diffusion's guidance runs the UNet on twice the images. Text encoders, decoders and
Inception are not counted.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from common import machine, parser, say

# Floating-point operations a second of one GPU, sustained; an assumption.
SPEED = 50e12
# The configuration of google/ddpm-cifar10-32's UNet, by which its FLOPs are counted.
DDPM_CIFAR10: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


def denoisers() -> dict[str, float]:
    """Model -> FLOPs of what one step of one image costs."""
    from diffusers import UNet2DConditionModel, UNet2DModel

    from autodiffusion_opt.sampling.adm import NoisyClassifier
    from autodiffusion_opt.sampling.adm.presets import PRESETS
    from autodiffusion_opt.sampling.layers import total_flops
    from autodiffusion_opt.sampling.ldm import presets as latent

    with torch.device("meta"):
        adm64, lsun256 = (UNet2DModel(**PRESETS[name].unet) for name in ("adm64", "lsun256"))
        classifier = NoisyClassifier(**dict(PRESETS["adm64"].classifier or {}))
        sd15 = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        ldm4, cifar10 = UNet2DModel(**latent.PRESETS[latent.LDM4].unet), UNet2DModel(**DDPM_CIFAR10)
        inputs = {"sample": torch.empty(1, 3, 64, 64), "timestep": torch.empty(1)}
    lsun, guide = float(total_flops(lsun256)), float(total_flops(classifier, inputs))
    return {
        "adm-imagenet64": total_flops(adm64) + 3 * guide,
        "adm-lsun-bedroom": lsun,
        "adm-lsun-cat": lsun,
        "ldm4-lsun-bedroom": float(total_flops(ldm4)),
        "ddpm-cifar10-32": float(total_flops(cifar10)),
        "stable-diffusion-v1-5": 2.0 * total_flops(sd15),
    }


def costs() -> list[dict[str, Any]]:
    """A row a study: its name, images, networks an image, TFLOPs a network, and hours."""
    from autodiffusion_opt.catalogue import entries
    from autodiffusion_opt.objective import ObjectiveConfig
    from autodiffusion_opt.study.config import load_study_config

    each, rows = denoisers(), []
    for entry in entries(["studies"]):
        config = load_study_config(entry.name)
        if config.pipeline is None:
            continue
        model = config.pipeline.model.rpartition("/")[2]
        if model not in each or not isinstance(config.objective, ObjectiveConfig):
            continue
        space: Any = config.space
        if space.kind == "segments":
            steps = space.max_flops
        else:
            steps = space.steps if space.kind == "time-steps" else space.n_max / 58  # of ADM's 58 layers
        steps += config.pipeline.scheduler == "plms"  # its first step is two calls
        images = config.trials * config.objective.rungs[-1]
        rows.append(
            {
                "study": entry.name,
                "images": images,
                "networks": round(steps, 2),
                "tflops": round(each[model] / 1e12, 3),
                "hours": round(images * steps * each[model] / SPEED / 3600, 1),
            }
        )
    return rows


def main() -> None:
    """Print the rows."""
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    rows = costs()
    for row in rows:
        say(f"{row['study']}: {row['images']:,} images, {row['networks']:g} networks of {row['tflops']:g} TFLOPs")
    print(json.dumps({"benchmark": "paper_costs", "speed": SPEED, "studies": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
