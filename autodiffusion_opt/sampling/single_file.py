"""Stable Diffusion in a single file, as its authors and most fine-tunes publish it, as a folder."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.sampling.checkpoint_files import read_weights, saved, stand_ins
from autodiffusion_opt.sampling.load import pipeline_class, quiet
from autodiffusion_opt.sampling.renaming import State

# Names in the file begin so; LDM's and Stable Diffusion's 1 and 2.
_PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}


def convert(file: Path, config: Path, folder: Path) -> dict[str, Any]:
    """Write a checkpoint, read by diffusers' ``from_single_file``, as a pipeline's folder. Nothing is downloaded.

    Args:
        file: ``.safetensors``, or ``.ckpt``, which is read with ``weights_only``.
        config: a folder with ``model_index.json``, the configurations of its parts and the tokenizer; weights in it are
            not read.
        folder: is made; safetensors.

    Returns:
        The folder, the pipeline's class, and how many weights there are of each network.

    Raises:
        UserError: for a file or folder that cannot be read, or that do not fit.
    """
    if not file.is_file():
        raise UserError(f"{file} must be a file; there is none")
    kind: Any = pipeline_class(config)
    if kind is None or not hasattr(kind, "from_single_file"):
        raise UserError(
            f"--config: {config} must be a folder with the model_index.json of a pipeline that diffusers loads from a "
            "single file, its parts' configurations and its tokenizer; those of the model's repository, without weights"
        )
    state = read_weights(file)
    is_safe = file.suffix == ".safetensors"
    try:
        with contextlib.nullcontext() if is_safe else stand_ins(file), quiet():
            pipeline = kind.from_single_file(
                str(file), config=str(config), local_files_only=True, torch_dtype=torch.float32, safety_checker=None
            )
    except Exception as error:  # diffusers raises errors of many classes for keys, shapes and configurations
        raise UserError(f"{file} cannot be read with the configuration {config}: {reason_of(error)}") from error
    _check_complete(state, pipeline, file)
    return {"preset": "sd", **saved(pipeline, folder)}


def _check_complete(state: State, pipeline: Any, file: Path) -> None:
    """Raises UserError where a network has more numbers, or fewer, than the file: diffusers leaves what is missing at
    random, and does not say so."""
    for part, prefix in _PREFIXES.items():
        network = getattr(pipeline, part, None)
        if network is None:
            continue
        needed = sum(weight.numel() for weight in network.parameters())
        given = sum(weight.numel() for name, weight in state.items() if name.startswith(prefix))
        # A text encoder's file may hold more: the places of words, layers that are not used.
        if given < needed or (given > needed and part != "text_encoder"):
            raise UserError(f"{file} must hold {needed:,} numbers under {prefix} for the {part}; it holds {given:,}")
