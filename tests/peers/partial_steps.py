"""Partial steps written straight down, without hooks: what the tests of the cache compare with.

Each function runs a denoiser's own modules in the order of its published forward. ``keep`` is a dict that a full pass
fills (branch -> features) and a partial pass reads.
"""

from __future__ import annotations

from typing import Any

import torch

Kept = dict[int, Any]


def unet2d(unet: Any, keep: Kept, branch: int | None, sample: Any, timestep: Any, class_labels: Any = None) -> Any:
    """``UNet2DModel``: the skips 0 .. branch, then the way up from what was kept."""
    times = torch.as_tensor(timestep).reshape(-1).expand(len(sample))
    embedded = unet.time_embedding(unet.time_proj(times).to(unet.dtype))
    if unet.class_embedding is not None:
        embedded = embedded + unet.class_embedding(class_labels)
    return _unet(unet, keep, branch, sample, embedded, lambda attention, x: attention(x))


def unet_condition(
    unet: Any, keep: Kept, branch: int | None, sample: Any, timestep: Any, encoder_hidden_states: Any
) -> Any:
    """``UNet2DConditionModel`` with text alone."""
    times = torch.as_tensor(timestep).reshape(-1).expand(len(sample))
    embedded = unet.time_embedding(unet.time_proj(times).to(unet.dtype))

    def attend(attention: Any, x: Any) -> Any:
        if type(attention).__name__ == "Attention":
            return attention(x, encoder_hidden_states=encoder_hidden_states)
        return attention(x, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0]

    return _unet(unet, keep, branch, sample, embedded, attend)


def _unet(unet: Any, keep: Kept, branch: int | None, sample: Any, embedded: Any, attend: Any) -> Any:
    down, up = [], []  # functions of one tensor on the way down; (residual block, what follows it) on the way up
    for block in unet.down_blocks:
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            down.append([resnet] if attention is None else [resnet, attention])
        down += [[downsampler] for downsampler in block.downsamplers or ()]
    for block in unet.up_blocks:
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        pairs = [[r] if a is None else [r, a] for r, a in zip(block.resnets, attentions, strict=True)]
        pairs[-1] += list(block.upsamplers or ())
        up += pairs

    def run(module: Any, x: Any) -> Any:
        name = type(module).__name__
        if "Attention" in name or "Transformer" in name:
            return attend(module, x)
        return module(x) if name in ("Downsample2D", "Upsample2D") else module(x, embedded)

    skips = [unet.conv_in(sample)]
    for modules in down[: len(down) if branch is None else branch]:
        x = skips[-1]
        for module in modules:
            x = run(module, x)
        skips.append(x)
    if branch is None:
        x = skips[-1]
        middle = unet.mid_block
        x = middle.resnets[0](x, embedded)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = x if attention is None else run(attention, x)
            x = resnet(x, embedded)
        start = 0
    else:
        x, start = keep[branch], len(up) - 1 - branch
    for modules in up[start:]:
        skip = skips.pop()
        if branch is None:
            keep[len(skips)] = x
        x = torch.cat([x, skip], dim=1)
        for module in modules:
            x = run(module, x)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))


def dit(network: Any, keep: Kept, branch: int | None, hidden_states: Any, timestep: Any, class_labels: Any) -> Any:
    """``DiTTransformer2DModel``: so many blocks, then what the others added in the full pass."""
    height = hidden_states.shape[-2] // network.patch_size
    x = network.pos_embed(hidden_states)
    blocks = network.transformer_blocks
    for index, block in enumerate(blocks[:branch]):
        if branch is None:
            keep[index] = x
        x = block(x, timestep=timestep, class_labels=class_labels)
    if branch is None:
        keep.update({index: x - kept for index, kept in keep.items()})
    else:
        x = x + keep[branch]
    condition = blocks[0].norm1.emb(timestep, class_labels, hidden_dtype=x.dtype)
    shift, scale = network.proj_out_1(torch.nn.functional.silu(condition)).chunk(2, dim=1)
    x = network.proj_out_2(network.norm_out(x) * (1 + scale[:, None]) + shift[:, None])
    size, channels = network.patch_size, network.out_channels
    x = x.reshape(-1, height, height, size, size, channels)
    return torch.einsum("nhwpqc->nchpwq", x).reshape(-1, channels, height * size, height * size)


def sd3(
    network: Any,
    keep: Kept,
    branch: int | None,
    hidden_states: Any,
    timestep: Any,
    encoder_hidden_states: Any,
    pooled_projections: Any,
) -> Any:
    """``SD3Transformer2DModel``: as :func:`dit`, with a text stream that the last block does not hand on."""
    size = network.config.patch_size
    height = hidden_states.shape[-2] // size
    x = network.pos_embed(hidden_states)
    condition = network.time_text_embed(timestep, pooled_projections)
    text = network.context_embedder(encoder_hidden_states)
    blocks = network.transformer_blocks
    for index, block in enumerate(blocks[:branch]):
        if branch is None:
            keep[index] = x
        text, x = block(hidden_states=x, encoder_hidden_states=text, temb=condition)
    if branch is None:
        keep.update({index: x - kept for index, kept in keep.items()})
    else:
        x = x + keep[branch]
    x = network.proj_out(network.norm_out(x, condition))
    x = x.reshape(-1, height, height, size, size, network.out_channels)
    return torch.einsum("nhwpqc->nchpwq", x).reshape(-1, network.out_channels, height * size, height * size)
