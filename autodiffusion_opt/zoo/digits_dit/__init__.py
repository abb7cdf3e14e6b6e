"""The embedded class-conditional model: a latent diffusion transformer (DiT) of the same 8×8 digits, with guidance.

``train.py`` beside this file made ``pipeline/``, an ordinary folder of diffusers' ``DiTPipeline``. Its classes are the
digits 0 to 9. Real images and features are those of ``digits``; ``labels.safetensors`` says what each image is of.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from autodiffusion_opt.zoo.digits import FEATURES, IMAGES, Features, load_images

__all__ = ["FEATURES", "FOLDER", "IMAGES", "LABELS", "PIPELINE", "Features", "load_images", "load_labels"]

FOLDER = Path(__file__).parent
PIPELINE = FOLDER / "pipeline"
LABELS = FOLDER / "labels.safetensors"


def load_labels() -> torch.Tensor:
    """What digit each of ``load_images()`` is: int64, (1797,), 0 .. 9."""
    return load_file(LABELS)["labels"].long()
