"""What a file under ``spaces/`` may say."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

from pydantic import Field, field_validator

from autodiffusion_opt.definition import Definition
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.base import Space
from autodiffusion_opt.space.clock import CONTINUOUS_RESOLUTION, Clock
from autodiffusion_opt.space.facts import ModelFacts
from autodiffusion_opt.space.guidance import Guidance
from autodiffusion_opt.space.time_steps import TimeSteps

Dtype = Literal["float32", "float16", "bfloat16"]


class PipelineDefinition(Definition):
    """The table ``[pipeline]``: which pipeline, and how it is run.

    Attributes:
        model: an embedded name, a folder, or a hub id.
        scheduler: a diffusers scheduler's class name or a short name; absent: the model's own.
        scheduler_settings: keys of that scheduler's configuration to change.
        revision: the hub commit, tag or branch.
        variant: the file variant, ``fp16`` say.
        dtype: the type of weights and activations.
        device: ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda``, ``cuda:1`` ...
        batch_size: images generated at once.
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
    batch_size: int = Field(default=50, ge=1)
    channels_last: bool = False
    attention_slicing: bool = False
    offload: bool = False
    compile: bool = False
    call: dict[str, Any] = Field(default_factory=dict)


class SpaceDefinition(Definition):
    """What all kinds of space have: a pipeline, the grid of times, and the guidance scale."""

    kind: str
    pipeline: PipelineDefinition
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
    def bind(self, facts: ModelFacts) -> Space:
        """The space over a model's numbers. Raises UserError where the model does not allow it."""

    def clock(self, facts: ModelFacts) -> Clock:
        """The grid of times. Raises UserError for continuous times on a scheduler that takes integers only."""
        if self.times == "integer":
            return Clock(float(-(-facts.lowest // 1)), float(facts.highest // 1))
        if not facts.continuous:
            raise UserError('times = "continuous": this scheduler takes integer times only; use times = "integer"')
        return Clock(facts.lowest, facts.highest, CONTINUOUS_RESOLUTION)


class TimeStepsDefinition(SpaceDefinition):
    """``kind = "time-steps"``: ``steps`` distinct times, the whole network at each."""

    kind: Literal["time-steps"] = "time-steps"
    steps: int = Field(ge=1)

    def bind(self, facts: ModelFacts) -> TimeSteps:
        """The space over a model's numbers."""
        clock = self.clock(facts)
        check_steps("steps", self.steps, clock)
        return TimeSteps(facts, self.steps, clock, Guidance.of(self.guidance_scale))


def check_steps(key: str, steps: int, clock: Clock) -> None:
    """Raises UserError for more steps than there are times."""
    if steps > clock.ticks:
        raise UserError(f"{key} must be at most {clock.ticks}, the number of the model's time steps; got {steps}")


KINDS: dict[str, type[SpaceDefinition]] = {"time-steps": TimeStepsDefinition}
