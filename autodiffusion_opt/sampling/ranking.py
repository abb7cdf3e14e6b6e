"""Which layers matter least, and when: measured once, so that a space need only say how many are left out.

The pipeline samples some images with the whole network; some of its calls of the denoiser, in each third of the time
range, are kept as they came, conditions and guidance batches included. Each is repeated with one layer bypassed, on
the same input: what changes is that layer's doing alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils._pytree import tree_map

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.example_call import learn_layers
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.hooks import before_forward
from autodiffusion_opt.sampling.introspect import read_model_info
from autodiffusion_opt.sampling.layers import install_bypass
from autodiffusion_opt.sampling.layers.listing import known_layers
from autodiffusion_opt.sampling.schedule import schedule_on
from autodiffusion_opt.space.model_info import third_of

THIRDS = 3
# Steps of the run whose inputs are kept, a third of the range: enough that they are what a good sampler meets.
STEPS_PER_THIRD = 10
# What the ranking is averaged over, unless told.
IMAGES, TIMES_PER_THIRD = 16, 2

# The arguments of one call of the denoiser.
Call = tuple[tuple[Any, ...], dict[str, Any]]


@torch.inference_mode()
def rank_layers(
    sampler: ImageSampler,
    *,
    images: int = IMAGES,
    seed: int = 0,
    times_per_third: int = TIMES_PER_THIRD,
    progress: Progress = silent,
) -> tuple[tuple[int, ...], ...]:
    """For each third of the time range, noise to image, the removable layers from the one that matters least.

    A layer matters by the relative L2 change of the denoiser's output when it alone is removed, averaged over the
    calls of that third. Of equal layers the earlier comes first.

    Args:
        sampler: whose pipeline is left as it was found, also after an exception.
        images: how many are sampled.
        seed: of their noise.
        times_per_third: calls kept in each third.
        progress: is told of the steps sampled and of the layers measured.

    Raises:
        UserError: for a pipeline with a candidate applied, or whose layers cannot be bypassed; for counts below 1.
    """
    pipeline = sampler.pipeline
    for name, value in (("images", images), ("times_per_third", times_per_third)):
        if value < 1:
            raise UserError(f"{name} must be 1 or more; got {value}")
    if schedule_on(pipeline.scheduler) is not None:
        raise UserError("layers are ranked on a pipeline without a candidate: remove(pipeline) first")
    denoiser = denoiser_of(pipeline)
    learn_layers(pipeline)
    layers = [layer.index for layer in known_layers(denoiser) if layer.removable]

    # As few equal parts as the micro batch allows: images that fill up the last call would count twice.
    size = -(-images // -(-images // sampler.micro_batch))
    even = replace(sampler, micro_batch=size, batch_size=size, frames=1)

    def sample(candidate: Candidate) -> None:
        for _ in even.images(candidate, range(images), seed):
            pass

    thirds = _kept_calls(pipeline, sample, times_per_third, progress)
    whole = [[_output(denoiser, kept) for kept in calls] for calls in thirds]
    changes: dict[int, list[float]] = {}
    for done, layer in enumerate(layers, start=1):
        with install_bypass(denoiser, [[layer]], lambda: 0):
            changes[layer] = [_change(denoiser, *third) for third in zip(thirds, whole, strict=True)]
        progress("ranking layers", done, len(layers))
    return tuple(tuple(sorted(layers, key=lambda layer: (changes[layer][third], layer))) for third in range(THIRDS))


def _kept_calls(
    pipeline: Any, sample: Callable[[Candidate], None], times_per_third: int, progress: Progress
) -> list[list[Call]]:
    """Calls of the denoiser while the pipeline samples, by third of the time range."""
    info = read_model_info(pipeline)
    times = _times(info.lowest, info.highest, max(STEPS_PER_THIRD, times_per_third))
    third_at = [third_of(time, info.lowest, info.highest) for time in times]
    steps_in = [[step for step, third in enumerate(third_at) if third == wanted] for wanted in range(THIRDS)]
    chosen = {step for steps in steps_in for step in _spread(steps, times_per_third)}
    kept: list[list[Call]] = [[] for _ in range(THIRDS)]

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        schedule = schedule_on(pipeline.scheduler)
        assert schedule is not None  # the sampler installed it
        step = schedule.step
        progress("sampling to rank layers", step, len(times))
        if step in chosen:
            kept[third_at[step]].append((_copied(args), _copied(kwargs)))

    with before_forward(denoiser_of(pipeline), keep):
        sample(Candidate.from_time_steps(times))
    # A denoiser that is not called in some third (there may be two, one for each part) has one ranking for all.
    every = [call for calls in kept for call in calls]
    return [calls or every for calls in kept]


def _times(lowest: float, highest: float, per_third: int) -> list[float]:
    """Even integer times from the noisiest on, as "trailing"; fewer where there are no more."""
    count = THIRDS * per_third
    even = (highest - (highest - lowest) * step / count for step in range(count))
    return sorted({min(max(float(round(time)), math.ceil(lowest)), math.floor(highest)) for time in even}, reverse=True)


def _spread(steps: Sequence[int], count: int) -> list[int]:
    """``count`` of ``steps``, evenly, each in the middle of its part; all where there are no more."""
    count = min(count, len(steps))
    return [steps[(2 * i + 1) * len(steps) // (2 * count)] for i in range(count)]


def _copied(arguments: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, arguments)


def _output(denoiser: torch.nn.Module, kept: Call) -> torch.Tensor:
    args, kwargs = kept
    output: torch.Tensor = denoiser(*_copied(args), **_copied(kwargs))[0]  # a tuple, or an output that acts as one
    return output.double()


def _change(denoiser: torch.nn.Module, calls: Sequence[Call], whole: Sequence[torch.Tensor]) -> float:
    """Mean of ‖f₋ₗ(x) - f(x)‖ / ‖f(x)‖ over calls; infinite where an output is not finite."""
    total = 0.0
    for kept, output in zip(calls, whole, strict=True):
        total += float((_output(denoiser, kept) - output).norm() / output.norm())
    return total / len(calls) if math.isfinite(total) else math.inf
