"""The grid of times that a space may use, and the arithmetic that keeps a sequence on it distinct and ordered."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from autodiffusion_opt.candidate import TIME_DECIMALS
from autodiffusion_opt.errors import UserError

CONTINUOUS_RESOLUTION = 0.01


@dataclass(frozen=True)
class TimeGrid:
    """Times ``low, low + resolution, ..., high``; counted in points 0 .. ``points - 1``.

    Attributes:
        low: the lowest time (nearest the image).
        high: the highest time (nearest the noise).
        resolution: 1 for integer times.
    """

    low: float
    high: float
    resolution: float = 1.0

    @property
    def points(self) -> int:
        """How many different times there are; none lies above ``high``."""
        # 1e-6 of a point: what 0.01 as a float may lack of a whole number of points.
        return math.floor((self.high - self.low) / self.resolution + 1e-6) + 1

    def time(self, point: int) -> float:
        """The time of a point."""
        return round(self.low + point * self.resolution, TIME_DECIMALS)

    def point(self, time: float) -> int:
        """The point nearest to a time; times outside the range give the nearest end."""
        return min(max(round((time - self.low) / self.resolution), 0), self.points - 1)

    def distribution(self) -> BaseDistribution:
        """The Optuna distribution of one time."""
        if self.resolution == 1.0:
            return IntDistribution(round(self.low), round(self.high))
        # The grid's own ends: Optuna would draw anew a time that a rounding puts outside the distribution.
        return FloatDistribution(self.time(0), self.time(self.points - 1))

    def parameter(self, time: float) -> float | int:
        """A time as a value of :meth:`distribution`."""
        return round(time) if self.resolution == 1.0 else time

    def settle(self, times: Iterable[float]) -> tuple[float, ...]:
        """The times of :meth:`place`, from noise to image."""
        return tuple(sorted(self.place(times), reverse=True))

    def place(self, times: Iterable[float]) -> tuple[float, ...]:
        """As many times, on the grid, distinct, in the order given.

        A time that is taken moves to the nearest free one, the lower of two equally near. Of equal times the first
        given keeps its place.
        """
        taken: dict[int, None] = {}  # a set that keeps its order
        for time in times:
            taken[self._nearest_free(self.point(time), taken)] = None
        return tuple(self.time(point) for point in taken)

    def _nearest_free(self, point: int, taken: Container[int]) -> int:
        for distance in range(self.points):
            for near in (point - distance, point + distance):
                if 0 <= near < self.points and near not in taken:
                    return near
        raise ValueError(f"no more than {self.points} distinct times fit on {self.points} points")

    def random(self, count: int, rng: np.random.Generator) -> tuple[float, ...]:
        """``count`` distinct times, noise to image, every set equally likely."""
        return tuple(self.time(int(point)) for point in sorted(rng.choice(self.points, count, replace=False))[::-1])

    def mutate(self, times: Sequence[float], rng: np.random.Generator, probability: float) -> tuple[float, ...]:
        """Each time replaced by a uniform one with ``probability``; the result may hold a time twice."""
        return tuple(
            self.time(int(rng.integers(self.points))) if rng.random() < probability else time for time in times
        )

    def check(self, times: Iterable[float]) -> None:
        """Raises UserError for times that are not on the grid."""
        wrong = [time for time in times if self.time(self.point(time)) != time]
        if wrong:
            kind = "integers" if self.resolution == 1 else f"multiples of {self.resolution:g}"
            listed = ", ".join(f"{time:g}" for time in wrong)
            raise UserError(f"times must be {kind} from {self.low:g} to {self.high:g}; got {listed}")

    def check_count(self, key: str, steps: int) -> None:
        """Raises UserError for more steps than there are times; ``key`` is what the table calls their number."""
        if steps > self.points:
            raise UserError(f"{key} must be at most {self.points}, the number of the model's time steps; got {steps}")
