"""A latent diffusion model's first stage, straight-line in float64, and checkpoints with CompVis' names.

Written from https://arxiv.org/abs/2112.10752 (section 3.1, appendix G), https://arxiv.org/abs/2012.09841 and the names
and shapes in the published files; neither from diffusers nor from what is tested. The UNet is that of :mod:`peers.adm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peers import adm
from peers.adm import Shape, State
from torch.nn.functional import conv2d, group_norm, interpolate, pad, silu

LDM4 = Shape(224, (1, 2, 3, 4), 2, (1, 2, 3), 32, 64, 3, is_plain=True)


@dataclass(frozen=True)
class Autoencoder:
    """Width of the first level, multiples of it, residual blocks a level, latent channels, codes."""

    width: int
    multiples: tuple[int, ...]
    blocks: int
    latent: int
    codes: int


VQ_F4 = Autoencoder(128, (1, 2, 4), 2, 3, 8192)


def first_stage_shapes(shape: Autoencoder) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight, without ``first_stage_model.``."""
    result: dict[str, tuple[int, ...]] = {}

    def add(name: str, *weight: int) -> None:
        result[f"{name}.weight"], result[f"{name}.bias"] = weight, weight[:1]

    def residual(name: str, before: int, after: int) -> None:
        add(f"{name}.norm1", before)
        add(f"{name}.conv1", after, before, 3, 3)
        add(f"{name}.norm2", after)
        add(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            add(f"{name}.nin_shortcut", after, before, 1, 1)

    widths = [shape.width * multiple for multiple in shape.multiples]
    top = widths[-1]
    for half, before, after in (("encoder", 3, shape.latent), ("decoder", shape.latent, 3)):
        way, now = ("down", widths[0]) if half == "encoder" else ("up", top)
        add(f"{half}.conv_in", now, before, 3, 3)
        levels = range(len(widths)) if half == "encoder" else reversed(range(len(widths)))
        count = shape.blocks + (half == "decoder")
        for level in levels:
            for block in range(count):
                residual(f"{half}.{way}.{level}.block.{block}", now, widths[level])
                now = widths[level]
            if level != (len(widths) - 1 if half == "encoder" else 0):
                add(f"{half}.{way}.{level}.{way}sample.conv", now, now, 3, 3)
        for block in (1, 2):
            residual(f"{half}.mid.block_{block}", top, top)
        add(f"{half}.mid.attn_1.norm", top)
        for name in ("q", "k", "v", "proj_out"):
            add(f"{half}.mid.attn_1.{name}", top, top, 1, 1)
        add(f"{half}.norm_out", now)
        add(f"{half}.conv_out", after, now, 3, 3)
    for name in ("quant_conv", "post_quant_conv"):
        add(name, shape.latent, shape.latent, 1, 1)
    result["quantize.embedding.weight"] = (shape.codes, shape.latent)
    return result


class _FirstStage:
    def __init__(self, state: State, shape: Autoencoder) -> None:
        self.state, self.shape = {name: weight.double() for name, weight in state.items()}, shape

    def conv(self, name: str, hidden: torch.Tensor, **settings: Any) -> torch.Tensor:
        weight = self.state[f"{name}.weight"]
        settings = {"padding": weight.shape[-1] // 2, **settings}
        return conv2d(hidden, weight, self.state[f"{name}.bias"], **settings)

    def norm(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        return group_norm(hidden, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def residual(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        inner = self.conv(f"{name}.conv1", silu(self.norm(f"{name}.norm1", hidden)))
        inner = self.conv(f"{name}.conv2", silu(self.norm(f"{name}.norm2", inner)))
        is_wider = f"{name}.nin_shortcut.weight" in self.state
        return inner + (self.conv(f"{name}.nin_shortcut", hidden) if is_wider else hidden)

    def middle(self, half: str, hidden: torch.Tensor) -> torch.Tensor:
        hidden, name = self.residual(f"{half}.mid.block_1", hidden), f"{half}.mid.attn_1"
        normed = self.norm(f"{name}.norm", hidden)
        query, key, value = (self.conv(f"{name}.{part}", normed).flatten(2) for part in "qkv")
        weights = (torch.einsum("nct,ncs->nts", query, key) / query.shape[1] ** 0.5).softmax(dim=2)
        mixed = torch.einsum("nts,ncs->nct", weights, value).view_as(hidden)
        return self.residual(f"{half}.mid.block_2", hidden + self.conv(f"{name}.proj_out", mixed))

    def end(self, half: str, hidden: torch.Tensor) -> torch.Tensor:
        return self.conv(f"{half}.conv_out", silu(self.norm(f"{half}.norm_out", hidden)))


def encoded(state: State, shape: Autoencoder, images: torch.Tensor) -> torch.Tensor:
    """Latents before they are quantized."""
    net = _FirstStage(state, shape)
    hidden = net.conv("encoder.conv_in", images.double())
    for level in range(len(shape.multiples)):
        for block in range(shape.blocks):
            hidden = net.residual(f"encoder.down.{level}.block.{block}", hidden)
        if level < len(shape.multiples) - 1:  # one row and one column of zeros, below and to the right
            hidden = net.conv(f"encoder.down.{level}.downsample.conv", pad(hidden, (0, 1, 0, 1)), stride=2, padding=0)
    return net.conv("quant_conv", net.end("encoder", net.middle("encoder", hidden)))


def decoded(state: State, shape: Autoencoder, latents: torch.Tensor) -> torch.Tensor:
    """The image of the codes that are nearest to the latents."""
    net = _FirstStage(state, shape)
    codes = net.state["quantize.embedding.weight"]
    columns = latents.double().movedim(1, -1)
    nearest = ((columns[..., None, :] - codes) ** 2).sum(dim=-1).argmin(dim=-1)
    hidden = net.conv("decoder.conv_in", net.conv("post_quant_conv", codes[nearest].movedim(-1, 1)))
    hidden = net.middle("decoder", hidden)
    for level in reversed(range(len(shape.multiples))):
        for block in range(shape.blocks + 1):
            hidden = net.residual(f"decoder.up.{level}.block.{block}", hidden)
        if level:
            hidden = net.conv(f"decoder.up.{level}.upsample.conv", interpolate(hidden, scale_factor=2))
    return net.end("decoder", hidden)


def checkpoint(unet: State, first_stage: State, averages: State | None = None) -> dict[str, torch.Tensor]:
    """All that CompVis' ``state_dict`` holds; ``averages``: of the UNet's weights, under its names."""
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    names = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
    names += ("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod")
    names += ("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2")
    state = {name: torch.zeros(1000) for name in names} | {"betas": betas.float()}
    state |= {f"model.diffusion_model.{name}": weight for name, weight in unet.items()}
    state |= {f"first_stage_model.{name}": weight for name, weight in first_stage.items()}
    if averages is not None:
        state |= {f"model_ema.diffusion_model{name.replace('.', '')}": weight for name, weight in averages.items()}
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5)}
    return state


SMALL = Shape(32, (1, 2), 1, (1,), 16, 16, 3, is_plain=True)
SMALL_VQ = Autoencoder(32, (1, 2), 1, 3, 50)


def small_preset() -> Any:
    """Of 32 × 32 images, latents of 16 × 16, two resolutions of both networks."""
    from autodiffusion_opt.sampling.ldm.presets import LDM4, PRESETS, LatentPreset

    whole = PRESETS[LDM4]
    unet = {
        **whole.unet,
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "attention_head_dim": 16,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    first_stage = {
        **whole.first_stage,
        "sample_size": 32,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "num_vq_embeddings": 50,
    }
    return LatentPreset("a small one", unet, first_stage, whole.scheduler)


def small_states() -> tuple[State, State, State]:
    """Random weights of the UNet, its averages and the first stage."""
    first_stage = adm.random_weights(first_stage_shapes(SMALL_VQ), 3)
    return adm.random_state(SMALL, 1), adm.random_state(SMALL, 2), first_stage


def unet(state: State, latents: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    return adm.unet(state, SMALL, "legacy", latents, times)
