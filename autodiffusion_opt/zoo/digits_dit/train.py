"""Make the embedded DiT from the images of ``digits``: ``python -m autodiffusion_opt.zoo.digits_dit.train``.

One thread, seeded; 23 minutes of a CPU core's time (AMD EPYC; 32 minutes by the clock, where other work shared the
cores). Writes ``pipeline/`` beside this file (or under ``--out``).

The model: DiT with adaLN-Zero (W. Peebles and S. Xie, 2023, section 3.2) on the latents of a small VAE (R. Rombach et
al., 2022, section 3.1): linear betas, 1,000 steps, ε-prediction, EMA of the weights. Labels are dropped at random
(J. Ho and T. Salimans, 2022, algorithm 1), so that classifier-free guidance works.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from autodiffusion_opt.zoo.digits.train import average, to_unit
from autodiffusion_opt.zoo.digits_dit import FOLDER, load_images, load_labels

BATCH = 128
CLASSES = 10
NULL_CLASS = 1000  # fixed in DiTPipeline: the class of an image without a label
DROPPED_LABELS = 0.1
KL_WEIGHT = 1e-3
# Smaller data are noisier at every time (T. Chen, 2023, "On the importance of noise scheduling for diffusion models",
# strategy 2). What an image shows is then decided at smaller times, where uniform steps are few. Without guidance,
# four of them were 4.7 times as far from the real images as fifty at a deviation of 1 (12,000 steps of training), and
# are 8.5 times as far at 0.4.
LATENT_DEVIATION = 0.4


def build_vae() -> Any:
    """(N, 1, 8, 8) images, (N, 1, 8, 8) latents: with one level only, no side is halved and little is lost."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        sample_size=8,
        latent_channels=1,
        block_out_channels=(16,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def build_transformer() -> Any:
    """Six blocks of width 64 over 16 patches of 2×2 latent pixels; every block begins as the identity (adaLN-Zero)."""
    from diffusers import DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=1,
        out_channels=1,
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=16,
        num_embeds_ada_norm=NULL_CLASS,
    )
    with torch.no_grad():
        for block in transformer.transformer_blocks:
            block.norm1.linear.weight.zero_()
            block.norm1.linear.bias.zero_()
            # Rows of classes that there are not stay 0, so that a packed file has no room for them.
            block.norm1.emb.class_embedder.embedding_table.weight[CLASSES:NULL_CLASS] = 0
        for layer in (transformer.proj_out_1, transformer.proj_out_2):
            layer.weight.zero_()
            layer.bias.zero_()
    return transformer


def train_vae(images: torch.Tensor, steps: int, random: torch.Generator) -> Any:
    """Minimise the squared error plus ``KL_WEIGHT`` times the divergence from N(0, 1), a mean over latent numbers."""
    vae = build_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), 2e-3, weight_decay=0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    print(f"vae: {sum(p.numel() for p in vae.parameters()):,} parameters", file=sys.stderr)
    for step in range(steps):
        clean = images[torch.randint(len(images), (BATCH,), generator=random)]
        posterior = vae.encode(clean).latent_dist
        error = functional.mse_loss(vae.decode(posterior.sample(random)).sample, clean)
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        torch.autograd.backward(error + KL_WEIGHT * divergence)
        optimizer.step()
        rate.step()
        if step % 200 == 0:
            print(f"vae: step {step}/{steps}, squared error {error.item():.5f}", file=sys.stderr, flush=True)
    return vae.eval().requires_grad_(False)


def scaled_latents(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """The images' latents at ``LATENT_DEVIATION``; the VAE keeps the factor, which the pipeline divides by."""
    with torch.no_grad():
        latents: torch.Tensor = vae.encode(images).latent_dist.mode()
    factor = LATENT_DEVIATION / latents.std().item()
    vae.register_to_config(scaling_factor=factor)
    return latents * factor


def train_transformer(latents: torch.Tensor, labels: torch.Tensor, steps: int, random: torch.Generator) -> Any:
    """Minimise Ho et al.'s L_simple (2020, equation 14); returns the exponential mean of the weights."""
    from diffusers import DDPMScheduler

    # eval(): in training, each block of diffusers' DiT would drop labels by itself, and not the same ones.
    transformer, noise_schedule = build_transformer().eval(), DDPMScheduler()
    mean = copy.deepcopy(transformer).requires_grad_(False)
    optimizer = torch.optim.AdamW(transformer.parameters(), 2e-3, weight_decay=0, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    print(f"transformer: {sum(p.numel() for p in transformer.parameters()):,} parameters", file=sys.stderr)
    for step in range(steps):
        chosen = torch.randint(len(latents), (BATCH,), generator=random)
        dropped = torch.rand(BATCH, generator=random) < DROPPED_LABELS
        classes = labels[chosen].masked_fill(dropped, NULL_CLASS)
        noise = torch.randn((BATCH, *latents.shape[1:]), generator=random)
        times = torch.randint(1000, (BATCH,), generator=random)
        noisy = noise_schedule.add_noise(latents[chosen], noise, times)
        loss = functional.mse_loss(transformer(noisy, timestep=times, class_labels=classes).sample, noise)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        rate.step()
        average(mean, transformer, decay=min(0.999, (step + 1) / (step + 10)))
        if step % 200 == 0:
            print(f"transformer: step {step}/{steps}, loss {loss.item():.4f}", file=sys.stderr, flush=True)
    return mean


def main() -> None:
    """Train both networks and write the pipeline, in float16."""
    from diffusers import DDIMScheduler, DiTPipeline

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder to write to")
    parser.add_argument("--vae-steps", type=int, default=1500, help="optimizer steps of the autoencoder")
    parser.add_argument("--steps", type=int, default=10000, help="optimizer steps of the transformer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)  # the initial weights
    random = torch.Generator().manual_seed(options.seed)

    images = to_unit(load_images())
    vae = train_vae(images, options.vae_steps, random)
    latents = scaled_latents(vae, images)
    transformer = train_transformer(latents, load_labels(), options.steps, random)
    scheduler = DDIMScheduler(clip_sample=False)  # latents have no range to clip to
    DiTPipeline(transformer.half(), vae.half(), scheduler).save_pretrained(options.out / "pipeline")


if __name__ == "__main__":
    main()
