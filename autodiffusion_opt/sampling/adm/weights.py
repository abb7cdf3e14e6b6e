"""OpenAI's names of weights, in diffusers' words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autodiffusion_opt.sampling.renaming import QkvOrder, Source

# diffusers' name of a part -> OpenAI's.
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "pool": "out.2",
    "pool.to_out": "out.2.c_proj",
}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ATTENTION = {"group_norm": "norm", "to_out.0": "proj_out"}
_RESAMPLERS = {"Downsample2D": "op", "Upsample2D": "conv"}
_QKV = ("to_q", "to_k", "to_v")


def sources(model: Any, qkv: QkvOrder) -> dict[str, Source]:
    """The path of each module with weights, and where they come from.

    Args:
        model: ``UNet2DModel`` or ``NoisyClassifier``; may be on the meta device.
        qkv: the order of its blocks' attentions; that of a classifier's pool is always ``new``.
    """
    return dict(_each_source(model, qkv))


def _each_source(model: Any, qkv: QkvOrder) -> Iterator[tuple[str, Source]]:
    yield from ((target, Source(source)) for target, source in _ENDS.items())
    for target, source in block_sources(model):
        block = model.get_submodule(target)
        if hasattr(block, "conv1"):
            yield from ((f"{target}.{ours}", Source(f"{source}.{theirs}")) for ours, theirs in _RESIDUAL.items())
            continue
        if hasattr(block, "conv"):  # a convolution that halves or doubles the resolution
            yield f"{target}.conv", Source(f"{source}.{_RESAMPLERS[type(block).__name__]}")
            continue
        yield from ((f"{target}.{ours}", Source(f"{source}.{theirs}")) for ours, theirs in _ATTENTION.items())
        for part, name in enumerate(_QKV):
            yield f"{target}.{name}", Source(f"{source}.qkv", part, block.heads, qkv)
    for part, name in enumerate(_QKV):
        yield f"pool.{name}", Source("out.2.qkv_proj", part)


def block_sources(model: Any) -> Iterator[tuple[str, str]]:
    """(path of a block, its path in OpenAI's model), whose flat lists run through all resolutions."""
    number = 1  # 0 is conv_in
    for level, block in enumerate(model.down_blocks):
        for index in range(len(block.resnets)):
            yield f"down_blocks.{level}.resnets.{index}", f"input_blocks.{number}.0"
            if getattr(block, "attentions", None):
                yield f"down_blocks.{level}.attentions.{index}", f"input_blocks.{number}.1"
            number += 1
        if block.downsamplers:
            yield f"down_blocks.{level}.downsamplers.0", f"input_blocks.{number}.0"
            number += 1
    yield "mid_block.resnets.0", "middle_block.0"
    yield "mid_block.attentions.0", "middle_block.1"
    yield "mid_block.resnets.1", "middle_block.2"
    number = 0
    for level, block in enumerate(getattr(model, "up_blocks", ())):
        has_attention = bool(getattr(block, "attentions", None))
        for index in range(len(block.resnets)):
            yield f"up_blocks.{level}.resnets.{index}", f"output_blocks.{number}.0"
            if has_attention:
                yield f"up_blocks.{level}.attentions.{index}", f"output_blocks.{number}.1"
            if block.upsamplers and index == len(block.resnets) - 1:
                yield f"up_blocks.{level}.upsamplers.0", f"output_blocks.{number}.{2 if has_attention else 1}"
            number += 1
