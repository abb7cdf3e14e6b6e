"""Grid search: evenly spaced values of every parameter, all combinations, each different candidate once.

Optuna's GridSampler proposes a combination, and many combinations are one candidate: the order of times does not
matter. Here the combinations are decoded first, and the different candidates listed in an order that the seed gives.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.optimizer.base import CandidateSampler, Proposal
from autodiffusion_opt.optimizer.unit_box import value_at
from autodiffusion_opt.space import Space
from autodiffusion_opt.trials.attributes import FIXED_PARAMETERS, ORIGIN, RETRY_OF
from autodiffusion_opt.trials.history import Past

# Combinations that are decoded at the start: some seconds' worth, and what a grid has by itself.
MOST_POINTS = 50_000
USUAL_POINTS = 10_000


class GridSearch(CandidateSampler):
    """The candidates of a grid. The trial that is the n-th to be proposed, and not a baseline, has the n-th of them.

    Once all are proposed they are proposed again, which costs nothing: their values are taken from SQL.

    Args:
        space: fully parametric.
        seed: of the order.
        points: values of each parameter that has more; None: as many as keep the grid within 10,000 combinations, 2
            to 10.

    Raises:
        UserError: for a grid of more than 50,000 combinations.
    """

    several_values: ClassVar[bool] = True

    def __init__(self, space: Space, seed: int, points: int | None = None) -> None:
        super().__init__(space, seed)
        box = space.distributions()
        if points is None:
            points = next((most for most in range(10, 2, -1) if _count(box, most) <= USUAL_POINTS), 2)
        if _count(box, points) > MOST_POINTS:
            raise UserError(
                f"optimizer optuna:grid: a grid must have at most {MOST_POINTS:,} combinations; points = {points} "
                f"makes {_count(box, points):,} of {len(box)} parameters: lower points, or use optuna:qmc, which needs "
                "no grid"
            )
        values = [grid_values(distribution, points) for distribution in box.values()]
        combinations = (dict(zip(box, combination, strict=True)) for combination in itertools.product(*values))
        different = list(dict.fromkeys(map(space.decode, combinations)))
        order = np.random.default_rng(seed).permutation(len(different))
        self.candidates = [different[int(index)] for index in order]

    def propose(self, past: Past, rng: np.random.Generator) -> Proposal:
        """The next candidate of the grid."""
        index = sum(1 for trial in self._before(past.position) if not _came_with_its_own(trial))
        if index == len(self.candidates):
            warnings.warn(
                f"the grid's {index} candidates were all proposed: further trials repeat them, without measuring anew",
                stacklevel=1,
            )
        return Proposal(self.candidates[index % len(self.candidates)], "grid")

    def _before(self, position: int) -> Iterator[FrozenTrial]:
        assert self.history is not None  # before_trial sets it
        return self.history.sequence(0, position)


def _count(box: Mapping[str, BaseDistribution], points: int) -> int:
    return math.prod(len(grid_values(distribution, points)) for distribution in box.values())


def grid_values(distribution: BaseDistribution, points: int) -> list[CategoricalChoiceType]:
    """At most ``points`` different values from the lowest to the highest, evenly spaced; all of a choice."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    inside = [value_at(distribution, float(share)) for share in np.linspace(0, 1, points)]
    return list(dict.fromkeys(inside))


def _came_with_its_own(trial: FrozenTrial) -> bool:
    """Whether the trial is a baseline, or somebody enqueued it; a retry of one is too."""
    if trial.user_attrs.get(ORIGIN) in ("baseline", "enqueued"):
        return True
    return bool(trial.system_attrs.get(FIXED_PARAMETERS)) and RETRY_OF not in trial.user_attrs
