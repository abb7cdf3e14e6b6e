"""The table of the joint space: what of a model it may choose from (:mod:`autodiffusion_opt.space.joint`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import cost
from autodiffusion_opt.space.base import numbered_beyond
from autodiffusion_opt.space.budget import Budget, least_share
from autodiffusion_opt.space.joint import STEPS, Joint
from autodiffusion_opt.space.layer_choice import LayerChoice
from autodiffusion_opt.space.layers_config import LayersConfig
from autodiffusion_opt.space.model_info import ModelInfo


class JointConfig(LayersConfig):
    """``kind = "joint"``: times, and the layers run at each, under a budget of layer runs.

    Attributes:
        n_max: the budget: how many layers all steps together may run; with L layers, 4·L is four whole networks. Every
            call of a solver that makes two a step (Heun) counts. Absent: only ``max_flops`` is the budget.
        max_flops: the budget of FLOPs, in whole networks: 4.0 is what four steps with all layers cost. Beside
            ``n_max`` or instead of it.
        steps_min: the least number of steps.
        steps_max: the greatest. Lowered to what the budget allows when each step removes all it may; absent: that.
    """

    kind: Literal["joint"] = "joint"
    n_max: int | None = Field(default=None, ge=1)
    max_flops: float | None = Field(default=None, gt=0)
    steps_min: int = Field(default=1, ge=1)
    steps_max: int | None = Field(default=None, ge=1)
    layers: Literal["any", "ranked"] = "any"

    @model_validator(mode="after")
    def _steps_and_budget(self) -> JointConfig:
        if self.n_max is None and self.max_flops is None:
            raise ValueError("a joint space must have a budget: n_max, or max_flops, or both; got neither")
        if self.steps_max is not None and self.steps_max < self.steps_min:
            raise ValueError(f"steps_max must be at least steps_min, {self.steps_min}; got {self.steps_max}")
        return self

    @classmethod
    def ignored(cls, parameters: Mapping[str, Any]) -> set[str]:
        """Times and numbers of layers beyond the number of steps."""
        return numbered_beyond(parameters, parameters[STEPS])

    def space(self, info: ModelInfo) -> Joint:
        """The space for a model's numbers."""
        if info.layers < 1:
            raise UserError("a joint space needs the number of the model's layers; they were not counted")
        grid = self.time_grid(info)
        max_removed = self.max_removed(info)
        for key, steps in (("steps_min", self.steps_min), ("steps_max", self.steps_max or self.steps_min)):
            grid.check_count(key, steps)
        choice, scalars = self.layer_choice(info), self.scalars(info)
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
