"""ComfyUI's custom sampling in float64, from its conventions and k-diffusion's formulas; nothing of ours or diffusers'.

Conventions: comfy/model_sampling.py (EPS, V_PREDICTION, CONST, ModelSamplingDiscrete, ModelSamplingDiscreteFlow),
comfy/samplers.py (max_denoise), comfy_extras/nodes_custom_sampler.py (AddNoise, ManualSigmas).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

# (input, time) -> the model's output; the input as the model sees it.
Model = Callable[[torch.Tensor, float], torch.Tensor]
Denoise = Callable[[torch.Tensor, float], torch.Tensor]


def manual_sigmas(text: str) -> list[float]:
    """What the node reads: decimals alone, in float32."""
    return [float(np.float32(number)) for number in re.findall(r"[-+]?(?:\d*\.*\d+)", text)]


def training_sigmas(betas: np.ndarray) -> np.ndarray:
    kept = np.cumprod(1 - betas.astype(np.float64))
    return np.asarray(np.sqrt((1 - kept) / kept))


class Discrete:
    """EPS or V_PREDICTION over ModelSamplingDiscrete."""

    def __init__(self, model: Model, betas: np.ndarray, predicts: str = "epsilon") -> None:
        self.model, self.sigmas, self.predicts = model, training_sigmas(betas), predicts

    def denoised(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        time = int(np.abs(math.log(sigma) - np.log(self.sigmas)).argmin())
        root = math.sqrt(sigma**2 + 1)
        output = self.model(x / root, float(time))
        if self.predicts == "epsilon":
            return x - sigma * output
        return x / root**2 - output * sigma / root

    def scaled(self, sigma: float, noise: torch.Tensor, latent: torch.Tensor, greatest: bool) -> torch.Tensor:
        return noise * (math.sqrt(1 + sigma**2) if greatest else sigma) + latent

    def is_greatest(self, sigma: float) -> bool:
        return math.isclose(self.sigmas[-1], sigma, rel_tol=1e-5) or sigma > self.sigmas[-1]

    def unscaled(self, sigma: float, latent: torch.Tensor) -> torch.Tensor:
        return latent


class Flow:
    """CONST over ModelSamplingDiscreteFlow; multiplier 1: ModelSamplingFlux."""

    def __init__(self, model: Model, multiplier: float) -> None:
        self.model, self.multiplier = model, multiplier

    def denoised(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return x - sigma * self.model(x, sigma * self.multiplier)

    def scaled(self, sigma: float, noise: torch.Tensor, latent: torch.Tensor, greatest: bool) -> torch.Tensor:
        return sigma * noise + (1 - sigma) * latent

    def is_greatest(self, sigma: float) -> bool:
        return sigma >= 1

    def unscaled(self, sigma: float, latent: torch.Tensor) -> torch.Tensor:
        return latent / (1 - sigma)


def sample(model: Discrete | Flow, settings: dict[str, Any], noise: torch.Tensor) -> torch.Tensor:
    """What the nodes make of an exported file: AddNoise where it asks for it, the sampler, LatentMultiply."""
    sigmas = manual_sigmas(settings["manual_sigmas"])
    empty = torch.zeros_like(noise)
    if "add_noise_sigmas" in settings:
        (level,) = manual_sigmas(settings["add_noise_sigmas"])
        noise, empty = torch.zeros_like(noise), model.scaled(level, noise, empty, greatest=False)
    x = model.scaled(sigmas[0], noise, empty, model.is_greatest(sigmas[0]))
    x = SAMPLERS[settings["sampler_name"]](model.denoised, x, sigmas)
    return model.unscaled(sigmas[-1], x) * settings.get("latent_multiply", 1.0)


def euler(denoised: Denoise, x: torch.Tensor, sigmas: list[float]) -> torch.Tensor:
    """Karras et al., 2022 (arXiv 2206.00364), algorithm 1 without its correction."""
    for now, then in itertools.pairwise(sigmas):
        x = x + (then - now) * (x - denoised(x, now)) / now
    return x


def heun(denoised: Denoise, x: torch.Tensor, sigmas: list[float]) -> torch.Tensor:
    """The same, algorithm 1."""
    for now, then in itertools.pairwise(sigmas):
        slope = (x - denoised(x, now)) / now
        trial = x + (then - now) * slope
        if then > 0:
            slope = (slope + (trial - denoised(trial, then)) / then) / 2
        x = x + (then - now) * slope
    return x


def dpmpp_2m(denoised: Denoise, x: torch.Tensor, sigmas: list[float]) -> torch.Tensor:
    """Lu et al., 2022 (arXiv 2211.01095), algorithm 2, with α = 1 and λ = -ln σ; a step to σ = 0 is of order 1."""
    before: tuple[torch.Tensor, float] | None = None
    for now, then in itertools.pairwise(sigmas):
        image = denoised(x, now)
        length = math.inf if then == 0 else math.log(now / then)
        used = image
        if before is not None and then > 0:
            ratio = before[1] / length
            used = (1 + 1 / (2 * ratio)) * image - before[0] / (2 * ratio)
        x = (then / now) * x - math.expm1(-length) * used
        before = image, length
    return x


def lms(denoised: Denoise, x: torch.Tensor, sigmas: list[float]) -> torch.Tensor:
    """Adams-Bashforth for uneven steps in σ, up to four slopes (k-diffusion); ComfyUI's step to σ = 0 is Euler's.

    The polynomial through the slopes is integrated over the step.
    """
    slopes: list[torch.Tensor] = []
    for k, (now, then) in enumerate(itertools.pairwise(sigmas)):
        slopes = [(x - denoised(x, now)) / now, *slopes][:4]
        used = slopes[:1] if then == 0 else slopes
        nodes = np.array(sigmas[k::-1][: len(used)])
        for index, slope in enumerate(used):
            others = np.delete(nodes, index)
            basis = np.poly1d(others, r=True) / np.prod(nodes[index] - others)
            whole = basis.integ()
            x = x + float(whole(then) - whole(now)) * slope
    return x


SAMPLERS = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m, "lms": lms}
