"""What every space can do, what evolution needs beside it, and the keys that every kind of space has.

A space is a frozen value; it knows the model's numbers and nothing of torch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from optuna.distributions import BaseDistribution
from pydantic import field_validator

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.config import Config
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.model_info import ModelInfo
from autodiffusion_opt.space.scalars import LEAST_GAP, Scalars, Setting
from autodiffusion_opt.space.time_grid import CONTINUOUS_RESOLUTION, TimeGrid


@runtime_checkable
class Space(Protocol):
    """What may be chosen: turns a candidate into named parameters and back.

    Every point of the box decodes to a valid candidate. ``decode(encode(c)) == c`` for every candidate in the space
    where :attr:`fully_parametric` is true.
    """

    @property
    def fully_parametric(self) -> bool:
        """Whether the parameters determine the candidate, so that any optimizer of parameters can search the space."""
        ...

    def distributions(self) -> dict[str, BaseDistribution]:
        """The box: Optuna's distribution of every parameter. It is always the same."""
        ...

    def decode(self, parameters: Mapping[str, Any]) -> Candidate:
        """The candidate of a point of the box. Deterministic and never an error; what does not fit is repaired."""
        ...

    def encode(self, candidate: Candidate) -> dict[str, Any]:
        """A point of the box that decodes to ``candidate``. Raises UserError if it is not in this space."""
        ...

    def check(self, candidate: Candidate) -> None:
        """Raises UserError, saying why, for a candidate that is not in this space."""
        ...

    def nearest(self, candidate: Candidate) -> Candidate:
        """A candidate in this space that is as near to any candidate as can be; itself where it is in this space."""
        ...

    def baselines(self) -> dict[str, Candidate]:
        """The usual choices at the same budget, by name; the uniform one, ``leading``, always and first."""
        ...


@runtime_checkable
class Compared(Space, Protocol):
    """A space whose studies are compared with more than candidates in it."""

    def presets(self) -> dict[str, Candidate]:
        """What others would do at the same budget, by name; need not be in the space. The first has full steps alone,
        as many as the pipeline's own schedule is to have."""
        ...


@runtime_checkable
class Evolvable(Space, Protocol):
    """A space that evolution and random search can walk: they choose whole candidates, not parameters.

    All chance comes from ``rng``; every candidate made is in the space.
    """

    def random(self, rng: np.random.Generator) -> Candidate:
        """A candidate drawn at random."""
        ...

    def mutate(self, candidate: Candidate, rng: np.random.Generator, probability: float) -> Candidate:
        """``candidate`` with each of its steps changed with ``probability``."""
        ...

    def crossover(self, first: Candidate, second: Candidate, rng: np.random.Generator) -> Candidate:
        """A child that takes each step from one of two parents."""
        ...

    def with_layer_share(self, share: float) -> Evolvable:
        """The same space where only ``share`` (0..1) of the layers that a step may remove may be removed.

        A space in which no layer may be removed returns itself.
        """
        ...


@runtime_checkable
class Walkable(Space, Protocol):
    """A space whose candidates have coordinates, so that a search can go from one candidate to a near one.

    A time's coordinate is λ = ln(α/σ) (:meth:`ModelInfo.log_snr`), in which steps of one length matter about equally
    at all noise levels; a quarter of the range of any other number is one unit.
    """

    def coordinates(self, candidate: Candidate) -> tuple[float, ...]:
        """The coordinates of a candidate in this space: of its times, from noise to image, then of other numbers."""
        ...

    def moved(self, candidate: Candidate, coordinates: Sequence[float]) -> Candidate:
        """The candidate at other coordinates: layers go with their steps. What does not fit is repaired."""
        ...


# A step, counted from 0 at the noise, and a layer that is removed there where it runs, or run where it is removed.
Toggle = tuple[int, int]


@runtime_checkable
class Layered(Walkable, Protocol):
    """A walkable space whose candidates have neighbours to which no coordinate leads: other layers, other numbers of
    steps (the discrete neighbours of Audet and Dennis, 2001, section 2)."""

    def toggles(self, candidate: Candidate) -> list[Toggle]:
        """Every layer of every step whose removal or return makes a set of layers that the space allows at the step.

        The removals come first, the least important layer first; then the returns, the most important first. The
        budget is not looked at.
        """
        ...

    def toggled(self, candidate: Candidate, toggles: Sequence[Toggle]) -> Candidate | None:
        """The candidate with these layers removed or returned; None where it is not in the space."""
        ...

    def restructured(self, candidate: Candidate) -> dict[str, Candidate]:
        """The candidate with a step more or a step fewer, by what was done, the most promising first.

        A step removes what the nearest step of the candidate removes. Where the budget is exceeded the least important
        layers go as well.
        """
        ...


@runtime_checkable
class Exchanging(Walkable, Protocol):
    """A walkable space whose candidates have neighbours to which no step of one coordinate leads: of about the same
    cost, since of two things there is more of the one and less of the other, or beyond what changes nothing."""

    def exchanges(self, candidate: Candidate) -> dict[str, Candidate]:
        """The neighbours, by what was done."""
        ...


@runtime_checkable
class Caching(Space, Protocol):
    """A space in which steps may be partial ones, beside times that may be known already."""

    def partial_steps_more(self, candidate: Candidate) -> dict[str, Candidate]:
        """The candidate with one partial step more, by what was done, the most promising first; none where the budget
        allows no more."""
        ...


def numbered_beyond(parameters: Iterable[str], count: int) -> set[str]:
    """The names of a letter and a number, as ``t7``, whose number is greater than ``count``."""
    return {name for name in parameters if name[1:].isdecimal() and int(name[1:]) > count}


class SpaceConfig(Config):
    """The keys that every kind of space has.

    Attributes:
        kind: the name of the kind in ``SPACES``.
        times: ``integer`` times, or ``continuous`` ones, a hundredth apart.
        guidance_scale: a number: fixed; ``[low, high]``: searched; absent: the pipeline's own default.
        end_time: where the last step stops: a number: fixed; ``[low, high]``: searched; absent: as the scheduler ends.
    """

    kind: str
    times: Literal["integer", "continuous"] = "integer"
    guidance_scale: Setting = None
    end_time: Setting = None

    @field_validator("guidance_scale", "end_time")
    @classmethod
    def _range_in_order(cls, value: Setting) -> Setting:
        if isinstance(value, tuple) and not 0 <= value[0] < value[1]:
            raise ValueError("must be a number or a range [low, high] with 0 <= low < high")
        return value

    @field_validator("end_time")
    @classmethod
    def _end_not_negative(cls, value: Setting) -> Setting:
        if isinstance(value, float) and value < 0:
            raise ValueError(f"must be 0 or more; got {value:g}")
        return value

    @property
    def needs_layers(self) -> bool:
        """Whether the denoiser's layers must be counted."""
        return False

    @property
    def needs_branches(self) -> bool:
        """Whether the denoiser must have branches for partial steps, whose cost is counted."""
        return False

    @property
    def needs_ranking(self) -> bool:
        """Whether the layers must be ranked by how much their removal changes the denoiser's output."""
        return False

    @classmethod
    def ignored(cls, parameters: Mapping[str, Any]) -> set[str]:
        """The names of the parameters that ``decode`` ignores at this point of the box; a kind says which they are.

        They are stored all the same, since many optimizers need a box of fixed length. It needs no model.
        """
        return set()

    @abstractmethod
    def space(self, info: ModelInfo) -> Space:
        """The space for a model's numbers. Raises UserError where the model does not allow it."""

    def check_model(self, info: ModelInfo) -> None:
        """Raises UserError where a model of these numbers does not allow the space, however its layers are ranked.

        It needs no ranking, which takes long to measure, and is asked before.
        """
        if not self.needs_ranking:
            self.space(info)

    def scalars(self, info: ModelInfo) -> Scalars:
        """The numbers beside the steps. Raises UserError for an end time that the model cannot stop at."""
        scalars = Scalars.from_settings(self.guidance_scale, self.end_time)
        end = scalars.end_time.high
        if end is not None and not info.stops_early:
            raise UserError("end_time: this scheduler's models are distilled to end in the image: leave end_time out")
        if end is not None and end >= info.highest:
            raise UserError(f"end_time must be below the model's highest time, {info.highest:g}; got {end:g}")
        return scalars

    def time_grid(self, info: ModelInfo) -> TimeGrid:
        """The grid of times, above the least end. Raises UserError for continuous times on a scheduler of integers."""
        end = self.scalars(info).end_time.low
        low = info.lowest if end is None else max(info.lowest, end + LEAST_GAP)
        if self.times == "integer":
            return TimeGrid(float(math.ceil(low)), float(math.floor(info.highest)))
        if not info.continuous:
            raise UserError('times = "continuous": this scheduler takes integer times only; use times = "integer"')
        return TimeGrid(low, info.highest, CONTINUOUS_RESOLUTION)
