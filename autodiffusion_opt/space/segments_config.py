"""The table of the segments space (:mod:`autodiffusion_opt.space.segments`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from autodiffusion_opt.config import combine
from autodiffusion_opt.errors import UserError, unknown_text
from autodiffusion_opt.space import cost
from autodiffusion_opt.space.base import SpaceConfig, numbered_beyond
from autodiffusion_opt.space.baselines import named_times
from autodiffusion_opt.space.caching import CostBudget, offered_branches
from autodiffusion_opt.space.model_info import ModelInfo
from autodiffusion_opt.space.segments import COUNT, Segments


class SegmentsConfig(SpaceConfig):
    """``kind = "segments"``: Flexiffusion's space: a schedule of many steps in segments, each of which has a full step,
    then partial steps that use its features, then none.

    Attributes:
        steps: T, the number of steps of the schedule that is cut into segments.
        spacing: which schedule: the name of a baseline, ``leading``, ``trailing``, ``log-snr`` ...
        schedule: its times, instead of ``steps`` and ``spacing``.
        segments: N, how many segments of equal length; ``[low, high]``: searched.
        interval_min: the least number of steps of a segment that are run; 0: a segment may be left out.
        branches: which branches partial steps may run at; absent: those that cost at most 0.6 of a full step.
        uniform: whether all segments run as many steps, at one branch: the paper's uniform grid.
        max_flops: the budget of FLOPs, in whole networks.
        nfe: the budget of calls of the denoiser, full and partial ones.
    """

    kind: Literal["segments"] = "segments"
    steps: int | None = Field(default=None, ge=1)
    spacing: str = "leading"
    schedule: tuple[float, ...] | None = Field(default=None, min_length=1)
    segments: int | tuple[int, int]
    interval_min: int = Field(default=1, ge=0)
    branches: tuple[int, ...] | None = Field(default=None, min_length=1)
    uniform: bool = False
    max_flops: float | None = Field(default=None, gt=0)
    nfe: int | None = Field(default=None, ge=1)

    @field_validator("segments")
    @classmethod
    def _one_or_more(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        low, high = value if isinstance(value, tuple) else (value, value)
        if not 1 <= low <= high:
            raise ValueError("must be a number of 1 or more, or a range [low, high] with 1 <= low <= high")
        return value

    @model_validator(mode="after")
    def _steps_or_schedule(self) -> SegmentsConfig:
        if (self.steps is None) == (self.schedule is None):
            given = "got neither" if self.steps is None else "got both"
            raise ValueError(f"a segments space must have steps, or a schedule instead; {given}")
        if self.schedule is not None and len(set(self.schedule)) < len(self.schedule):
            raise ValueError("schedule must be distinct times")
        return self

    @property
    def needs_layers(self) -> bool:
        """True: the layers of partial steps are counted."""
        return True

    @property
    def needs_branches(self) -> bool:
        """True."""
        return True

    @classmethod
    def ignored(cls, parameters: Mapping[str, Any]) -> set[str]:
        """What is beyond the number of segments, and branches of segments that have no partial step."""
        beyond = numbered_beyond(parameters, parameters[COUNT]) if COUNT in parameters else set()
        intervals = {name[1:]: value for name, value in parameters.items() if name[:1] == "i"}
        return beyond | {f"b{number}" for number, interval in intervals.items() if interval <= 1} & {*parameters}

    def space(self, info: ModelInfo) -> Segments:
        """The space for a model's numbers."""
        grid = self.time_grid(info)
        low, high = self.segments if isinstance(self.segments, tuple) else (self.segments, self.segments)
        steps = len(self.schedule) if self.schedule is not None else self.steps
        assert steps is not None  # _steps_or_schedule
        branches, errors = offered_branches(info, self.branches), []
        if high > steps:
            errors.append(UserError(f"segments must be at most steps, {steps}; got {high}"))
        if self.interval_min * high > steps:
            most = steps // high
            errors.append(UserError(f"interval_min must be at most steps / segments, {most}; got {self.interval_min}"))
        schedules = {} if self.schedule is not None or steps > grid.points else named_times(info, steps)
        if self.schedule is None and steps > grid.points:
            errors.append(UserError(f"steps must be at most {grid.points}, the model's time steps; got {steps}"))
        elif self.schedule is None and self.spacing not in schedules:
            errors.append(UserError(unknown_text("spacing", self.spacing, list(schedules))))
        combine(errors)
        times = grid.settle(schedules[self.spacing] if self.schedule is None else self.schedule)
        budget = CostBudget(self.max_flops, self.nfe)
        scalars = self.scalars(info)
        space = Segments(info, times, (low, high), self.interval_min, branches, self.uniform, budget, scalars)
        self._check_budget(info, space)
        return space

    def _check_budget(self, info: ModelInfo, space: Segments) -> None:
        """Raises UserError for a budget that the least of the space is beyond."""
        least = space.least(space.segments[0])
        if space.budget.is_kept(info, least):
            return
        fits = [count for count in range(1, space.segments[0]) if space.budget.is_kept(info, space.least(count))]
        networks, calls = cost.networks(info, least), cost.nfe(info, least)
        what = f"{space.segments[0]} segments cost at least {networks:.3g} whole networks and {calls} calls"
        advice = f"at most {fits[-1]} segments fit" if fits else "not even a single segment fits"
        if self.nfe is not None and calls > self.nfe:
            raise UserError(f"nfe: {what}; got nfe = {self.nfe}: {advice}")
        raise UserError(
            f"max_flops: {what}; got max_flops = {self.max_flops:g}: {advice}, or {math.ceil(100 * networks) / 100:g}"
        )
