"""Weights under other names become those of a model of diffusers' layout: strict both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.text import listed

State = Mapping[str, torch.Tensor]
QkvOrder = Literal["new", "legacy"]


@dataclass(frozen=True)
class Source:
    """Where the weights of a module come from.

    Attributes:
        path: the module in the original model.
        part: 0, 1, 2: its queries', keys' or values' third; None: the whole.
        heads: of an attention.
        order: of an attention's weights: ``new``, all queries, keys and values in turn; ``legacy``, those of one head
            after those of another.
    """

    path: str
    part: int | None = None
    heads: int = 1
    order: QkvOrder = "new"

    def taken(self, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """What of a weight is the target's, a convolution of one position becoming a matrix."""
        if self.part is not None:
            weight = split_qkv(weight, self.heads, self.order)[self.part]
        while weight.ndim > len(shape) and weight.shape[-1] == 1:
            weight = weight[..., 0]
        return weight


def split_qkv(weight: torch.Tensor, heads: int, order: QkvOrder) -> tuple[torch.Tensor, ...]:
    """Queries', keys' and values' weights (C, ...) of an attention's (3 C, ...)."""
    if order == "new":
        return weight.chunk(3)
    by_head = weight.reshape(heads, 3, -1, *weight.shape[1:])
    return tuple(part.flatten(0, 1) for part in by_head.unbind(1))


def filled(kind: Any, config: Mapping[str, Any], state: State, sources: Any) -> Any:
    """A model of a class and configuration with the weights of ``state``, for evaluation.

    Args:
        kind: the class.
        config: arguments of it.
        state: the original names and weights.
        sources: of the model: where each module's weights come from, as :func:`renamed` takes it.

    Raises:
        UserError: for weights that do not fit.
    """
    with torch.device("meta"):
        model = kind(**config)
    model.load_state_dict(renamed(state, model, sources(model)), strict=True, assign=True)
    return model.eval()


def renamed(state: State, model: torch.nn.Module, sources: Mapping[str, Source]) -> dict[str, torch.Tensor]:
    """The original's weights as the model names them, each a float32 tensor of its own.

    Args:
        state: the original names and weights.
        model: may be on the meta device.
        sources: the path of each module with weights in the model, and where they come from.

    Raises:
        UserError: weights that are missing, of another shape or left over, all at once.
    """
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
