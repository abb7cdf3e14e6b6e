"""The keys of the spaces in which steps may leave layers out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from pydantic import Field

from autodiffusion_opt.config import combine
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.base import SpaceConfig
from autodiffusion_opt.space.layer_choice import AnyLayers, LayerChoice, LayerRanking, Layers, RankedLayers
from autodiffusion_opt.space.model_info import THIRDS, ModelInfo


class LayersConfig(SpaceConfig):
    """Which layers a step may leave out.

    Attributes:
        layers: ``any`` subset at any step, for optimizers of candidates (evolution, random); or ``ranked``: only how
            many, and which follows a ranking measured once, for every optimizer.
        draw: how ``any`` draws layers at random: ``ranked``, the less a layer matters the more often it is removed;
            or ``uniform``, as in the paper. Either way every subset can come up.
        removable: indices of the layers that may be removed; absent: every one whose bypass keeps shapes.
        max_removed_share: the share of the network's layers that a step may remove at most.
    """

    layers: str
    draw: Literal["ranked", "uniform"] = "ranked"
    removable: tuple[int, ...] | None = None
    max_removed_share: float = Field(default=0.5, ge=0, le=1)

    @property
    def needs_layers(self) -> bool:
        """True."""
        return True

    @property
    def needs_ranking(self) -> bool:
        """Unless layers are drawn uniformly."""
        return "ranked" in (self.layers, self.draw)

    def check_model(self, info: ModelInfo) -> None:
        """Raises UserError for a budget, numbers of steps or layers that no ranking makes possible."""
        unranked = {"layers": "any"} if self.layers == "ranked" else {}
        self.model_copy(update=unranked).space(replace(info, ranking=()))

    def max_removed(self, info: ModelInfo) -> int:
        """How many layers a step may remove."""
        # 1e-9: a share of 0.29 of 100 layers is 28.999999999999996 in floats.
        return min(math.floor(self.max_removed_share * info.layers + 1e-9), len(self.removable_layers(info)))

    def removable_layers(self, info: ModelInfo) -> Layers:
        """The layers that may be removed, ascending. Raises UserError for any that cannot."""
        if self.removable is None:
            return tuple(sorted(info.removable))
        errors = []
        unknown = sorted(layer for layer in set(self.removable) if not 0 <= layer < info.layers)
        fixed = sorted(set(self.removable) - set(info.removable) - set(unknown))
        if unknown:
            allowed = f"0 to {info.layers - 1}, the model's layers"
            errors.append(UserError(f"removable must be indices from {allowed}; got {unknown}"))
        if fixed:
            errors.append(UserError(f"removable: layers {fixed} cannot be bypassed in this model; take them out"))
        combine(errors)
        return tuple(sorted(set(self.removable)))

    def layer_choice(self, info: ModelInfo) -> LayerChoice:
        """Raises UserError where ``layers = "ranked"`` has no ranking of all removable layers."""
        removable = self.removable_layers(info)
        orders = tuple(tuple(layer for layer in order if layer in removable) for order in info.ranking)
        # Of a ranking of more layers, what is left of it ranks those that are removable here.
        complete = len(orders) == THIRDS and all(len(order) == len(removable) for order in orders)
        ranking = LayerRanking(orders, info.lowest, info.highest) if complete and self.needs_ranking else None
        if self.layers == "any":
            return AnyLayers(removable, ranking)
        if ranking is None:
            raise UserError(
                'layers = "ranked" needs a ranking of the removable layers for each third of the time range; '
                f"got {len(info.ranking)} rankings: measure it with rank_layers"
            )
        return RankedLayers(ranking)
