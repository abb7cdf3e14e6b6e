"""Make the embedded digits model from scikit-learn's bundled digits: ``python -m autodiffusion_opt.zoo.digits.train``.

Needs scikit-learn (the ``test`` extra). One thread, seeded; some 15 minutes on one CPU core. Writes
``images.safetensors``, ``features.safetensors`` and ``pipeline/`` beside this file (or under ``--out``).

The data: the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI, CC BY 4.0),
1,797 scans of 8×8 pixels with 17 grey levels, as scikit-learn ships it.
The model: DDPM (Ho et al., 2020, section 4): linear betas, 1,000 steps, ε-prediction, EMA of the weights.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional

from autodiffusion_opt.zoo.digits import FOLDER, DigitsClassifier

BATCH = 256


def read_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images (1797, 1, 8, 8), 0..255, and their labels (1797,)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    levels = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1)  # 0..16
    return (levels * 255 / 16).round().to(torch.uint8), torch.tensor(data.target)


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return images.float() / 127.5 - 1


def train_classifier(images: torch.Tensor, labels: torch.Tensor, random: torch.Generator) -> DigitsClassifier:
    """Cross-entropy on all images, shifted by up to one pixel; 1,500 steps of Adam."""
    network = DigitsClassifier()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, weight_decay=1e-4)
    for _ in range(1500):
        chosen = torch.randint(len(images), (128,), generator=random)
        dy, dx = torch.randint(-1, 2, (2,), generator=random).tolist()
        batch = functional.pad(images[chosen], (1, 1, 1, 1), value=-1)[..., 1 + dy : 9 + dy, 1 + dx : 9 + dx]
        loss = functional.cross_entropy(network(batch), labels[chosen])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        accuracy = (network.eval()(images).argmax(1) == labels).float().mean()
    print(f"classifier: accuracy on the training images {accuracy:.4f}", file=sys.stderr)
    return network


def build_unet() -> torch.nn.Module:
    """The denoiser: 8×8 and 4×4 levels, residual and attention layers in both."""
    from diffusers import UNet2DModel

    unet: torch.nn.Module = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
    )
    return unet


def train_unet(images: torch.Tensor, steps: int, random: torch.Generator) -> torch.nn.Module:
    """Minimise Ho et al.'s L_simple (equation 14); returns the exponential mean of the weights."""
    from diffusers import DDPMScheduler

    unet, noise_schedule = build_unet(), DDPMScheduler()
    mean = copy.deepcopy(unet).requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), 2e-3, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    print(f"unet: {sum(p.numel() for p in unet.parameters()):,} parameters", file=sys.stderr)
    for step in range(steps):
        clean = images[torch.randint(len(images), (BATCH,), generator=random)]
        noise = torch.randn(clean.shape, generator=random)
        times = torch.randint(1000, (BATCH,), generator=random)
        predicted = unet(noise_schedule.add_noise(clean, noise, times), times).sample
        loss = functional.mse_loss(predicted, noise)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rate.step()
        average(mean, unet, decay=min(0.999, (step + 1) / (step + 10)))
        if step % 200 == 0:
            print(f"unet: step {step}/{steps}, loss {loss.item():.4f}", file=sys.stderr, flush=True)
    return mean.eval()


@torch.no_grad()
def average(mean: torch.nn.Module, network: torch.nn.Module, decay: float) -> None:
    """mean <- decay·mean + (1 - decay)·network, in place."""
    for kept, new in zip(mean.parameters(), network.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)


def main() -> None:
    """Train both networks and write the three files."""
    from diffusers import DDIMScheduler, DDPMPipeline

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder to write to")
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps of the denoiser")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)  # the initial weights
    random = torch.Generator().manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)

    images, labels = read_digits()
    save_file({"images": images}, options.out / "images.safetensors")
    classifier = train_classifier(to_unit(images), labels, random)
    save_file(classifier.state_dict(), options.out / "features.safetensors")
    unet = train_unet(to_unit(images), options.steps, random)
    DDPMPipeline(unet=unet, scheduler=DDIMScheduler()).save_pretrained(options.out / "pipeline")


if __name__ == "__main__":
    main()
