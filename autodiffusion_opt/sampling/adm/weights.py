"""OpenAI's names of weights, in diffusers' words: strict both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.adm.presets import QkvOrder
from autodiffusion_opt.text import listed

State = Mapping[str, torch.Tensor]

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
_QKV = ("to_q", "to_k", "to_v")


@dataclass(frozen=True)
class Source:
    """Where the weights of a module come from.

    Attributes:
        path: the module in OpenAI's model.
        part: 0, 1, 2: its queries', keys' or values' third; None: the whole.
        heads: of an attention.
        order: of an attention's weights.
    """

    path: str
    part: int | None = None
    heads: int = 1
    order: QkvOrder = "new"

    def taken(self, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """What of a weight is the target's, a convolution of one position becoming a matrix."""
        if self.part is not None:
            weight = split_qkv(weight, self.heads, self.order)[self.part]
        return weight[..., 0] if weight.shape[:-1] == shape and weight.shape[-1] == 1 else weight


def split_qkv(weight: torch.Tensor, heads: int, order: QkvOrder) -> tuple[torch.Tensor, ...]:
    """Queries', keys' and values' weights (C, ...) of an attention's (3 C, ...)."""
    if order == "new":
        return weight.chunk(3)
    by_head = weight.reshape(heads, 3, -1, *weight.shape[1:])
    return tuple(part.flatten(0, 1) for part in by_head.unbind(1))


def renamed(state: State, model: torch.nn.Module, qkv: QkvOrder) -> dict[str, torch.Tensor]:
    """A checkpoint's weights as a model of diffusers' layout names them, each a float32 tensor of its own.

    Args:
        state: OpenAI's names and weights.
        model: ``UNet2DModel`` or ``NoisyClassifier``; may be on the meta device.
        qkv: the order of its blocks' attentions; that of a classifier's pool is always ``new``.

    Raises:
        UserError: weights that are missing, of another shape or left over, all at once.
    """
    sources = dict(_sources(model, qkv))
    used, missing, misshapen, result = set(), [], [], {}
    for key, target in model.state_dict().items():
        module, _, leaf = key.rpartition(".")
        source = sources[module]
        name = f"{source.path}.{leaf}"
        used.add(name)
        if name not in state:
            missing.append(name)
            continue
        weight = state[name]
        parts = 1 if source.part is None else 3
        if source.part is None or (weight.ndim and len(weight) == parts * len(target)):
            weight = source.taken(weight, target.shape)
        if weight.shape != target.shape:
            misshapen.append(f"{name} is {tuple(state[name].shape)}, needed for {tuple(target.shape)} of {key}")
            continue
        # A copy: files of half precision training hold views that share memory and ask for gradients.
        result[key] = weight.detach().to(torch.float32).clone(memory_format=torch.contiguous_format)
    left = sorted(set(state) - used)
    kinds = (("missing", missing), ("of another shape", misshapen), ("not known", left))
    problems = [f"{what}: {listed(names)}" for what, names in kinds if names]
    if problems:
        raise UserError(f"the weights do not fit {type(model).__name__}: {'; '.join(problems)}")
    return result


def _sources(model: Any, qkv: QkvOrder) -> Iterator[tuple[str, Source]]:
    """The path of each module with weights, and where they come from."""
    yield from ((target, Source(source)) for target, source in _ENDS.items())
    for target, source in block_sources(model):
        block = model.get_submodule(target)
        if hasattr(block, "conv1"):
            yield from ((f"{target}.{ours}", Source(f"{source}.{theirs}")) for ours, theirs in _RESIDUAL.items())
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
