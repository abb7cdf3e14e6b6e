"""Time steps by dynamic programming on the errors of single steps.

A step from one point of the teacher's trajectory to another has an error that can be measured for all pairs of points
at once, since it needs no call of the model beyond the teacher's own. The times whose errors sum to the least are the
shortest path through these points (Watson et al., 2021, section 3; Chen et al., 2024, "On the trajectory regularity of
diffusion-based sampling", section 4). What differs here: an error counts as much as it changes the image, and where
sampling begins is free, at the price of the error that beginning there makes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.errors import UserError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LocalErrors:
    """Errors of single first-order steps along the teacher's trajectory.

    Attributes:
        times: of the trajectory's points, from noise to image; shape (M,).
        start: of beginning at each time with pure noise; shape (M,).
        errors: ``errors[i, j]`` of one step from ``times[i]`` to ``times[j]``, and to the image for j = M; infinite
            for j <= i; shape (M, M + 1).
    """

    times: Floats
    start: Floats
    errors: Floats

    def best_times(self, steps: int) -> tuple[float, ...]:
        """The ``steps`` of the times whose errors sum to the least: first the start's, last that of the step to the
        image. From noise to image.

        Raises:
            UserError: for more steps than there are times.
        """
        count = len(self.times)
        if not 1 <= steps <= count:
            raise UserError(f"steps must be from 1 to {count}, the points of the teacher's trajectory; got {steps}")
        # least[j]: the least sum of errors up to time j, with so many steps begun as there were rounds.
        least, before = self.start, []
        for _ in range(steps - 1):
            sums = least[:, None] + self.errors[:, :count]  # (from, to)
            before.append(sums.argmin(axis=0))
            least = sums.min(axis=0)
        path = [int((least + self.errors[:, count]).argmin())]
        for previous in reversed(before):
            path.append(int(previous[path[-1]]))
        return tuple(float(self.times[point]) for point in reversed(path))
