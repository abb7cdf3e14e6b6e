"""Model numbers and tables of spaces that the tests of spaces share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from autodiffusion_opt.space import SPACES, Evolvable, Joint, ModelInfo

LAYERS = 18
ALPHA_BARS = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
SIGMAS = tuple(float(sigma) for sigma in np.sqrt((1 - ALPHA_BARS) / ALPHA_BARS))
_chance = np.random.default_rng(0)
RANKING = tuple(tuple(int(i) for i in _chance.permutation(LAYERS)) for _ in range(3))
DIGITS = ModelInfo(1000, continuous=True, sigmas=SIGMAS, layers=LAYERS, removable=tuple(range(LAYERS)), ranking=RANKING)
# Layers that cost 1 and 7 in turn, and what is not in a layer.
COUNTED = replace(DIGITS, flops=80, layer_flops=(1, 7) * 9)
# Three branches, the dearest at 0.7 of a network.
BRANCHED = replace(COUNTED, branch_flops=(8, 24, 56), branch_layers=((0, 17), (0, 1, 16, 17), (0, 1, 2, 15)))
FEW_TIMES = ModelInfo(5, layers=4, removable=(0, 2, 3), ranking=((3, 0, 2), (0, 2, 3), (2, 3, 0)))

# Ten layers in three orders that differ in their first and last.
UP, DOWN, MIDDLE = tuple(range(10)), tuple(range(9, -1, -1)), (5, 4, 6, 3, 7, 2, 8, 1, 9, 0)
TEN = ModelInfo(1000, layers=10, removable=UP, ranking=(UP, DOWN, MIDDLE))


def build_space(info: ModelInfo, **table: Any) -> Evolvable:
    """The space of a table; the kind is ``joint`` unless given."""
    config = SPACES[table.get("kind", "joint")].model_validate({"kind": "joint"} | table)
    space = config.space(info)
    assert isinstance(space, Evolvable)
    return space


def joint(info: ModelInfo = TEN, **table: Any) -> Joint:
    """A joint space of ten layers and 40 layer runs, unless the table says otherwise."""
    space = build_space(info, **({"n_max": 40} | table))
    assert isinstance(space, Joint)
    return space
