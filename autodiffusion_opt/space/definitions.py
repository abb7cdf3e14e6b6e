"""What a file under ``spaces/`` may say."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from autodiffusion_opt.config import Config, combine
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.base import Space
from autodiffusion_opt.space.time_grid import CONTINUOUS_RESOLUTION, TimeGrid
from autodiffusion_opt.space.model_info import ModelInfo
from autodiffusion_opt.space.guidance import Guidance
from autodiffusion_opt.space.joint import Joint, affordable
from autodiffusion_opt.space.layer_choice import AnyLayers, Layers, LayerChoice, RankedLayers
from autodiffusion_opt.space.time_steps import TimeSteps

Dtype = Literal["float32", "float16", "bfloat16"]


class PipelineConfig(Config):
    """The table ``[pipeline]``: which pipeline, and how it is run.

    Attributes:
        model: an embedded name, a folder, or a hub id.
        scheduler: a diffusers scheduler's class name or a short name; absent: the model's own.
        scheduler_settings: keys of that scheduler's configuration to change.
        revision: the hub commit, tag or branch.
        variant: the file variant, ``fp16`` say.
        dtype: the type of weights and activations.
        device: ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda``, ``cuda:1`` ...
        batch_size: images handed over and measured at once; changes no bit of them.
        micro_batch: images that the networks see at once, in every call; what the memory must hold.
        channels_last: the memory format of the denoiser.
        attention_slicing: less memory, more time.
        offload: parts of the pipeline wait in main memory (needs accelerate and a GPU).
        compile: ``torch.compile`` the denoiser.
        call: arguments of the pipeline's own call, ``height``, ``width``, ``eta`` ...
    """

    model: str = Field(min_length=1)
    scheduler: str | None = None
    scheduler_settings: dict[str, Any] = Field(default_factory=dict)
    revision: str | None = None
    variant: str | None = None
    dtype: Dtype = "float32"
    device: str = "auto"
    batch_size: int = Field(default=16, ge=1)
    micro_batch: int = Field(default=16, ge=1)
    channels_last: bool = False
    attention_slicing: bool = False
    offload: bool = False
    compile: bool = False
    call: dict[str, Any] = Field(default_factory=dict)


class SpaceConfig(Config):
    """What all kinds of space have: a pipeline, the grid of times, and the guidance scale."""

    kind: str
    pipeline: PipelineConfig
    times: Literal["integer", "continuous"] = "integer"
    guidance_scale: float | tuple[float, float] | None = None

    @field_validator("guidance_scale")
    @classmethod
    def _range_in_order(cls, value: float | tuple[float, float] | None) -> float | tuple[float, float] | None:
        if isinstance(value, tuple) and not 0 <= value[0] < value[1]:
            raise ValueError("must be a number or a range [low, high] with 0 <= low < high")
        return value

    @property
    def needs_layers(self) -> bool:
        """Whether the layers of the denoiser must be counted."""
        return False

    @property
    def needs_ranking(self) -> bool:
        """Whether the layers must be ranked by what their removal changes."""
        return False

    @abstractmethod
    def bind(self, info: ModelInfo) -> Space:
        """The space over a model's numbers. Raises UserError where the model does not allow it."""

    def grid(self, info: ModelInfo) -> TimeGrid:
        """The grid of times. Raises UserError for continuous times on a scheduler that takes integers only."""
        if self.times == "integer":
            return TimeGrid(float(-(-info.lowest // 1)), float(info.highest // 1))
        if not info.continuous:
            raise UserError('times = "continuous": this scheduler takes integer times only; use times = "integer"')
        return TimeGrid(info.lowest, info.highest, CONTINUOUS_RESOLUTION)


class TimeStepsConfig(SpaceConfig):
    """``kind = "time-steps"``: distinct times, the whole network at each.

    Attributes:
        steps: how many.
        nfe: instead of ``steps``: how many calls of the denoiser there may be, so that solvers which call it twice a
            step (Heun) are compared at equal cost.
    """

    kind: Literal["time-steps"] = "time-steps"
    steps: int | None = Field(default=None, ge=1)
    nfe: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> TimeStepsConfig:
        if (self.steps is None) == (self.nfe is None):
            raise ValueError("a time-steps space must have steps, or nfe instead; " + self._given())
        return self

    def _given(self) -> str:
        return "steps is missing" if self.steps is None else f"got both, steps = {self.steps} and nfe = {self.nfe}"

    def bind(self, info: ModelInfo) -> TimeSteps:
        """The space over a model's numbers."""
        grid = self.grid(info)
        steps = self.steps if self.nfe is None else info.steps_of_nfe(self.nfe)
        if steps is None or steps < 1:
            raise UserError(f"nfe = {self.nfe} does not allow one step of this scheduler; give more")
        check_steps("steps", steps, grid)
        return TimeSteps(info, steps, grid, Guidance.of(self.guidance_scale))


class JointConfig(SpaceConfig):
    """``kind = "joint"``: times, and the layers run at each, under a budget of layer runs.

    Attributes:
        n_max: the budget: how many layers all steps together may run; with L layers, 4·L is four whole networks. All
            calls of a solver that makes two a step (Heun) count.
        steps_min: the least number of steps.
        steps_max: the greatest. Lowered to what ``n_max`` allows when each step removes all it may; absent: that.
        layers: ``any`` subset at any step, for optimizers of candidates (evolution, random); or ``ranked``: only how
            many, and which follows a ranking measured once, for every optimizer.
        draw: how ``any`` draws layers at random: ``ranked``, the less a layer matters the more often it is removed;
            or ``uniform``, as in the paper. Either way every subset can come up.
        removable: indices of the layers that may be removed; absent: every one whose bypass keeps shapes.
        max_removed: the share of the network's layers that one step may remove at most.
    """

    kind: Literal["joint"] = "joint"
    n_max: int = Field(ge=1)
    steps_min: int = Field(default=1, ge=1)
    steps_max: int | None = Field(default=None, ge=1)
    layers: Literal["any", "ranked"] = "any"
    draw: Literal["ranked", "uniform"] = "ranked"
    removable: tuple[int, ...] | None = None
    max_removed: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _steps_in_order(self) -> JointConfig:
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

    def bind(self, info: ModelInfo) -> Joint:
        """The space over a model's numbers."""
        grid = self.grid(info)
        removable = self._removable(info)
        most = min(math.floor(self.max_removed * info.layers + 1e-9), len(removable))
        self._check(info, grid, most)
        steps_max = grid.points if self.steps_max is None else self.steps_max
        n_max = self._per_call(info)
        steps_max = affordable(info.layers, n_max, most, steps_max)
        sets, guidance = self._sets(info, removable), Guidance.of(self.guidance_scale)
        return Joint(info, grid, self.steps_min, steps_max, n_max, most, sets, guidance)

    def _per_call(self, info: ModelInfo) -> int:
        """The budget for one call a step, so that ``n_max`` holds for a solver that makes more."""
        return (self.n_max - max(info.extra_calls, 0) * info.layers) // info.calls_per_step

    def _removable(self, info: ModelInfo) -> Layers:
        """The layers that may be removed, ascending. Raises UserError for one that cannot."""
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

    def _check(self, info: ModelInfo, grid: TimeGrid, most: int) -> None:
        """Steps on the grid, and a budget that allows the least number of them."""
        for key, steps in (("steps_min", self.steps_min), ("steps_max", self.steps_max or self.steps_min)):
            check_steps(key, steps, grid)
        least = self.steps_min * (info.layers - most)
        if self._per_call(info) < least:
            least = least * info.calls_per_step + max(info.extra_calls, 0) * info.layers
            raise UserError(
                f"n_max must be at least {least}: steps_min = {self.steps_min} steps, each running at least "
                f"{info.layers - most} of {info.layers} layers; got {self.n_max}"
            )

    def _sets(self, info: ModelInfo, removable: Layers) -> LayerChoice:
        """Which layers go. Raises UserError where ``ranked`` finds no ranking of all of them."""
        wanted = set(removable)
        ranking = tuple(tuple(layer for layer in third if layer in wanted) for third in info.ranking)
        complete = len(ranking) == 3 and all(len(third) == len(wanted) for third in ranking)
        if self.layers == "any":
            drawn = ranking if complete and self.needs_ranking else ()
            return AnyLayers(removable, drawn, info.lowest, info.highest)
        if not complete:
            raise UserError(
                'layers = "ranked" needs a ranking of the removable layers for each third of the time range; '
                f"got {len(info.ranking)} rankings: measure it with rank_layers"
            )
        return RankedLayers(ranking, info.lowest, info.highest)


def check_steps(key: str, steps: int, grid: TimeGrid) -> None:
    """Raises UserError for more steps than there are times."""
    if steps > grid.points:
        raise UserError(f"{key} must be at most {grid.points}, the number of the model's time steps; got {steps}")


KINDS: dict[str, type[SpaceConfig]] = {"time-steps": TimeStepsConfig, "joint": JointConfig}
