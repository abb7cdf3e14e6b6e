"""Which of a step's calls of the denoiser a call is: the first, or the one without the prompt that follows it."""

from __future__ import annotations

from autodiffusion_opt.sampling.schedule.state import ScheduleState


class CallsOfSteps:
    """Counts the calls within each step.

    Args:
        schedule: of the pipeline's scheduler, which knows the step and the generation of images.

    Attributes:
        most: the greatest number of calls that a step made so far.
    """

    def __init__(self, schedule: ScheduleState) -> None:
        self.most = 0
        self._schedule = schedule
        self._now: tuple[int, int] | None = None  # generation and step of the call before
        self._call = 0

    def begin(self) -> tuple[bool, int]:
        """A call begins: whether it is the first of a generation, and its number within the step, from 0."""
        now = self._schedule.generation, self._schedule.step
        begins = self._now is None or self._now[0] != now[0]
        self._call = self._call + 1 if now == self._now else 0
        self._now = now
        self.most = max(self.most, self._call + 1)
        return begins, self._call
