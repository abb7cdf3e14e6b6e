"""The table of times and cached steps (:mod:`autodiffusion_opt.space.cached_steps`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from autodiffusion_opt.candidate import MOST_STEPS, Candidate, Step
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import cost
from autodiffusion_opt.space.base import numbered_beyond
from autodiffusion_opt.space.cached_steps import COUNT, CachedSteps
from autodiffusion_opt.space.caching import CostBudget, offered_branches
from autodiffusion_opt.space.layer_choice import AnyLayers, LayerChoice
from autodiffusion_opt.space.layers_config import LayersConfig
from autodiffusion_opt.space.model_info import ModelInfo


class CachedStepsConfig(LayersConfig):
    """``kind = "cached-steps"``: times, which of the steps are partial ones, and the layers run at the full ones, under
    a budget of FLOPs.

    Attributes:
        max_flops: the budget, in whole networks: 8.2 is eight full steps and two partial ones at a tenth.
        steps_min: the least number of steps.
        steps_max: the greatest, lowered to what the budget allows with one full step; absent: that.
        branches: which branches partial steps may run at; absent: those that cost at most 0.6 of a full step.
        layers: ``all``: every full step runs the whole network; ``any`` subset may be left out at a full step, for
            optimizers of candidates (local, evolution, random); or ``ranked``: only how many, and which follows a
            ranking measured once, for every optimizer.
    """

    kind: Literal["cached-steps"] = "cached-steps"
    max_flops: float = Field(gt=0)
    steps_min: int = Field(default=1, ge=1)
    steps_max: int | None = Field(default=None, ge=1)
    branches: tuple[int, ...] | None = Field(default=None, min_length=1)
    layers: Literal["all", "any", "ranked"] = "all"

    @model_validator(mode="after")
    def _steps_in_order(self) -> CachedStepsConfig:
        if self.steps_max is not None and self.steps_max < self.steps_min:
            raise ValueError(f"steps_max must be at least steps_min, {self.steps_min}; got {self.steps_max}")
        return self

    @property
    def needs_ranking(self) -> bool:
        """Unless no layer may be left out, or layers are drawn uniformly."""
        return self.layers != "all" and super().needs_ranking

    @property
    def needs_branches(self) -> bool:
        """True."""
        return True

    @classmethod
    def ignored(cls, parameters: Mapping[str, Any]) -> set[str]:
        """What is beyond the number of steps, and the numbers of layers of partial steps.

        The step at the highest time is a full one whatever is chosen; times within 1 of it may be rounded to it.
        """
        count = parameters[COUNT]
        numbers = range(1, count + 1)
        highest = max(parameters[f"t{number}"] for number in numbers)
        partial = {f"r{n}" for n in numbers if parameters[f"p{n}"] > 0 and parameters[f"t{n}"] < highest - 1}
        return numbered_beyond(parameters, count) | partial & {*parameters}

    def space(self, info: ModelInfo) -> CachedSteps:
        """The space for a model's numbers."""
        branches, grid = offered_branches(info, self.branches), self.time_grid(info)
        grid.check_count("steps_min", self.steps_min)
        budget = CostBudget(self.max_flops)

        def cheapest(count: int) -> Candidate:
            steps = [Step(time, (), branches[0]) for time in range(count - 1)]
            return Candidate((*steps, Step(float(count))))

        if not budget.is_kept(info, cheapest(self.steps_min)):
            least = cost.networks(info, cheapest(self.steps_min))
            raise UserError(
                f"max_flops must be at least {least:.3f} whole networks, what steps_min = {self.steps_min} steps cost "
                f"with one full step; got {self.max_flops:g}"
            )
        most = self.steps_min
        while most < min(self.steps_max or MOST_STEPS, grid.points) and budget.is_kept(info, cheapest(most + 1)):
            most += 1
        choice: LayerChoice = AnyLayers(())
        max_removed = 0
        if self.layers != "all":
            choice, max_removed = self.layer_choice(info), self.max_removed(info)
        return CachedSteps(info, grid, self.steps_min, most, branches, budget, self.scalars(info), choice, max_removed)
