"""A scheduler run as a pipeline would, beside the formula that it must equal, both on one made-up model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from peers.schedulers import MIDDLE, TWO_CALLS, Case
from peers.solvers import level

from autodiffusion_opt.sampling import schedule as schedules

SHAPE = (2, 3, 4, 4)


def curved(x: torch.Tensor, k: float) -> torch.Tensor:
    """A made-up noise prediction: not linear, and different at every step."""
    return 0.8 * torch.sin(1.3 * x + 0.4 * k) + 0.1 * x


def mixture(alpha: Any, sigma: Any) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """The best possible noise prediction for data of two kinds, N(±1, 1/4): smooth, as a trained model is."""

    def noise(x: torch.Tensor, k: float) -> torch.Tensor:
        a, b = level(alpha, sigma, k)
        variance = a * a / 4 + b * b
        mean = a / 4 / variance * x + (1 - a * a / 4 / variance) * torch.tanh(a * x / variance)
        return (x - a * mean) / b

    return noise


def start(shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def answer(kind: str, eps: Any, x: Any, alpha: float, sigma: float) -> Any:
    """The same prediction in the form that the scheduler expects."""
    image = (x - sigma * eps) / alpha
    if kind in ("flow", "flow_prediction"):
        return eps - image
    if kind == "trigflow":  # F of x_0 = cos(a) x - sin(a) F
        return (alpha * x - image) / math.sqrt(1 - alpha**2)
    if kind == "cosine":
        return eps
    if kind == "inverted":
        return image - eps
    return {"epsilon": eps, "sample": image, "v_prediction": alpha * eps - sigma * image}[kind]


def edm_answer(kind: str, eps: Any, x: Any, sigma: float, data: float) -> Any:
    """The same prediction as EDM's network F gives it: x_0 = c_skip x ± c_out F (arXiv 2206.00364, table 1)."""
    skip, out = data**2 / (sigma**2 + data**2), sigma * data / math.sqrt(sigma**2 + data**2)
    return (x - sigma * eps - skip * x) / (out if kind == "epsilon" else -out)


def set_own_times(scheduler: Any, steps: int) -> None:
    """diffusers' own times."""
    options: dict[str, Any] = {"mu": 1.15} if scheduler.config.get("use_dynamic_shifting") else {}
    if type(scheduler).__name__ == "SCMScheduler" and steps != 2:
        options["intermediate_timesteps"] = None
    scheduler.set_timesteps(steps, **options)


class Stepper:
    """A scheduler's step as pipelines call it; what CogVideoX's DPM predicted a step before is given to its next."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self._before: tuple[Any, Any] = (None, None)  # an image and its time

    def __call__(self, output: torch.Tensor, time: Any, sample: torch.Tensor, **options: Any) -> torch.Tensor:
        step = self.scheduler.step
        if type(self.scheduler).__name__ == "CogVideoXDPMScheduler":
            image, then = self._before
            result, image = step(output, image, time, then, sample, **options, return_dict=False)
            self._before = (image, time)
            return result
        if type(self.scheduler).__name__ == "DDPMWuerstchenScheduler":  # a time for each sample
            time = torch.as_tensor(time).reshape(1).expand(len(sample))
        return step(output, time, sample, **options).prev_sample


def called(scheduler: Any) -> torch.Tensor:
    """What the denoiser is told at each of its calls."""
    tells_end = type(scheduler).__name__ in ("DDPMWuerstchenScheduler", "SCMScheduler")
    return scheduler.timesteps[:-1] if tells_end else scheduler.timesteps


def visits(scheduler: Any, count: int) -> list[float]:
    """Which time each call of the denoiser is at; a half: in the middle of a step."""
    name = type(scheduler).__name__
    if name in MIDDLE:
        return [k / 2 for k in range(2 * count - 1)]
    if name in TWO_CALLS:
        return [0] + [k for k in range(1, count) for _ in range(2)]
    return [0, 1, *range(1, count)] if name == "PNDMScheduler" else list(range(count))


def sample_with(
    scheduler: Any, case: Case, noise: Callable[[Any, float], Any], x: torch.Tensor, kind: str
) -> list[torch.Tensor]:
    """Runs a scheduler with a schedule on it; the sample after each call, as x = α x_0 + σ ε."""
    schedule = schedules.schedule_on(scheduler)
    assert schedule is not None
    times = schedule.times
    levels = case.levels(scheduler, times, schedule.stop)
    visited = [*visits(scheduler, len(times)), len(times)]
    at = [(k, *level(*levels, k)) for k in visited]
    unit = [1 / alpha if case.linear else 1.0 for _, alpha, _ in at]
    generator = {"generator": torch.Generator().manual_seed(7)}
    if "generator" not in inspect.signature(scheduler.step).parameters:
        generator = {}
    sample, samples, step = x * unit[0], [], Stepper(scheduler)
    for call, time in enumerate(called(scheduler)):
        k, alpha, sigma = at[call]
        seen = scheduler.scale_model_input(sample, time) if hasattr(scheduler, "scale_model_input") else sample
        if case.data:
            ratio = sigma / alpha
            torch.testing.assert_close(seen, sample / math.hypot(ratio, case.data), rtol=1e-6, atol=1e-6)
            output = edm_answer(kind, noise(sample / unit[call], k), sample, ratio, case.data)
        else:
            output = answer(kind, noise(seen, k), seen, alpha, sigma)
        sample = step(output, time, sample, **generator, **case.step)
        samples.append(sample / unit[call + 1])
    return samples


def draws(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[np.ndarray]:
    """The noises that a scheduler draws for samples of this type."""
    generator = torch.Generator().manual_seed(7)
    while True:
        yield torch.randn(shape, generator=generator, dtype=dtype).double().numpy()


def formula(
    case: Case,
    scheduler: Any,
    x: torch.Tensor,
    times: tuple[float, ...] | None = None,
    end_time: float | None = None,
    *,
    of: Callable[..., Any] | None = None,
    options: dict[str, Any] | None = None,
    between: str | None = None,
    model: Callable[[torch.Tensor, float], torch.Tensor] = curved,
) -> np.ndarray:
    """What the case's formula (or another, ``of``) gives at its times (or others) for a model of the noise."""
    times = case.times if times is None else times
    of, options = (case.formula, case.options) if of is None else (of, options or {})
    alpha, sigma = case.levels(scheduler, times, end_time, between)

    def noise(sample: np.ndarray, k: float) -> np.ndarray:
        eps = model(torch.from_numpy(sample), k).numpy()
        return answer("flow", eps, sample, *level(alpha, sigma, k)) if "flow" in of.__name__ else eps

    dtype = torch.float32 if case.name in ("DPMSolverMultistepScheduler", "SCMScheduler") else x.dtype
    known = case.arguments(of, scheduler, times, end_time)
    return of(noise, alpha, sigma, x.double().numpy(), draws(x.shape, dtype), **known, **options)


def difference(got: torch.Tensor, expected: np.ndarray) -> float:
    """The greatest difference, as a share of the greatest value."""
    return float(np.abs(got.double().numpy() - expected).max() / np.abs(expected).max())
