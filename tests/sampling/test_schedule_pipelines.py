"""Pipelines whose schedulers count time in a way of their own: a candidate goes on, samples, and comes off."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from peers.scheduled_pipelines import MAKERS

from autodiffusion_opt import Candidate, apply, remove
from autodiffusion_opt.sampling import schedule as schedules
from autodiffusion_opt.sampling.compatibility import arguments_of_steps
from autodiffusion_opt.sampling.hooks import before_forward

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must:DeprecationWarning"),
]
STEPS = 4
UNEVEN = (930.5, 610.0, 85.0)


def images(pipeline: Any, call: dict[str, Any], steps: int = STEPS) -> torch.Tensor:
    """Shape (images or clips, ..., channels, height, width)."""
    pipeline.set_progress_bar_config(disable=True)
    of_steps = arguments_of_steps(inspect.signature(type(pipeline).__call__).parameters, steps)
    made = pipeline(**of_steps, generator=torch.Generator().manual_seed(0), **call)[0]
    return made if isinstance(made, torch.Tensor) else torch.stack(list(made))


@pytest.mark.parametrize("name", MAKERS)
def test_own_times_give_own_images_and_leave_no_trace(name: str) -> None:
    pipeline, call = MAKERS[name]()
    before = images(pipeline, call)
    times = schedules.own_times(pipeline.scheduler)
    assert len(times) == STEPS
    apply(pipeline, Candidate.from_time_steps(times))
    torch.testing.assert_close(images(pipeline, call), before, rtol=0, atol=2e-5)
    apply(pipeline, Candidate.from_time_steps(UNEVEN))
    assert (images(pipeline, call, len(UNEVEN)) - before).abs().max() > 1e-3
    remove(pipeline)
    assert torch.equal(images(pipeline, call), before)


def test_sana_sprint_with_a_candidate_takes_any_number_of_steps() -> None:
    """By itself it has a second time, of which diffusers says that it is for two steps alone."""
    pipeline, call = MAKERS["sana sprint"]()
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="Intermediate timesteps"):
        pipeline(num_inference_steps=3, **call)
    seen: list[float] = []
    for times in ((1000.0,), (1000.0, 400.0), (1000.0, 800.0, 300.5)):
        apply(pipeline, Candidate.from_time_steps(times))
        seen.clear()
        with before_forward(pipeline.transformer, lambda _, args, kwargs: seen.append(float(kwargs["timestep"][0]))):
            pipeline(num_inference_steps=len(times), **call)
        assert seen == pytest.approx([time / 1000 for time in times], rel=1e-5)
