"""OpenAI's diffusion models (ADM, https://arxiv.org/abs/2105.05233), which diffusers does not load.

:mod:`.pipeline` samples with classifier guidance, :mod:`.classifier` is what guides, :mod:`.presets` says how the
published models are built, :mod:`.weights` renames their weights, :mod:`.convert` writes a folder in diffusers' form.
"""

from autodiffusion_opt.sampling.adm.classifier import NoisyClassifier
from autodiffusion_opt.sampling.adm.pipeline import ADMPipeline

__all__ = ["ADMPipeline", "NoisyClassifier"]
