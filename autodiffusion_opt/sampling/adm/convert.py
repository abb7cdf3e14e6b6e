"""OpenAI's checkpoints as a folder that diffusers' way of loading reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, UNet2DModel

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.adm.classifier import NoisyClassifier
from autodiffusion_opt.sampling.adm.pipeline import ADMPipeline
from autodiffusion_opt.sampling.adm.presets import CLASSIFIER_NAMES, NAMES, PRESETS, Preset
from autodiffusion_opt.sampling.adm.weights import sources
from autodiffusion_opt.sampling.checkpoint_files import read_weights, saved
from autodiffusion_opt.sampling.renaming import State, filled


def convert(name: str, file: Path, classifier_file: Path | None, folder: Path) -> dict[str, Any]:
    """Write a published checkpoint of a preset as a pipeline's folder.

    Args:
        name: of the preset.
        file: the UNet's ``.pt`` file.
        classifier_file: the classifier's; None: the pipeline has none.
        folder: is made; safetensors.

    Returns:
        The folder, the pipeline's class, and how many weights there are of each network.

    Raises:
        UserError: for a file that cannot be read or is of another model, and a folder that cannot be written.
    """
    preset = PRESETS[name]
    if classifier_file is not None and preset.classifier is None:
        raise UserError(f"--classifier: {name} is not guided by a classifier; leave it out")
    state = read_weights(file)
    _check_unet(state, name, file)
    parts = [state]
    if classifier_file is not None:
        parts.append(read_weights(classifier_file))
        _check_classifier(parts[-1], name, classifier_file)
    pipeline = build(preset, *parts)
    return {"preset": name, **saved(pipeline, folder)}


def build(preset: Preset, state: State, classifier: State | None = None) -> ADMPipeline:
    """The pipeline of a preset with a checkpoint's weights. Raises UserError where they do not fit."""
    guide = None
    if classifier is not None:
        guide = filled(NoisyClassifier, preset.classifier or {}, classifier, lambda model: sources(model, "legacy"))
    unet = filled(UNet2DModel, preset.unet, state, lambda model: sources(model, preset.qkv))
    return ADMPipeline(unet, DDIMScheduler(**preset.scheduler), guide)


def _input_blocks(state: State) -> int:
    return len({key.split(".")[1] for key in state if key.startswith("input_blocks.")})


def _check_unet(state: State, name: str, file: Path) -> None:
    """Raises UserError, with the model's name where it is another one of OpenAI's."""
    conv_in = state.get("input_blocks.0.0.weight")
    if conv_in is None or conv_in.ndim != 4:
        raise UserError(f"{file} must be a checkpoint of guided-diffusion: input_blocks.0.0.weight is not in it")
    if "out.2.positional_embedding" in state:
        raise UserError(f"{file} is a classifier: give it as --classifier, and the model's own file as FILE")
    layout = (conv_in.shape[0], conv_in.shape[1], "label_emb.weight" in state, _input_blocks(state))
    wanted = next(known for known, label in NAMES.items() if label.startswith(name))
    if layout != wanted:
        width, channels, has_classes, blocks = layout
        shape = (
            f"{width} channels wide, {channels} in, {'with' if has_classes else 'no'} classes, {blocks} input blocks"
        )
        label = NAMES.get(layout, f"of no published layout: {shape}")
        raise UserError(f"{file} must be {name}'s ({PRESETS[name].file}); it is {label}. {_hint(layout)}")


def _hint(layout: tuple[int, int, bool, int]) -> str:
    known = [preset for preset in PRESETS if NAMES.get(layout, "").startswith(preset)]
    return f"Use: convert {known[0]}" if known else f"Presets are: {', '.join(PRESETS)}"


def _check_classifier(state: State, name: str, file: Path) -> None:
    if "out.2.positional_embedding" not in state:
        raise UserError(f"--classifier: {file} must be a classifier of guided-diffusion; it has no attention pool")
    blocks = _input_blocks(state)
    label = CLASSIFIER_NAMES.get(blocks, f"of no published layout: {blocks} input blocks")
    if label != CLASSIFIER_NAMES[20]:
        raise UserError(f"--classifier: {file} must be {name}'s ({PRESETS[name].classifier_file}); it is {label}")
