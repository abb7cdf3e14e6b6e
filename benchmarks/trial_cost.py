"""What one trial costs, and how much of it is not the denoiser: ``python benchmarks/trial_cost.py [--quick]``.

Times whole trials of the study digits-4 (4 DDIM steps) and, inside them, the UNet's forward passes; then what putting
a candidate on a pipeline and the scheduler's patched step add, against the untouched pipeline, interleaved.
The last line is one JSON object: ``seconds_per_trial``, ``outside_unet_share``, ``install_ms_per_step``.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch
from common import by_evolution, machine, parser, say

import autodiffusion_opt as ado
from autodiffusion_opt.sampling.generate import ImageSampler, noise_generator
from autodiffusion_opt.study.config import load_study_config
from autodiffusion_opt.study.problem import Problem, load_problem


class Stopwatch:
    """Adds up the wall time of a module's forward passes."""

    def __init__(self, module: Any) -> None:
        self.seconds = 0.0
        self._forward, self._module = module.forward, module
        module.forward = self._timed

    def _timed(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        output = self._forward(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        return output

    def remove(self) -> None:
        """Take it off again."""
        del self._module.forward


def time_trials(problem: Problem, images: int, rounds: int) -> tuple[float, float]:
    """Median seconds of a trial, and the median share of it outside the UNet's forward passes."""
    candidate = problem.space.baselines()["quadratic"]
    unet = problem.sampler.pipeline.unet
    list(problem.objective.measure(candidate, images=250))  # warm up
    seconds, shares = [], []
    for done in range(rounds):
        watch = Stopwatch(unet)
        try:
            *_, score = problem.objective.measure(candidate, images=images)
        finally:
            watch.remove()
        taken = score.seconds
        seconds.append(taken)
        shares.append(1 - watch.seconds / taken)
        say(f"trial {done + 1}/{rounds}: {taken:.2f} s, outside the UNet {shares[-1]:.1%}")
    return statistics.median(seconds), statistics.median(shares)


def time_install(problem: Problem, steps: int, rounds: int) -> float:
    """Milliseconds a step that an installed candidate adds to one image's call; the denoiser does nothing here."""
    pipeline = problem.sampler.pipeline
    sampler = ImageSampler(pipeline, micro_batch=1, batch_size=1)
    candidate = ado.Candidate.from_time_steps(range(0, 10 * steps, 10))
    pipeline.unet.forward = lambda sample, *args, **kwargs: type("Output", (), {"sample": sample})
    plain, installed = [], []
    try:
        for _ in range(rounds):
            start = time.perf_counter()
            pipeline(batch_size=1, num_inference_steps=steps, generator=[noise_generator(0, 0)], output_type="pt")
            middle = time.perf_counter()
            next(sampler.images(candidate, [0], 0))
            plain.append(middle - start)
            installed.append(time.perf_counter() - middle)
    finally:
        del pipeline.unet.forward
    return (statistics.median(installed) - statistics.median(plain)) / steps * 1e3


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, threads=2)
    arguments.add_argument("--images", type=int, default=1000)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    problem = load_problem(load_study_config("digits-4", by_evolution("digits-4")))
    seconds, share = time_trials(problem, options.images, rounds=3 if options.quick else 15)
    overhead = time_install(problem, steps=50, rounds=10 if options.quick else 50)
    measured = {
        "seconds_per_trial": round(seconds, 4),
        "outside_unet_share": round(share, 4),
        "install_ms_per_step": round(overhead, 4),
        "images": options.images,
        "steps": 4,
        "machine": machine(),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
