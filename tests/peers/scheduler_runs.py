"""A scheduler run as a pipeline would, beside the formula that it must equal, both on one made-up model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from peers.schedulers import Case

from autodiffusion_opt.sampling import schedule as schedules

SHAPE = (2, 3, 4, 4)


def curved(x: torch.Tensor, k: int) -> torch.Tensor:
    """A made-up noise prediction: not linear, and different at every step."""
    return 0.8 * torch.sin(1.3 * x + 0.4 * k) + 0.1 * x


def mixture(alpha: Any, sigma: Any) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """The best possible noise prediction for data of two kinds, N(±1, 1/4): smooth, as a trained model is."""

    def noise(x: torch.Tensor, k: int) -> torch.Tensor:
        a, variance = float(alpha[k]), float(alpha[k] ** 2 / 4 + sigma[k] ** 2)
        mean = a / 4 / variance * x + (1 - a * a / 4 / variance) * torch.tanh(a * x / variance)
        return (x - a * mean) / float(sigma[k])

    return noise


def start(shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def answer(kind: str, eps: Any, x: Any, alpha: float, sigma: float) -> Any:
    """The same prediction in the form that the scheduler expects."""
    image = (x - sigma * eps) / alpha
    if kind in ("flow", "flow_prediction"):
        return eps - image
    if kind == "inverted":
        return image - eps
    return {"epsilon": eps, "sample": image, "v_prediction": alpha * eps - sigma * image}[kind]


def edm_answer(kind: str, eps: Any, x: Any, sigma: float, data: float) -> Any:
    """The same prediction as EDM's network F gives it: x_0 = c_skip x ± c_out F (arXiv 2206.00364, table 1)."""
    skip, out = data**2 / (sigma**2 + data**2), sigma * data / math.sqrt(sigma**2 + data**2)
    return (x - sigma * eps - skip * x) / (out if kind == "epsilon" else -out)


class Stepper:
    """A scheduler's step as pipelines call it."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def __call__(self, output: torch.Tensor, time: Any, sample: torch.Tensor, **options: Any) -> torch.Tensor:
        return self.scheduler.step(output, time, sample, **options).prev_sample


def visits(scheduler: Any, count: int) -> list[int]:
    """Which time each call of the denoiser is at."""
    name = type(scheduler).__name__
    if "Heun" in name:
        return [0] + [k for k in range(1, count) for _ in range(2)]
    return [0, 1, *range(1, count)] if name == "PNDMScheduler" else list(range(count))


def sample_with(
    scheduler: Any, case: Case, noise: Callable[[Any, int], Any], x: torch.Tensor, kind: str
) -> list[torch.Tensor]:
    """Runs a scheduler with a schedule on it; the sample after each call, as x = α x_0 + σ ε."""
    schedule = schedules.schedule_on(scheduler)
    assert schedule is not None
    times = schedule.times
    alpha, sigma = (level.tolist() for level in case.levels(scheduler, times, schedule.stop))
    unit = [1 / level for level in alpha] if case.linear else [1.0] * len(alpha)
    at = [*visits(scheduler, len(times)), len(times)]
    generator = {"generator": torch.Generator().manual_seed(7)}
    if "generator" not in inspect.signature(scheduler.step).parameters:
        generator = {}
    sample, samples, step = x * unit[0], [], Stepper(scheduler)
    for call, time in enumerate(scheduler.timesteps):
        k = at[call]
        seen = scheduler.scale_model_input(sample, time) if hasattr(scheduler, "scale_model_input") else sample
        if case.data:
            ratio = sigma[k] / alpha[k]
            torch.testing.assert_close(seen, sample / math.hypot(ratio, case.data), rtol=1e-6, atol=1e-6)
            output = edm_answer(kind, noise(sample / unit[k], k), sample, ratio, case.data)
        else:
            output = answer(kind, noise(seen, k), seen, alpha[k], sigma[k])
        sample = step(output, time, sample, **generator, **case.step)
        samples.append(sample / unit[at[call + 1]])
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
    model: Callable[[torch.Tensor, int], torch.Tensor] = curved,
) -> np.ndarray:
    """What the case's formula (or another, ``of``) gives at its times (or others) for a model of the noise."""
    times = case.times if times is None else times
    of, options = (case.formula, case.options) if of is None else (of, options or {})
    alpha, sigma = case.levels(scheduler, times, end_time, between)

    def noise(sample: np.ndarray, k: int) -> np.ndarray:
        eps = model(torch.from_numpy(sample), k).numpy()
        return answer("flow", eps, sample, alpha[k], sigma[k]) if "flow" in of.__name__ else eps

    dtype = torch.float32 if case.name == "DPMSolverMultistepScheduler" else x.dtype
    known = case.arguments(of, scheduler, times, end_time)
    return of(noise, alpha, sigma, x.double().numpy(), draws(x.shape, dtype), **known, **options)


def difference(got: torch.Tensor, expected: np.ndarray) -> float:
    """The greatest difference, as a share of the greatest value."""
    return float(np.abs(got.double().numpy() - expected).max() / np.abs(expected).max())
