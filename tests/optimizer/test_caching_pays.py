"""A search finds partial steps where they pay."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from marks import slow_but
from space.examples import SIGMAS

from autodiffusion_opt import Candidate, CandidateMetric, ModelInfo, Study
from autodiffusion_opt.space import cost

INFO = ModelInfo(
    1000,
    sigmas=SIGMAS,
    layers=4,
    removable=(0, 1, 2, 3),
    flops=100,
    layer_flops=(20,) * 4,
    branch_flops=(5, 40, 70),
    branch_layers=((), (3,), (0, 3)),
)

PHASES = np.linspace(0, math.pi, 5)


def shallow(time: float) -> Any:
    return np.sin(time / 400 * 2 * math.pi + PHASES)


def deep(time: float) -> float:
    return 1 + time / 1e5


EXACT = sum(shallow(time) + deep(time) for time in np.arange(0.5, 1000))


def toy(candidate: Candidate) -> float:
    """The error of Euler steps for ∂x/∂t = shallow(t) + deep(t): the deep half is nearly constant.

    A partial step takes the deep half from the last full one. Over several phases of the shallow half, whose period is
    400 time steps.
    """
    ends = [*candidate.times, 0.0]
    total, kept = (1000 - ends[0]) * (shallow(ends[0]) + deep(ends[0])), 0.0
    for step, (time, end) in zip(candidate.steps, pairwise(ends), strict=True):
        kept = deep(time) if step.branch is None else kept
        total = total + (time - end) * (shallow(time) + kept)
    return float(np.abs(total - EXACT).mean())


@pytest.mark.parametrize("optimizer", slow_but(["local", "evolution"], "local"))
def test_a_search_finds_that_partial_steps_pay_where_the_deep_half_hardly_depends_on_time(
    optimizer: str, tmp_path: Path
) -> None:
    def best(name: str, space: dict[str, Any]) -> Any:
        study = Study(
            name,
            pipeline=None,
            space=space,
            objective=CandidateMetric(toy, identity="toy"),
            optimizer={"kind": "evolution", "population": 20, "parents": 5, "mutations": 10, "crossovers": 5}
            if optimizer == "evolution"
            else optimizer,
            trials=40,
            storage=f"sqlite:///{tmp_path}/toy.db",
            model_info=INFO,
        )
        study.run(progress=False)
        return study.best()

    cached = best("cached", {"kind": "cached-steps", "max_flops": 3.2, "steps_max": 10})
    times = best("times", {"kind": "time-steps", "steps": 3})
    assert cost.flops(INFO, cached.candidate) <= 320
    assert any(branch is not None for branch in cached.candidate.branches)
    assert cached.value < 0.8 * times.value
