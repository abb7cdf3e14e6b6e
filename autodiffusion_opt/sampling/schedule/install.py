"""The times on a scheduler object, and their removal.

Only the object is patched, so pipelines, ``save_pretrained`` and ``isinstance`` see what they always saw. Its class
stays diffusers' own, but where a property is in the way: then it is a subclass by the same name. The patches are bound
methods in ``vars(scheduler)`` that find their schedule there; so a deep copy of the scheduler, which some pipelines
make, carries a schedule of its own.
"""

from __future__ import annotations

import functools
import inspect
import types
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import torch

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.schedule.noise import alpha_bars_at
from autodiffusion_opt.sampling.schedule.queries import check_times, first_step
from autodiffusion_opt.sampling.schedule.solver_steps import without_variance
from autodiffusion_opt.sampling.schedule.specs import SchedulerSpec, called_sigmas, model_times, spec_of
from autodiffusion_opt.sampling.schedule.state import KEY, ScheduleState


class InstalledSchedule(ScheduleState):
    """Times installed on a scheduler; made by :func:`install_schedule`."""

    def __init__(
        self,
        scheduler: Any,
        spec: SchedulerSpec,
        times: Sequence[float],
        end_time: float | None,
        uneven_coefficients: bool,
    ) -> None:
        super().__init__(scheduler, times, stop=end_time, layout=spec.layout, uneven_coefficients=uneven_coefficients)
        if spec.last_sigma is None and hasattr(scheduler, "alphas_cumprod"):
            last = _last_alpha_bar(scheduler) if end_time is None else alpha_bars_at(scheduler, [end_time])
            self.alpha_bars = torch.cat([alpha_bars_at(scheduler, self.times), last])
        self.spec = spec
        self.warned = False  # of a number of steps that is not used

    def remove(self) -> None:
        """Leaves the scheduler as it was found, whatever was set on it since. Doing it again does nothing."""
        state = vars(self._scheduler)
        if state.get(KEY) is self:
            self._scheduler.__class__ = self.kind
            state.clear()
            state.update(self.before)

    def apply(self, device: Any = None, first: int = 0) -> None:
        """Puts the times on the scheduler, ready for the first step; what ``set_timesteps`` does in diffusers.

        Args:
            device: of the times.
            first: the index of the step to begin with, where sampling starts from an image; its time becomes the
                first in ``scheduler.timesteps``, and no solver remembers a step before it.
        """
        scheduler, spec = self._scheduler, self.spec
        self.first = first
        times = model_times(scheduler, spec, self.sampled, self.stop).tolist()
        # int64 where diffusers' are, unless a time lies between integers; shape (denoiser calls,), or one more
        whole = spec.integer and all(time.is_integer() for time in times)
        scheduler.timesteps = torch.tensor(times, dtype=torch.int64 if whole else torch.float32).to(device)
        scheduler.num_inference_steps = len(self.sampled)
        if spec.last_sigma is not None:
            levels = called_sigmas(scheduler, spec, self.sampled, self.stop)
            sigmas = torch.from_numpy(levels).to(_sigma_dtype(scheduler))
            # diffusers keeps them on the CPU to save transfers, but for its flow matching schedulers
            scheduler.sigmas = sigmas.to(device) if spec.flow else sigmas
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = scheduler._begin_index = None
        spec.reset(scheduler, self)
        self.position = first


def install_schedule(
    scheduler: Any, times: Sequence[float], *, end_time: float | None = None, uneven_coefficients: bool = False
) -> InstalledSchedule:
    """Puts times on a diffusers scheduler, exactly as given, until :meth:`InstalledSchedule.remove`.

    From then on whatever runs the scheduler (a pipeline) samples at these times. A schedule that is on it
    already is removed first.

    Args:
        scheduler: a diffusers scheduler of one of the classes that :func:`accepted` names.
        times: from noise to image, distinct, in :func:`time_range`; need not be even nor, for most, integers.
        end_time: where the last step stops, below its time; None: where the scheduler ends by itself.
        uneven_coefficients: for PNDM, weights of the earlier slopes that fit uneven times (order 2) in place
            of those published for even ones (order 1 on uneven times; what diffusers has).

    Raises:
        UserError: for a scheduler that is not accepted, times it cannot take, an option it does not have.
    """
    spec = spec_of(scheduler)
    check_times(scheduler, times, end_time)
    if uneven_coefficients and spec.layout != "plms":
        raise UserError(f"uneven_coefficients is for PNDMScheduler; got {type(scheduler).__name__}")
    if KEY in vars(scheduler):
        vars(scheduler)[KEY].remove()
    schedule = InstalledSchedule(scheduler, spec, times, end_time, uneven_coefficients)
    vars(scheduler)[KEY] = schedule
    if spec.noise_of_first:
        scheduler.__class__ = _with_noise_of_first(schedule.kind)
    for name, method in {"set_timesteps": _set_timesteps, **spec.methods, "step": _step}.items():
        _patch(scheduler, name, method, ("generator",) if name == "step" and spec.adds_generator else ())
    schedule.apply()
    return schedule


def _patch(scheduler: Any, name: str, method: Callable[..., Any], more: tuple[str, ...]) -> None:
    """Hides a method by ``method(scheduler, schedule, ...)``, in the object alone, with the hidden one's signature.

    ``more``: names of keyword arguments that it takes as well, None by default.
    """

    @functools.wraps(getattr(type(scheduler), name))
    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, vars(self)[KEY], *args, **kwargs)

    if more:
        signature = inspect.signature(getattr(type(scheduler), name))
        added = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None) for key in more]
        vars(patched)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), *added])
    vars(scheduler)[name] = types.MethodType(patched, scheduler)


@functools.cache
def _with_noise_of_first(kind: Hashable) -> type:
    """A subclass by the same name whose first noise has the size that goes with the first σ of its schedule.

    ``init_noise_sigma`` is a property, which an object cannot hide.
    """
    noise = property(lambda scheduler: (float(scheduler.sigmas[0]) ** 2 + 1) ** 0.5)
    same = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(same["__qualname__"], (cast(type, kind),), {**same, "init_noise_sigma": noise})


def _set_timesteps(
    scheduler: Any,
    schedule: InstalledSchedule,
    num_inference_steps: int | None = None,
    device: Any = None,
    *_: Any,
    mu: float | None = None,
    strength: float = 1.0,
    **__: Any,
) -> None:
    """In place of diffusers': the times are those given, whatever the pipeline asks for.

    ``strength`` comes from LCM's image to image alone; the other pipelines take a part of the times afterwards.
    """
    if schedule.check_use is not None:
        schedule.check_use()
    schedule.was_set = True
    schedule.generation += 1
    count = len(schedule.times)
    if num_inference_steps not in (None, count) and not schedule.warned:
        schedule.warned = True
        installed = f"installed times give {count} step{'s' * (count != 1)}"
        # 3: the line that calls scheduler.set_timesteps, above this function and the patch
        warnings.warn(f"num_inference_steps={num_inference_steps} is not used: {installed}", stacklevel=3)
    schedule.mu = mu
    schedule.apply(device, first_step(scheduler, schedule, strength))


def _step(scheduler: Any, schedule: InstalledSchedule, *args: Any, **kwargs: Any) -> Any:
    """A step of our own where the spec has one, else diffusers'; then the next step's calls begin."""
    make: Callable[..., Any] = schedule.spec.methods.get("step", _diffusers_step)
    result = make(scheduler, schedule, *args, **kwargs)
    if schedule.watch is not None:
        given = inspect.signature(scheduler.step).bind(*args, **kwargs).arguments
        schedule.watch(given["sample"], result[0])
    schedule.position += 1  # here and not at the next time handed over: DDIMPipeline calls the denoiser before that
    return result


def _diffusers_step(
    scheduler: Any,
    schedule: InstalledSchedule,
    model_output: torch.Tensor,
    timestep: Any,
    sample: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """diffusers' own step, on the sigmas that were put there."""
    output = without_variance(model_output, sample)
    return type(scheduler).step(scheduler, output, timestep, sample, *args, **kwargs)


def _last_alpha_bar(scheduler: Any) -> torch.Tensor:
    """ᾱ after the last step: DDPM ends in the image, DDIM and PNDM where they are told to; shape (1,)."""
    last = getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0))
    return last.detach().cpu().to(scheduler.alphas_cumprod.dtype).reshape(1)


def _sigma_dtype(scheduler: Any) -> torch.dtype:
    """float32 as diffusers has it, unless its ᾱ, or σ where it has no ᾱ, was made more precise."""
    levels = getattr(scheduler, "alphas_cumprod", scheduler.sigmas)
    return torch.float64 if levels.dtype == torch.float64 else torch.float32
