"""The times on a scheduler object, and their removal.

Only the object is patched: its class stays diffusers' own, so pipelines, ``save_pretrained`` and
``isinstance`` see what they always saw. The patches are problem methods in ``vars(scheduler)`` that find their
schedule there; so a deep copy of the scheduler, which some pipelines make, carries a schedule of its own.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.schedule import steps
from autodiffusion_opt.sampling.schedule.queries import KEY, check_times, plural
from autodiffusion_opt.sampling.schedule.noise import alpha_bars_at
from autodiffusion_opt.sampling.schedule.specs import SchedulerSpec, called_sigmas, called_times, spec_of

# A pipeline hands a time back as it got it from ``timesteps``, in half precision at worst.
SAME_TIME = 0.5


class InstalledSchedule:
    """Times installed on a scheduler; made by :func:`install_schedule`.

    Attributes:
        times: the times as given, from noise to image.
        uneven_coefficients: PNDM combines its slopes for the steps as they are, not as if they were even.
        alpha_bars: where a scheduler works on ᾱ, ᾱ at each time, then at the end; shape (N + 1,), on the CPU.
    """

    def __init__(self, scheduler: Any, spec: SchedulerSpec, times: Sequence[float], uneven_coefficients: bool) -> None:
        self.times = tuple(float(time) for time in times)
        self.uneven_coefficients = uneven_coefficients
        self._scheduler, self._spec = scheduler, spec
        self._before = dict(vars(scheduler))
        self._position = 0
        self._done = False
        self._warned = False
        if spec.last is None:
            self.alpha_bars = torch.cat([alpha_bars_at(scheduler, self.times), _last_alpha_bar(scheduler)])

    @property
    def step(self) -> int:
        """The index in ``times`` of the step that the next (or current) denoiser call belongs to."""
        return min(self._called(), len(self.times) - 1)

    def remove(self) -> None:
        """Leaves the scheduler as it was found, whatever was set on it since. Doing it again does nothing."""
        state = vars(self._scheduler)
        if state.get(KEY) is self:
            state.clear()
            state.update(self._before)

    @property
    def at_last(self) -> bool:
        """Whether the step being made is the one that ends in the image."""
        return self._position == len(self.times) - 1

    @property
    def end_time(self) -> float:
        """The time after the last step: 0 where it ends in the model's least noise, else one before it."""
        return 0.0 if self.alpha_bars[-1] < 1 else -1.0

    def find(self, timestep: Any) -> int:
        """The index of a time that a pipeline hands over. Raises UserError for one not of the schedule."""
        asked = float(timestep)
        index = min(range(len(self.times)), key=lambda one: abs(self.times[one] - asked))
        if abs(self.times[index] - asked) > SAME_TIME:
            raise UserError(f"the scheduler was called at time {asked:g}; its times are {_listed(self.times)}")
        self._position, self._done = index, False
        return index

    def alpha_bars_from(self, timestep: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """ᾱ at this time and at the next one (or the end)."""
        index = self.find(timestep)
        return self.alpha_bars[index], self.alpha_bars[index + 1]

    def apply(self, device: Any = None) -> None:
        """Puts the times on the scheduler, ready for the first step."""
        scheduler, spec = self._scheduler, self._spec
        scheduler.timesteps = self._timesteps().to(device)
        scheduler.num_inference_steps = len(self.times)
        if spec.last is not None:
            sigmas = torch.from_numpy(called_sigmas(scheduler, spec, self.times)).to(_sigma_dtype(scheduler))
            scheduler.sigmas = sigmas.to(device) if spec.flow else sigmas
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = scheduler._begin_index = None
        spec.fresh(scheduler, self)
        self._position, self._done = 0, False

    def _timesteps(self) -> torch.Tensor:
        """Shape (number of denoiser calls,); int64 where diffusers' are and no time lies between integers."""
        listed = called_times(self.times, self._spec.layout)
        whole = self._spec.integer and all(time.is_integer() for time in listed)
        return torch.tensor(listed, dtype=torch.int64 if whole else torch.float32)

    def _called(self) -> int:
        """The step by the scheduler's own count where it has one, else by ours."""
        scheduler, layout = self._scheduler, self._spec.layout
        if layout == "plms":
            return max(int(scheduler.counter) - 1, 0)
        if not hasattr(scheduler, "_step_index"):
            return self._position + self._done
        count: int | None = scheduler._begin_index if scheduler._step_index is None else scheduler._step_index
        return (count or 0) // (2 if layout == "heun" else 1)

    def _set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **_: Any) -> None:
        """In place of diffusers': the times are those given, whatever the pipeline asks for."""
        if num_inference_steps not in (None, len(self.times)) and not self._warned:
            self._warned = True
            installed = f"installed times give {plural(len(self.times), 'step')}"
            warnings.warn(f"num_inference_steps={num_inference_steps} is not used: {installed}", stacklevel=3)
        self.apply(device)

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        scheduler = self._scheduler
        own = self._spec.methods.get("step")
        result = own(scheduler, self, *args, **kwargs) if own else _diffusers_step(scheduler, *args, **kwargs)
        self._done = True
        return result


def install_schedule(scheduler: Any, times: Sequence[float], *, uneven_coefficients: bool = False) -> InstalledSchedule:
    """Puts times on a diffusers scheduler, exactly as given, until :meth:`InstalledSchedule.remove`.

    From then on whatever runs the scheduler (a pipeline) samples at these times. A schedule that is on it
    already is removed first.

    Args:
        scheduler: a diffusers scheduler of one of the classes that :func:`accepted` names.
        times: from noise to image, distinct, in :func:`time_range`; need not be even nor, for most, integers.
        uneven_coefficients: for PNDM, weights of the earlier slopes that fit uneven times (order 2) in place
            of those published for even ones (order 1 on uneven times; what diffusers has).

    Raises:
        UserError: for a scheduler that is not accepted, times it cannot take, an option it does not have.
    """
    spec = spec_of(scheduler)
    check_times(scheduler, times)
    if uneven_coefficients and spec.layout != "plms":
        raise UserError(f"uneven_coefficients is for PNDMScheduler; got {type(scheduler).__name__}")
    if KEY in vars(scheduler):
        vars(scheduler)[KEY].remove()
    schedule = InstalledSchedule(scheduler, spec, times, uneven_coefficients)
    vars(scheduler)[KEY] = schedule
    _patch(scheduler, "set_timesteps", lambda self: vars(self)[KEY]._set_timesteps)
    _patch(scheduler, "step", lambda self: vars(self)[KEY]._step)
    for name, method in spec.methods.items():
        if name != "step":
            _patch(scheduler, name, functools.partial(_ours, method))
    schedule.apply()
    return schedule


def _ours(method: Callable[..., Any], scheduler: Any) -> Callable[..., Any]:
    return functools.partial(method, scheduler, vars(scheduler)[KEY])


def _patch(scheduler: Any, name: str, find: Callable[[Any], Callable[..., Any]]) -> None:
    """Hides a method by one in the object itself, with the signature of the one that it hides."""

    @functools.wraps(getattr(type(scheduler), name))
    def replaced(self: Any, *args: Any, **kwargs: Any) -> Any:
        return find(self)(*args, **kwargs)

    vars(scheduler)[name] = types.MethodType(replaced, scheduler)


def _diffusers_step(
    scheduler: Any, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    """diffusers' own step, on the sigmas that were put there."""
    output = steps.without_variance(model_output, sample)
    if _stays(scheduler, timestep):
        scheduler._step_index += 1
        return SchedulerOutput(prev_sample=sample) if kwargs.get("return_dict", True) else (sample,)
    return type(scheduler).step(scheduler, output, timestep, sample, *args, **kwargs)


def _stays(scheduler: Any, timestep: Any) -> bool:
    """Whether this is a last step from σ_min to σ_min (time 0): solvers divide by its length, 0."""
    spec = vars(scheduler)[KEY]._spec
    if spec.last is None or spec.layout == "heun":
        return False
    if scheduler._step_index is None:
        scheduler._init_step_index(timestep)
    index = scheduler._step_index
    return index == len(scheduler.timesteps) - 1 and bool(scheduler.sigmas[-1] == scheduler.sigmas[-2])


def _last_alpha_bar(scheduler: Any) -> torch.Tensor:
    """ᾱ after the last step: DDPM ends in the image, DDIM and PNDM where they are told to; shape (1,)."""
    last = getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0))
    return last.detach().cpu().to(scheduler.alphas_cumprod.dtype).reshape(1)


def _sigma_dtype(scheduler: Any) -> torch.dtype:
    """float32 as diffusers has it, unless its ᾱ was made more precise."""
    dtype = getattr(getattr(scheduler, "alphas_cumprod", None), "dtype", torch.float32)
    return torch.float64 if dtype == torch.float64 else torch.float32


def _listed(times: Sequence[float]) -> str:
    return ", ".join(f"{time:g}" for time in np.asarray(times))
