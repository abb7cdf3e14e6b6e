"""Where a sampler is in the times that it was given: what specs and steps need to know; nothing is patched here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.model_info import Layout

# The attribute of a scheduler that holds what is installed on it.
KEY = "_autodiffusion_schedule"
# A pipeline hands a time back as it got it from ``timesteps``, in float16 at worst: rounded by 1/4 above 512.
SAME_TIME = 0.5


class ScheduleState:
    """The times given for one scheduler object, and the step that its sampler has come to.

    Attributes:
        times: the times as given, from noise to image; N of them.
        stop: the end time as given; None: where the scheduler ends by itself.
        first: the step that sampling begins with: 0, or later where it starts from an image.
        layout: how often the denoiser is called in each step.
        uneven_coefficients: PNDM combines its slopes for the steps as they are, not as if they were even.
        alpha_bars: ᾱ at each time, then at the end, on the CPU; shape (N + 1,); (0,) for a scheduler that works on σ.
        before: the scheduler's attributes as they were found.
        kind: its class as it was found.
        mu: of dynamic shifting, as the pipeline gave it last.
        was_set: whether the times were asked for (``set_timesteps``) since somebody set this to False.
        generation: how often they were asked for: each generation of images does it once.
        check_use: raises an error where the scheduler must not be used; None: it may.
        watch: is given the sample before and after every step; None: nobody looks.
        position: for a scheduler without a count of its own: the step that the next call of the denoiser is of.
    """

    def __init__(
        self,
        scheduler: Any,
        times: Sequence[float],
        *,
        stop: float | None = None,
        layout: Layout = "once",
        uneven_coefficients: bool = False,
    ) -> None:
        self.times = tuple(float(time) for time in times)
        self.stop = None if stop is None else float(stop)
        self.first = 0
        self.layout = layout
        self.uneven_coefficients = uneven_coefficients
        self.alpha_bars = torch.empty(0)
        self.before = dict(vars(scheduler))
        self.kind: Any = type(scheduler)
        self.mu: float | None = None
        self.was_set = False
        self.generation = 0
        self.check_use: Callable[[], None] | None = None
        self.watch: Callable[[torch.Tensor, torch.Tensor], None] | None = None
        self.position = 0
        self._scheduler = scheduler

    @property
    def sampled(self) -> tuple[float, ...]:
        """The times from the first step that is run."""
        return self.times[self.first :]

    @property
    def step(self) -> int:
        """The index in ``times`` of the step that the next (or current) denoiser call belongs to."""
        scheduler = self._scheduler
        if self.layout == "plms":
            call = int(scheduler.counter)
        elif hasattr(scheduler, "_step_index"):  # counts calls; None until the first, which may be in the middle
            index = scheduler._begin_index if scheduler._step_index is None else scheduler._step_index
            call = index or 0
        else:
            return min(self.position, len(self.times) - 1)
        steps = steps_of_calls(len(self.sampled), self.layout)
        return self.first + steps[min(call, len(steps) - 1)]  # after the last call: still the last step

    @property
    def at_last(self) -> bool:
        """Whether the step being made is the one that ends in the image."""
        return self.position == len(self.times) - 1

    @property
    def end_time(self) -> float:
        """The time after the last step: as given, else 0 where it ends in the model's least noise, one below else."""
        if self.stop is not None:
            return self.stop
        return 0.0 if self.alpha_bars[-1] < 1 else -1.0

    def find(self, timestep: Any) -> int:
        """The index of a time that a pipeline hands over, which becomes the position.

        Raises:
            UserError: for a time that is not of the schedule.
        """
        asked = float(timestep)
        index = min(range(len(self.times)), key=lambda step: abs(self.times[step] - asked))
        if abs(self.times[index] - asked) > SAME_TIME:
            listed = ", ".join(f"{time:g}" for time in self.times)
            raise UserError(f"the scheduler was called at time {asked:g}; its times are {listed}")
        self.position = index
        return index

    def alpha_bars_from(self, timestep: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """ᾱ at this time, which becomes the position, and at the next one (or the end)."""
        index = self.find(timestep)
        return self.alpha_bars[index], self.alpha_bars[index + 1]


def schedule_on(scheduler: Any) -> ScheduleState | None:
    """The schedule that is installed on a scheduler; None where there is none."""
    state: ScheduleState | None = vars(scheduler).get(KEY)
    return state


def steps_of_calls(count: int, layout: Layout) -> tuple[int, ...]:
    """The step that each call of the denoiser belongs to, in order, for ``count`` steps.

    Heun takes the slope at both ends of a step, but at one only of the last, which goes to σ = 0: 0 0 1 1 .. N-1; so
    does KDPM2 at its start and middle.
    PLMS makes its first step twice: 0 0 1 2 .. N-1; where it is the only one, once.
    """
    if layout == "heun":
        return tuple(step for step in range(count) for _ in range(2))[: 2 * count - 1]
    if layout == "plms" and count > 1:
        return (0, *range(count))
    return tuple(range(count))


def called_times(times: Sequence[float], layout: Layout) -> tuple[float, ...]:
    """The time of each call of the denoiser, in order: the second call of a step is made at the step's end."""
    steps = steps_of_calls(len(times), layout)
    again = (False, *(before == step for before, step in pairwise(steps)))
    return tuple(times[step + second] for step, second in zip(steps, again, strict=False))
