"""Which values an objective optimises, which it bounds, which it only reports. Imports neither torch nor diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from autodiffusion_opt.space import cost

Direction = Literal["minimize", "maximize"]
# Wall time of sampling an image, which the machine decides; the other costs follow from the candidate, but for FLOPs
# with an engine's cache.
SECONDS, FLOPS = "seconds", "flops"
# The names of costs: all are the better the smaller, and bounds on them may be shares of the pipeline's own.
COSTS = (*cost.COSTS, SECONDS)


@dataclass(frozen=True)
class Bound:
    """What a value must keep to.

    Attributes:
        name: of the value.
        limit: it must not pass.
        side: whether the value must be at most or at least that.
        is_share: whether the limit is a share of what the pipeline's own schedule costs, not yet multiplied with it.
    """

    name: str
    limit: float
    side: Literal["at_most", "at_least"]
    is_share: bool = False

    def __str__(self) -> str:
        """``flops at most 0.5 of own``."""
        return f"{self.key} {self.limit:g}{' of own' if self.is_share else ''}"

    @property
    def key(self) -> str:
        """What tells it from other bounds: ``flops at most``."""
        return f"{self.name} {self.side.replace('_', ' ')}"

    def of_own(self, own: float) -> Bound:
        """The same as a number, where it is a share of what ``own`` costs."""
        return replace(self, limit=self.limit * own, is_share=False) if self.is_share else self

    def excess(self, values: Mapping[str, float]) -> float:
        """By how much the value is beyond the limit, as a share of it; 0 or less where it keeps to it."""
        beyond = values[self.name] - self.limit
        return (beyond if self.side == "at_most" else -beyond) / (abs(self.limit) or 1.0)


@dataclass(frozen=True)
class Goals:
    """What becomes of an objective's values.

    Attributes:
        directions: of those that are optimised, by name.
        bounds: what values must keep to.
        reported: those that are only reported.
    """

    directions: Mapping[str, Direction]
    bounds: tuple[Bound, ...] = ()
    reported: tuple[str, ...] = ()

    def definition(self) -> dict[str, Any]:
        """What a resumed study compares, as JSON values; empty for a single value without bounds."""
        if len(self.directions) == 1 and not self.bounds:
            return {}
        return {"directions": dict(self.directions), "bounds": [str(bound) for bound in self.bounds]}

    @property
    def names(self) -> tuple[str, ...]:
        """Of all values, those that are optimised first, each once."""
        return tuple(dict.fromkeys([*self.directions, *(bound.name for bound in self.bounds), *self.reported]))


def goals_of(
    name: str,
    direction: Direction,
    minimise: Sequence[str],
    maximise: Sequence[str],
    at_most: Mapping[str, float],
    at_least: Mapping[str, float],
) -> Goals:
    """The goals of a metric: several values, or the one that it names."""
    several: dict[str, Direction] = dict.fromkeys(minimise, "minimize")
    several |= dict.fromkeys(maximise, "maximize")
    return Goals(several or {name: direction}, bounds_of(at_most, at_least))


def bounds_of(at_most: Mapping[str, float], at_least: Mapping[str, float]) -> tuple[Bound, ...]:
    """The bounds of two tables. One of at most 1 on a cost is a share of what the pipeline's own schedule costs."""
    return (
        *(Bound(name, limit, "at_most", is_share=name in COSTS and limit <= 1) for name, limit in at_most.items()),
        *(Bound(name, limit, "at_least") for name, limit in at_least.items()),
    )
