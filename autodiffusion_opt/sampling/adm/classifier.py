"""The classifier of noisy images that guides ADM: the first half of its UNet, and a pool by attention."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import log_softmax, scaled_dot_product_attention, silu

NORM_GROUPS, NORM_EPS = 32, 1e-5


class AttentionPool(nn.Module):
    """Positions are pooled by an attention whose only query is their mean (CLIP's, https://arxiv.org/abs/2103.00020).

    Args:
        positions: height times width.
        channels: of the input.
        head_dim: channels of a head.
        outputs: how many numbers an image becomes.
    """

    def __init__(self, positions: int, channels: int, head_dim: int, outputs: int) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.positional_embedding = nn.Parameter(torch.randn(channels, positions + 1) / channels**0.5)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Linear(channels, outputs)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) -> (N, outputs)"""
        hidden = hidden.flatten(2)
        hidden = torch.cat([hidden.mean(dim=2, keepdim=True), hidden], dim=2) + self.positional_embedding
        hidden = hidden.transpose(1, 2)  # (N, 1 + H·W, channels)
        query, key, value = self.to_q(hidden[:, :1]), self.to_k(hidden), self.to_v(hidden)
        heads = (each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in (query, key, value))
        pooled: torch.Tensor = self.to_out(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(1))
        return pooled


class NoisyClassifier(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """log p(y | x_t, t) of ADM (https://arxiv.org/abs/2105.05233, section 4 and appendix H).

    Args:
        sample_size: height and width of the images.
        in_channels: of the images.
        num_classes: how many classes there are.
        down_block_types: diffusers' names, from the largest resolution.
        block_out_channels: of each of them.
        layers_per_block: residual blocks of each.
        attention_head_dim: channels of an attention's head.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        num_classes: int = 1000,
        down_block_types: tuple[str, ...] = ("ResnetDownsampleBlock2D", *("AttnDownBlock2D",) * 3),
        block_out_channels: tuple[int, ...] = (128, 256, 384, 512),
        layers_per_block: int = 4,
        attention_head_dim: int = 64,
    ) -> None:
        super().__init__()
        first, last = block_out_channels[0], block_out_channels[-1]
        shared: dict[str, Any] = {
            "temb_channels": 4 * first,
            "resnet_eps": NORM_EPS,
            "resnet_act_fn": "silu",
            "resnet_groups": NORM_GROUPS,
            "attention_head_dim": attention_head_dim,
            "resnet_time_scale_shift": "scale_shift",
        }
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.time_proj = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, 4 * first)
        self.down_blocks = nn.ModuleList(
            get_down_block(
                kind,
                num_layers=layers_per_block,
                in_channels=before,
                out_channels=after,
                add_downsample=index < len(block_out_channels) - 1,
                downsample_padding=1,
                downsample_type="resnet",
                **shared,
            )
            for index, (kind, before, after) in enumerate(
                zip(down_block_types, (first, *block_out_channels), block_out_channels, strict=False)
            )
        )
        self.mid_block = UNetMidBlock2D(in_channels=last, attn_groups=NORM_GROUPS, **shared)
        self.conv_norm_out = nn.GroupNorm(NORM_GROUPS, last, eps=NORM_EPS)
        positions = (sample_size // 2 ** (len(block_out_channels) - 1)) ** 2
        self.pool = AttentionPool(positions, last, attention_head_dim, num_classes)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of noisy images (N, in_channels, H, W) at times (N,) or ()."""
        times = timestep.to(sample.device).expand(len(sample))
        embedding = self.time_embedding(self.time_proj(times).to(sample.dtype))
        hidden = self.conv_in(sample)
        for block in self.down_blocks:
            hidden, _ = block(hidden_states=hidden, temb=embedding)
        hidden = self.conv_norm_out(self.mid_block(hidden, embedding))
        logits: torch.Tensor = self.pool(silu(hidden))
        return logits

    @torch.inference_mode(False)  # tensors of that mode, in which callers may be, take no gradient
    def log_probability_gradient(
        self, sample: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """∇ₓ log p(y | x_t, t), shape and type of ``sample``; each image's own, whatever else is in the batch.

        Args:
            sample: x_t, (N, in_channels, H, W).
            timestep: t, (N,) or ().
            labels: y, (N,) integers.
        """
        with torch.enable_grad(), _deterministic():
            noisy = sample.to(self.dtype, copy=True).detach().requires_grad_()
            log_probabilities = log_softmax(self(noisy, timestep.clone()), dim=1)
            chosen = log_probabilities.gather(1, labels.clone()[:, None])
            (gradient,) = torch.autograd.grad(chosen.sum(), noisy)
        return gradient.to(sample.dtype)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """On a GPU some backward passes of convolutions and attentions add in the order in which threads end."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cudnn.deterministic = before
