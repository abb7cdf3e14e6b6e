"""CompVis' unconditional checkpoints as a folder that diffusers' ``LDMPipeline`` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, LDMPipeline, UNet2DModel, VQModel

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.adm.weights import sources
from autodiffusion_opt.sampling.checkpoint_files import read_weights, saved
from autodiffusion_opt.sampling.ldm.presets import NAMES, PRESETS, LatentPreset, Layout
from autodiffusion_opt.sampling.ldm.weights import Parts, first_stage_sources, parts_of
from autodiffusion_opt.sampling.renaming import State, filled


def convert(file: Path, folder: Path) -> dict[str, Any]:
    """Write a published checkpoint as a pipeline's folder.

    Args:
        file: ``.ckpt``, or ``.safetensors`` with the same names.
        folder: is made; safetensors.

    Returns:
        The folder, the preset, the pipeline's class, how many weights there are of each network, and whether the UNet's
        are the moving averages of training (``ema``).

    Raises:
        UserError: for a file that cannot be read or is of another model, and a folder that cannot be written.
    """
    state = read_weights(file)
    preset = _preset_of(state, file)
    parts = parts_of(state)
    return {"preset": preset.name, "ema": parts.has_ema, **saved(build(preset, parts), folder)}


def build(preset: LatentPreset, parts: Parts) -> LDMPipeline:
    """The pipeline of a preset with a checkpoint's weights. Raises UserError where they do not fit."""
    scheduler = DDIMScheduler(**preset.scheduler)
    if parts.betas is not None and not _is_close(parts.betas, scheduler.betas):
        raise UserError(f"the noise schedule in the file must be that of {preset.name}; its betas are others")
    # CompVis' UNet is guided-diffusion's, with the old order of an attention's weights.
    unet = filled(UNet2DModel, preset.unet, parts.unet, lambda model: sources(model, "legacy"))
    first_stage = filled(VQModel, preset.first_stage, parts.first_stage, first_stage_sources)
    return LDMPipeline(vqvae=first_stage, unet=unet, scheduler=scheduler)


def _is_close(given: torch.Tensor, wanted: torch.Tensor) -> bool:
    return given.shape == wanted.shape and torch.allclose(given.float(), wanted.float(), rtol=1e-4, atol=1e-8)


def _preset_of(state: State, file: Path) -> LatentPreset:
    """Raises UserError, with the model's name where it is another one of CompVis'."""
    blocks = {name.split(".")[3] for name in state if name.startswith("model.diffusion_model.input_blocks.")}
    first = "model.diffusion_model.input_blocks.0.0.weight"
    conv_in = state.get(first)
    if conv_in is None or conv_in.ndim != 4:
        raise UserError(f"{file} must be a checkpoint of latent-diffusion: {first} is not in it")
    if any(name.startswith("cond_stage_model.") for name in state):
        raise UserError(
            f"{file} must be of an unconditional model; this one has conditions (cond_stage_model). Of "
            "Stable Diffusion: convert sd"
        )
    layout: Layout = (conv_in.shape[0], conv_in.shape[1], len(blocks))
    if layout not in PRESETS:
        width, channels, count = layout
        label = NAMES.get(layout, f"of no published layout: {width} channels wide, {channels} in, {count} input blocks")
        known = "; ".join(preset.name for preset in PRESETS.values())
        raise UserError(f"{file} must be one of {known}; it is {label}")
    return PRESETS[layout]
