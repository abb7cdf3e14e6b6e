"""The branches of a denoiser: what a partial step runs, and where it takes cached features.

A partial step runs the network down to a branch and leaves out all that lies deeper, which is a contiguous run of its
parts in the order of execution:

- a UNet has a branch at each skip connection (DeepCache, Ma et al., 2024, section 3): at branch b the skips 0 .. b are
  computed, all after skip b is left out, and the cache holds what enters the residual block of the up path that takes
  skip b;
- a transformer has a branch before each of its blocks but the last, of those that take the same streams as the last: at
  a branch the blocks up to there are run, and the cache holds what the others added (Δ-DiT, Chen et al., 2024, section
  3.3; what all blocks added: TeaCache, Liu et al., 2025).

The first branch is the cheapest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.layers.kinds import kind_of
from autodiffusion_opt.sampling.layers.listing import known_layers, unwrap
from autodiffusion_opt.text import listed

# Blocks of transformers whose long skips cross every cut.
_LONG_SKIPS = "HunyuanDiTBlock"


@dataclass(frozen=True)
class Group:
    """A block of a UNet that is left out as a whole where all of its parts are: it concatenates and counts outputs.

    Attributes:
        path: in the denoiser.
        start: index of its first part.
        stop: index after its last part.
        outputs: how many skip connections it gives; 0 for a block of the up path.
    """

    path: str
    start: int
    stop: int
    outputs: int


@dataclass(frozen=True)
class Branches:
    """The parts of a denoiser, in the order in which they run, and where its branches cut.

    Attributes:
        parts: paths in the denoiser.
        cuts: of each branch: the index of the part whose output is the last to be computed before the gap, -1 where
            there is none, and of the part at which the network goes on. All parts between the two are left out.
        groups: blocks of a UNet that parts are in.
        is_unet: whether the network goes on with cached features and the skip connection; else the last part is left
            out too, and what all that were left out added is put on the last output.
    """

    parts: tuple[str, ...]
    cuts: tuple[tuple[int, int], ...]
    groups: tuple[Group, ...]
    is_unet: bool

    def runs(self, branch: int, path: str) -> bool:
        """Whether a partial step at a branch runs a module; what is in no part (embeddings) always runs."""
        last, entry = self.cuts[branch]
        stop = entry if self.is_unet else len(self.parts)
        return not any(path == part or path.startswith(f"{part}.") for part in self.parts[last + 1 : stop])


def branches_of(denoiser: torch.nn.Module) -> Branches:
    """The branches of a denoiser. Raises UserError for one that has none."""
    denoiser = unwrap(denoiser)
    if hasattr(denoiser, "up_blocks"):
        return _of_unet(denoiser)
    return _of_transformer(denoiser)


def _of_unet(unet: Any) -> Branches:
    name = type(unet).__name__
    if name not in ("UNet2DModel", "UNet2DConditionModel"):
        raise UserError(f"partial steps are for UNet2DModel, UNet2DConditionModel and transformers; got {name}")
    kinds = {type(block).__name__ for block in (*unet.down_blocks, *unet.up_blocks)}
    if any("Skip" in kind or kind.startswith("K") for kind in kinds):
        raise UserError(
            f"this {name} has blocks {listed(sorted(kinds))}: partial steps do not know the second skip path of score "
            "SDEs, nor K-diffusion's blocks"
        )
    parts, skips, groups = ["conv_in"], [0], []
    for index, block in enumerate(unet.down_blocks):
        start = len(parts)
        for pair in _layer_pairs(block, f"down_blocks.{index}"):
            parts += pair
            skips.append(len(parts) - 1)
        for number in range(len(block.downsamplers or ())):
            parts.append(f"down_blocks.{index}.downsamplers.{number}")
        if block.downsamplers:
            skips.append(len(parts) - 1)
        groups.append(Group(f"down_blocks.{index}", start, len(parts), len(block.resnets) + bool(block.downsamplers)))
    if unet.mid_block is not None:
        parts.append("mid_block")
    entries = []
    for index, block in enumerate(unet.up_blocks):
        start = len(parts)
        for pair in _layer_pairs(block, f"up_blocks.{index}"):
            entries.append(len(parts))
            parts += pair
        parts += [f"up_blocks.{index}.upsamplers.{number}" for number in range(len(block.upsamplers or ()))]
        groups.append(Group(f"up_blocks.{index}", start, len(parts), 0))
    blocks = [*unet.down_blocks, *unet.up_blocks]
    if len(entries) != len(skips) or any(type(block).__name__.startswith("K") for block in blocks):
        raise UserError(
            f"the blocks of this {name} do not take a skip connection at each residual block of the up path"
        )
    if any(hasattr(block, "skip_conv") or hasattr(block, "resnet_down") for block in blocks):
        raise UserError(f"this {name} has a second skip path (score SDEs), which partial steps do not know")
    # The last branch would leave out the middle block alone: it runs all skips, and is no saving to speak of.
    cuts = tuple(zip(skips, reversed(entries), strict=True))
    return Branches(tuple(parts), cuts, tuple(groups), is_unet=True)


def _layer_pairs(block: Any, path: str) -> Iterator[list[str]]:
    """The residual block, and the attention after it where there is any."""
    attentions = getattr(block, "attentions", None) or ()
    for index in range(len(block.resnets)):
        attention = attentions[index] if index < len(attentions) else None
        yield [f"{path}.resnets.{index}", *([] if attention is None else [f"{path}.attentions.{index}"])]


def _of_transformer(denoiser: torch.nn.Module) -> Branches:
    layers = known_layers(denoiser)
    blocks = [denoiser.get_submodule(layer.path) for layer in layers]
    kinds = [kind for block in blocks if (kind := kind_of(block)) is not None]
    has_long_skips = any(type(block).__name__ == _LONG_SKIPS for block in blocks)
    if {kind.name for kind in kinds} != {"transformer"} or len(blocks) < 3 or has_long_skips:
        raise UserError(
            f"{type(denoiser).__name__} has no branches for partial steps: they are at the skip connections of a UNet, "
            "or between the blocks of a transformer, three at least, without long skips"
        )
    # Blocks with one bypass function take and hand on the same streams: what the later ones added is a difference.
    last = len(blocks) - 1
    cuts = tuple((index - 1, last) for index in range(last) if kinds[index].bypass is kinds[last].bypass)
    return Branches(tuple(layer.path for layer in layers), cuts, (), is_unet=False)
