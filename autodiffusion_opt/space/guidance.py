"""The guidance scale as part of a space: absent, fixed, or searched along a range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution

from autodiffusion_opt.errors import UserError

GUIDANCE_SCALE = "guidance_scale"
DECIMALS = 3
# Standard deviation of a mutation, as a share of the range.
MUTATION_SHARE = 0.1


@dataclass(frozen=True)
class Guidance:
    """Guidance scales from ``low`` to ``high``; equal: fixed; both None: the pipeline's own default."""

    low: float | None = None
    high: float | None = None

    @classmethod
    def from_setting(cls, setting: float | tuple[float, float] | None) -> Guidance:
        """From what a table says: nothing, a number, or a pair ``[low, high]``."""
        if isinstance(setting, tuple):
            return cls(float(setting[0]), float(setting[1]))
        return cls(setting, setting)

    @property
    def searched(self) -> bool:
        """Whether there is anything to choose."""
        return self.low != self.high

    def distributions(self) -> dict[str, BaseDistribution]:
        """A parameter where the scale is searched, else none."""
        if self.low is None or self.high is None or not self.searched:
            return {}
        return {GUIDANCE_SCALE: FloatDistribution(self.low, self.high)}

    def parameters(self, value: float | None) -> dict[str, float | None]:
        """A scale as a value of :meth:`distributions`."""
        return {GUIDANCE_SCALE: value} if self.searched else {}

    def settle(self, value: float | None) -> float | None:
        """The nearest allowed value with 3 decimals; the middle of the range for None."""
        if self.low is None or self.high is None:
            return None
        middle = (self.low + self.high) / 2
        return min(max(round(middle if value is None else value, DECIMALS), self.low), self.high)

    def random(self, rng: np.random.Generator) -> float | None:
        """A uniform draw; draws nothing from ``rng`` where there is nothing to choose."""
        if self.low is None or self.high is None or not self.searched:
            return self.low
        return self.settle(float(rng.uniform(self.low, self.high)))

    def mutate(self, value: float | None, rng: np.random.Generator, probability: float) -> float | None:
        """A normal step of a tenth of the range, with ``probability``."""
        if self.low is None or self.high is None or not self.searched or value is None:
            return self.settle(value)
        if rng.random() >= probability:
            return value
        return self.settle(value + float(rng.normal(0, MUTATION_SHARE * (self.high - self.low))))

    def crossover(self, first: float | None, second: float | None, rng: np.random.Generator) -> float | None:
        """From either of two parents, with equal chance."""
        if not self.searched:
            return self.settle(first)
        return self.settle(first if rng.random() < 0.5 else second)

    def check(self, value: float | None) -> None:
        """Raises UserError for a value that is not allowed."""
        if self.settle(value) != value:
            wanted = "absent" if self.low is None else f"from {self.low:g} to {self.high:g}"
            raise UserError(f"guidance_scale must be {wanted}, with at most {DECIMALS} decimals; got {value}")
