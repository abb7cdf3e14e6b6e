"""The table of the settings of an engine's cache (:mod:`autodiffusion_opt.space.engine_settings`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from autodiffusion_opt.config import combine
from autodiffusion_opt.errors import UserError, unknown_text
from autodiffusion_opt.space.base import SpaceConfig, numbered_beyond
from autodiffusion_opt.space.baselines import named_times
from autodiffusion_opt.space.engine_knobs import KNOBS
from autodiffusion_opt.space.engine_settings import COUNT, EngineSettings
from autodiffusion_opt.space.model_info import ModelInfo


class EngineConfig(SpaceConfig):
    """``kind = "engine"``: the settings of an engine's cache, and the times or how many there are.

    What a cache that looks at the data leaves out is known when it has run, so this space has no budget: bound the
    measured cost in the objective, ``at_most = {flops = 0.5}`` or ``{seconds = 0.2}``.

    Attributes:
        engine: which cache: ``first-block-cache``, ``mag-cache``, ``taylorseer-cache``, ``cache-dit`` or
            ``cache-dit-mask``.
        steps: how many; ``[low, high]``: searched.
        spacing: the name of a baseline (``leading``, ``trailing`` ...), whose times every candidate has; absent: the
            times are searched.
        settings: name of a setting -> a number: fixed; ``[low, high]``: searched between; absent: between the usual
            ends.
    """

    kind: Literal["engine"] = "engine"
    engine: str
    steps: int | tuple[int, int]
    spacing: str | None = None
    settings: dict[str, float | tuple[float, float]] = Field(default_factory=dict)

    @field_validator("engine")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in KNOBS:
            raise ValueError(unknown_text("engine", value, KNOBS))
        return value

    @field_validator("steps")
    @classmethod
    def _two_or_more(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        low, high = value if isinstance(value, tuple) else (value, value)
        if not 2 <= low <= high:
            raise ValueError("must be a number of 2 or more, or a range [low, high] with 2 <= low <= high")
        return value

    @model_validator(mode="after")
    def _settings_of_the_engine(self) -> EngineConfig:
        knobs = KNOBS[self.engine]
        names = [knob.name for knob in knobs.numbers]
        unknown = [
            unknown_text(f"setting of {self.engine}", name, names) for name in self.settings if name not in names
        ]
        if unknown:
            raise ValueError("; ".join(unknown))
        try:
            knobs.limited(self.settings)
        except UserError as error:
            raise ValueError(f"settings: {error}") from None
        return self

    @property
    def needs_layers(self) -> bool:
        """True: what is left out is counted in whole networks."""
        return True

    @classmethod
    def ignored(cls, parameters: Mapping[str, Any]) -> set[str]:
        """Times, and whether a step is skipped, beyond the number of steps."""
        return numbered_beyond(parameters, parameters[COUNT]) if COUNT in parameters else set()

    def space(self, info: ModelInfo) -> EngineSettings:
        """The space for a model's numbers."""
        grid, errors = self.time_grid(info), []
        low, high = self.steps if isinstance(self.steps, tuple) else (self.steps, self.steps)
        if info.layout != "once":
            errors.append(
                UserError("engine: a cache counts calls as steps, and this solver calls the denoiser twice a step")
            )
        if high > grid.points:
            errors.append(UserError(f"steps must be at most {grid.points}, the model's time steps; got {high}"))
        elif self.spacing is not None and self.spacing not in (named := named_times(info, low)):
            errors.append(UserError(unknown_text("spacing", self.spacing, list(named))))
        combine(errors)
        knobs = KNOBS[self.engine].limited(self.settings)
        return EngineSettings(info, knobs, (low, high), self.spacing, grid, self.scalars(info))
