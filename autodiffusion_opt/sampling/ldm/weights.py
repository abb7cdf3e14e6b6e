"""What a latent diffusion checkpoint is made of, and its first stage's names of weights in diffusers' words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.renaming import Source, State
from autodiffusion_opt.text import listed

_UNET, _EMA, _FIRST_STAGE = "model.diffusion_model.", "model_ema.", "first_stage_model."
# Follows from the betas: what DDPM's training reads (ldm/models/diffusion/ddpm.py, register_schedule).
_SCHEDULE = frozenset(
    (
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    )
)
_OF_TRAINING = frozenset(("model_ema.decay", "model_ema.num_updates"))


@dataclass(frozen=True)
class Parts:
    """A checkpoint's weights, by what they are of.

    Attributes:
        unet: the names of OpenAI's UNet.
        has_ema: whether those are the moving averages of training, which its authors sample with.
        first_stage: encoder, quantizer and decoder.
        betas: of the noise schedule; None: not in the file.
    """

    unet: State
    has_ema: bool
    first_stage: State
    betas: torch.Tensor | None


def parts_of(state: State) -> Parts:
    """Take a checkpoint apart, every name of it. Raises UserError for names that are in none of its parts."""
    unet, averages, first_stage, left = {}, {}, {}, []
    for name, weight in state.items():
        if name.startswith(_UNET):
            unet[name.removeprefix(_UNET)] = weight
        elif name.startswith(_FIRST_STAGE):
            first_stage[name.removeprefix(_FIRST_STAGE)] = weight
        elif name.startswith(_EMA) and name not in _OF_TRAINING:
            averages[name.removeprefix(_EMA)] = weight
        elif name not in _SCHEDULE and name not in _OF_TRAINING and name != "betas":
            left.append(name)
    if left:
        raise UserError(f"a checkpoint of an unconditional LDM must hold no other weights; got {listed(sorted(left))}")
    # The average of a weight is stored without the dots of its name (ldm/modules/ema.py).
    named = {name: f"diffusion_model{name.replace('.', '')}" for name in unet}
    if averages and set(named.values()) != set(averages):
        differing = sorted(set(named.values()) ^ set(averages))
        raise UserError(f"each weight of the UNet must have one moving average; that is not so of {listed(differing)}")
    sampled = {name: averages[average] for name, average in named.items()} if averages else unet
    return Parts(sampled, bool(averages), first_stage, state.get("betas"))


def first_stage_sources(model: Any) -> dict[str, Source]:
    """The path of each module with weights in ``VQModel``, and where they come from; may be on the meta device."""
    same = {name: Source(name) for name in ("quant_conv", "post_quant_conv", "quantize.embedding")}
    return {**same, **dict(_half("encoder", model.encoder)), **dict(_half("decoder", model.decoder))}


def _half(name: str, half: Any) -> Iterator[tuple[str, Source]]:
    """Of the encoder or the decoder, whose levels the original counts from the largest resolution in both."""
    for ours, theirs in (("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out")):
        yield f"{name}.{ours}", Source(f"{name}.{theirs}")
    for index in range(2):
        yield from _residual(f"{name}.mid_block.resnets.{index}", f"{name}.mid.block_{index + 1}")
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for ours, theirs in attention.items():
        yield f"{name}.mid_block.attentions.0.{ours}", Source(f"{name}.mid.attn_1.{theirs}")
    is_encoder = name == "encoder"
    blocks = half.down_blocks if is_encoder else half.up_blocks
    for position, block in enumerate(blocks):
        ours = f"{name}.{'down' if is_encoder else 'up'}_blocks.{position}"
        theirs = f"{name}.down.{position}" if is_encoder else f"{name}.up.{len(blocks) - 1 - position}"
        for index in range(len(block.resnets)):
            yield from _residual(f"{ours}.resnets.{index}", f"{theirs}.block.{index}")
        way = "down" if is_encoder else "up"
        yield f"{ours}.{way}samplers.0.conv", Source(f"{theirs}.{way}sample.conv")


def _residual(ours: str, theirs: str) -> Iterator[tuple[str, Source]]:
    for name in ("norm1", "conv1", "norm2", "conv2"):
        yield f"{ours}.{name}", Source(f"{theirs}.{name}")
    yield f"{ours}.conv_shortcut", Source(f"{theirs}.nin_shortcut")
