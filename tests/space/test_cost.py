"""Calls, layer runs and FLOPs of a candidate, as numbers counted by hand."""

from __future__ import annotations

import dataclasses

import pytest
from diffusers import HeunDiscreteScheduler, PNDMScheduler

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.space import Layout, ModelInfo, cost

# Three steps of ten layers that remove 1, 2 and 3 of them.
CANDIDATE = Candidate.from_time_steps([900, 500, 100], [(0,), (1, 2), (7, 8, 9)])
TEN = ModelInfo(1000, layers=10, removable=tuple(range(10)), flops=100, layer_flops=tuple(range(1, 11)))


@pytest.mark.parametrize(
    ("layout", "calls"),
    [("once", [(1,), (1, 1), (1, 1, 1)]), ("heun", [(1,), (2, 1), (2, 2, 1)]), ("plms", [(1,), (2, 1), (2, 1, 1)])],
)
def test_calls_of_each_step(layout: Layout, calls: list[tuple[int, ...]]) -> None:
    assert [cost.calls(layout, steps) for steps in (1, 2, 3)] == calls


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, under numpy 2
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_calls_are_as_many_as_diffusers_makes(steps: int) -> None:
    heun, plms = HeunDiscreteScheduler(), PNDMScheduler(skip_prk_steps=True)
    heun.set_timesteps(steps)
    plms.set_timesteps(steps)
    assert sum(cost.calls("heun", steps)) == len(heun.timesteps)
    assert sum(cost.calls("plms", steps)) == len(plms.timesteps)


@pytest.mark.parametrize(
    ("layout", "nfe", "runs", "flops"),
    [
        ("once", 3, 9 + 8 + 7, 99 + 95 + 73),
        ("heun", 5, 2 * 9 + 2 * 8 + 7, 2 * 99 + 2 * 95 + 73),
        ("plms", 4, 2 * 9 + 8 + 7, 2 * 99 + 95 + 73),
    ],
)
def test_every_call_of_a_step_counts(layout: Layout, nfe: int, runs: int, flops: int) -> None:
    info = dataclasses.replace(TEN, layout=layout)
    assert cost.nfe(info, CANDIDATE) == nfe
    assert cost.layer_runs(info, CANDIDATE) == runs
    assert cost.flops(info, CANDIDATE) == flops


def test_costs_that_were_not_counted_are_zero() -> None:
    whole = Candidate.from_time_steps([900, 100])
    assert cost.layer_runs(ModelInfo(1000), whole) == 0
    assert cost.layer_runs(ModelInfo(1000), CANDIDATE) == 0
    assert cost.flops(ModelInfo(1000, layers=10), whole) == 0
    assert cost.flops(ModelInfo(1000, flops=100), whole) == 200
    assert cost.flops(ModelInfo(1000, layers=10, flops=100), CANDIDATE) == 0


@pytest.mark.parametrize(
    ("layout", "steps"),
    [("once", [0, 1, 2, 3, 4, 5, 6, 7]), ("heun", [0, 1, 1, 2, 2, 3, 3, 4]), ("plms", [0, 1, 1, 2, 3, 4, 5, 6])],
)
def test_steps_that_a_number_of_calls_pays_for(layout: Layout, steps: list[int]) -> None:
    assert [cost.steps_within(layout, nfe) for nfe in range(8)] == steps
