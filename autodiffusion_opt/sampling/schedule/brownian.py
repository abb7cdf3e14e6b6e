"""The noise of solvers that follow a Brownian path W(σ), drawn by each image's own generator.

A noise is W(σ') - W(σ) over a step, divided by its standard deviation √(σ - σ'). diffusers reads it off a path that is
made in advance, by torchsde, of a whole batch or from a list of seeds. Here it is drawn as it is needed: what a path
does in one step is independent of what it did before, so the noises have the same distribution, though not the values.
"""

from __future__ import annotations

from typing import Any

import torch

from autodiffusion_opt.sampling.schedule.solver_steps import random_like, without_variance
from autodiffusion_opt.sampling.schedule.state import ScheduleState


class BrownianSteps:
    """Standard normal noises of steps along Brownian paths in σ, which go on from step to step.

    Args:
        sample: (N, ...): the shape, type and device of the noises.
        generator: a list of N, one an image; one of the batch; None: torch's own.
    """

    def __init__(self, sample: torch.Tensor, generator: Any) -> None:
        self._sample, self._generator = sample, generator
        self._start: float | None = None
        self._length = 0.0  # in σ, of what is drawn of the step from `_start`
        self._moved: torch.Tensor | float = 0.0  # W at the end of that, minus W at `_start`

    def __call__(self, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        """The noise of a step from one σ to a lower; one that begins where the last began goes on with its path."""
        if float(sigma) != self._start:
            self._start, self._length, self._moved = float(sigma), 0.0, 0.0
        length = float(sigma) - float(sigma_next)
        self._moved = self._moved + (length - self._length) ** 0.5 * random_like(self._sample, self._generator)
        self._length = length
        noise: torch.Tensor = self._moved / length**0.5
        return noise


def brownian_step(
    scheduler: Any,
    schedule: ScheduleState,
    model_output: torch.Tensor,
    timestep: Any,
    sample: torch.Tensor,
    *args: Any,
    generator: Any = None,
    **kwargs: Any,
) -> Any:
    """diffusers' own step with :class:`BrownianSteps`; a list of generators, one an image, keeps images apart."""
    if scheduler.noise_sampler is None:
        seed = scheduler.config.get("noise_sampler_seed")
        if generator is None and seed is not None:
            generator = torch.Generator(sample.device).manual_seed(seed)
        scheduler.noise_sampler = BrownianSteps(sample, generator)
    output = without_variance(model_output, sample)
    return type(scheduler).step(scheduler, output, timestep, sample, *args, **kwargs)
