"""The unit cube as a space's box: what optimizers that know neither whole numbers nor choices search.

A distribution of n values is n equal cells of [0, 1]; one of reals is linear in it, or in its logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution


def decode(box: Mapping[str, BaseDistribution], point: Sequence[float]) -> dict[str, Any]:
    """The parameters at a point of the cube; coordinates outside [0, 1] count as the nearest end."""
    return {
        name: value_at(distribution, min(max(float(share), 0.0), 1.0))
        for (name, distribution), share in zip(box.items(), point, strict=True)
    }


def encode(box: Mapping[str, BaseDistribution], parameters: Mapping[str, Any]) -> list[float]:
    """A point of the cube that :func:`decode` turns into ``parameters``: the middle of each cell."""
    return [share_of(distribution, parameters[name]) for name, distribution in box.items()]


def value_at(distribution: BaseDistribution, share: float) -> Any:
    """The value of a distribution at a share, 0 to 1, of its range."""
    count = cells(distribution)
    if count is not None:
        return _value_of_cell(distribution, min(int(share * count), count - 1))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _ends(distribution)
    value = low + share * (high - low)
    if distribution.log:
        value = math.exp(value)
    value = min(max(value, distribution.low), distribution.high)  # exp(log(x)) may be beyond x
    return round(value) if isinstance(distribution, IntDistribution) else value


def share_of(distribution: BaseDistribution, value: Any) -> float:
    """Where in the range of a distribution a value is, 0 to 1; of a cell, the middle."""
    count = cells(distribution)
    if count is not None:
        return (_cell_of_value(distribution, value) + 0.5) / count
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _ends(distribution)
    at = math.log(value) if distribution.log else float(value)
    return 0.5 if high == low else min(max((at - low) / (high - low), 0.0), 1.0)


def cells(distribution: BaseDistribution) -> int | None:
    """How many values a distribution has, evenly spaced or choices; None for reals, and for what is logarithmic."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.log or distribution.step is None:
        return None
    steps: int = round((distribution.high - distribution.low) / distribution.step)
    return steps + 1


def _value_of_cell(distribution: BaseDistribution, cell: int) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[cell]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    assert distribution.step is not None
    # As Optuna has it: the last cell is the high end itself, whatever the sum rounds to.
    return min(distribution.low + cell * distribution.step, distribution.high)


def _cell_of_value(distribution: BaseDistribution, value: Any) -> int:
    if isinstance(distribution, CategoricalDistribution):
        return int(distribution.to_internal_repr(value))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    assert distribution.step is not None
    cell: int = round((value - distribution.low) / distribution.step)
    return cell


def _ends(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    low, high = float(distribution.low), float(distribution.high)
    return (math.log(low), math.log(high)) if distribution.log else (low, high)
