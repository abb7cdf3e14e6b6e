"""The embedded digits model: an 8×8 unconditional DDPM, its feature extractor, and the real images.

``train.py`` beside this file made all three: ``pipeline/`` (an ordinary diffusers folder),
``features.safetensors`` (the extractor's weights), ``images.safetensors`` (1,797 scans, uint8).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from autodiffusion_opt.errors import UserError

FOLDER = Path(__file__).parent
PIPELINE = FOLDER / "pipeline"
FEATURES = FOLDER / "features.safetensors"
IMAGES = FOLDER / "images.safetensors"


class DigitsClassifier(nn.Module):
    """A small CNN over 8×8 grey digits; its penultimate layer (64-d) is the feature space of the metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 1, 8, 8) in -1..1 -> (N, 64)."""
        features: torch.Tensor = self.body(images)
        return features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 1, 8, 8) in -1..1 -> (N, 10) logits."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits


def load_images() -> torch.Tensor:
    """The 1,797 real scans: uint8, (1797, 1, 8, 8), 0 paper .. 255 ink."""
    return load_file(IMAGES)["images"]


def load_classifier() -> DigitsClassifier:
    """The trained classifier, in evaluation mode."""
    network = DigitsClassifier()
    network.load_state_dict(load_file(FEATURES))
    return network.eval().requires_grad_(False)


class Features:
    """The 64-d penultimate layer of the classifier, as an extractor of features: uint8 NCHW -> float32 (N, 64)."""

    def __init__(self, device: torch.device) -> None:
        self._network = load_classifier().to(device)
        self._device = device
        self.identity = "digits-" + hashlib.sha256(FEATURES.read_bytes()).hexdigest()[:16]

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> NDArray[np.float32]:
        """Images must be 8×8 and grey. Raises UserError for others."""
        if tuple(images.shape[1:]) != (1, 8, 8):
            raise UserError(f"the features digits need grey 8×8 images; got (C, H, W) = {tuple(images.shape[1:])}")
        unit = images.to(self._device).float() / 127.5 - 1
        features: NDArray[np.float32] = self._network.features(unit).cpu().numpy()
        return features
