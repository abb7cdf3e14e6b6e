"""The table of the joint space: what of a model it may choose from (:mod:`autodiffusion_opt.space.joint`)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from autodiffusion_opt.config import combine
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import cost
from autodiffusion_opt.space.base import SpaceConfig
from autodiffusion_opt.space.budget import Budget, least_share
from autodiffusion_opt.space.joint import Joint
from autodiffusion_opt.space.layer_choice import AnyLayers, LayerChoice, LayerRanking, Layers, RankedLayers
from autodiffusion_opt.space.model_info import THIRDS, ModelInfo


class JointConfig(SpaceConfig):
    """``kind = "joint"``: times, and the layers run at each, under a budget of layer runs.

    Attributes:
        n_max: the budget: how many layers all steps together may run; with L layers, 4·L is four whole networks. Every
            call of a solver that makes two a step (Heun) counts. Absent: only ``max_flops`` is the budget.
        max_flops: the budget of FLOPs, in whole networks: 4.0 is what four steps with all layers cost. Beside
            ``n_max`` or instead of it.
        steps_min: the least number of steps.
        steps_max: the greatest. Lowered to what the budget allows when each step removes all it may; absent: that.
        layers: ``any`` subset at any step, for optimizers of candidates (evolution, random); or ``ranked``: only how
            many, and which follows a ranking measured once, for every optimizer.
        draw: how ``any`` draws layers at random: ``ranked``, the less a layer matters the more often it is removed;
            or ``uniform``, as in the paper. Either way every subset can come up.
        removable: indices of the layers that may be removed; absent: every one whose bypass keeps shapes.
        max_removed_share: the share of the network's layers that a step may remove at most.
    """

    kind: Literal["joint"] = "joint"
    n_max: int | None = Field(default=None, ge=1)
    max_flops: float | None = Field(default=None, gt=0)
    steps_min: int = Field(default=1, ge=1)
    steps_max: int | None = Field(default=None, ge=1)
    layers: Literal["any", "ranked"] = "any"
    draw: Literal["ranked", "uniform"] = "ranked"
    removable: tuple[int, ...] | None = None
    max_removed_share: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _steps_and_budget(self) -> JointConfig:
        if self.n_max is None and self.max_flops is None:
            raise ValueError("a joint space must have a budget: n_max, or max_flops, or both; got neither")
        if self.steps_max is not None and self.steps_max < self.steps_min:
            raise ValueError(f"steps_max must be at least steps_min, {self.steps_min}; got {self.steps_max}")
        return self

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
        self.model_copy(update={"layers": "any"}).space(replace(info, ranking=()))

    def space(self, info: ModelInfo) -> Joint:
        """The space for a model's numbers."""
        if info.layers < 1:
            raise UserError("a joint space needs the number of the model's layers; they were not counted")
        grid = self.time_grid(info)
        removable = self._removable(info)
        # 1e-9: a share of 0.29 of 100 layers is 28.999999999999996 in floats.
        max_removed = min(math.floor(self.max_removed_share * info.layers + 1e-9), len(removable))
        for key, steps in (("steps_min", self.steps_min), ("steps_max", self.steps_max or self.steps_min)):
            grid.check_count(key, steps)
        choice, scalars = self._layer_choice(info, removable), self.scalars(info)
        steps_max = self.steps_max or grid.points
        # With no bound of their number as many layers as all steps have.
        n_max = cost.layer_runs_of(info, [0] * steps_max) if self.n_max is None else self.n_max
        budget = Budget(n_max, self.max_flops)
        self._check_budget(info, budget, choice, max_removed)
        steps_max = budget.steps_within(info, choice, max_removed, steps_max)
        return Joint(info, grid, self.steps_min, steps_max, budget, max_removed, choice, scalars)

    def _check_budget(self, info: ModelInfo, budget: Budget, choice: LayerChoice, max_removed: int) -> None:
        """Raises UserError for a budget that does not allow the least number of steps, or that cannot be counted."""
        if self.max_flops is not None and not (info.flops and info.layer_flops):
            raise UserError("max_flops needs the FLOPs of the model's layers; they were not counted")
        if budget.steps_within(info, choice, max_removed, self.steps_min) == self.steps_min:
            return
        running = f"each running at least {info.layers - max_removed} of {info.layers} layers"
        least = cost.layer_runs_of(info, [max_removed] * self.steps_min)
        if budget.n_max < least:
            raise UserError(
                f"n_max must be at least {least}: steps_min = {self.steps_min} steps, {running}; got {self.n_max}"
            )
        share = sum(cost.calls(info.layout, self.steps_min)) * least_share(info, choice, max_removed)
        raise UserError(
            f"max_flops must be at least {math.ceil(100 * share) / 100:g}: steps_min = {self.steps_min} steps, "
            f"{running}; got {self.max_flops:g}"
        )

    def _removable(self, info: ModelInfo) -> Layers:
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

    def _layer_choice(self, info: ModelInfo, removable: Layers) -> LayerChoice:
        """Raises UserError where ``layers = "ranked"`` has no ranking of all removable layers."""
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
