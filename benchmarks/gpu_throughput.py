"""Images a second of a searched run, against the pure forward passes that it is made of.

    python benchmarks/gpu_throughput.py [--quick] [--threads N]

The run: ``ImageSampler`` on a DDIM pipeline with a candidate of uneven times and other removed layers at each step,
the layers compiled. Measured beside it, in the same rounds: calls of the same denoiser alone, as many and of the same
shape.
``of_pure_forward`` is the throughput of the run over that of whole forward passes, scaled by the FLOPs that the
candidate keeps: 1 where the pipeline, the scheduler and the library cost nothing and a removed layer saves time as it
saves FLOPs. ``of_same_forward`` compares with forward passes in which the same layers are removed.

On a GPU: ADM's UNet for 64 x 64 pixels in bfloat16. Without one (key ``device``): a small UNet in float32 on the CPU,
with ``--quick`` not compiled, since compiling takes a minute there. Weights are random.
The last line of stdout is one JSON object; progress goes to stderr.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from common import adm, machine, parser, say

import autodiffusion_opt as ado
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.layers import install_bypass, list_layers, total_flops

# Uneven times, and the share of the denoiser's FLOPs that is removed at each.
TIMES = (967, 803, 590, 402, 333, 187, 96, 21)
REMOVED_SHARES = (0.4, 0.3, 0.0, 0.2, 0.1, 0.3, 0.0, 0.2)


@dataclass(frozen=True)
class Setting:
    """The sizes for one kind of device."""

    width: int
    head: int
    pixels: int
    batch: int
    dtype: torch.dtype


GPU = Setting(width=192, head=64, pixels=64, batch=64, dtype=torch.bfloat16)
CPU = Setting(width=32, head=32, pixels=32, batch=2, dtype=torch.float32)


def main() -> None:
    """Measure and print."""
    options = parser(__doc__).parse_args()
    diffusers.utils.logging.set_verbosity_error()  # it has advice on casting
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    device, setting = ("cuda", GPU) if on_gpu else ("cpu", CPU)
    compiled = on_gpu or not options.quick
    unet = adm(setting.pixels, setting.width, head=setting.head).to(device, setting.dtype)
    pipeline = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
    candidate, kept = _candidate(pipeline.unet)
    if compiled:
        ado.compile_layers(pipeline)
    say(f"{device}, {str(setting.dtype).removeprefix('torch.')}, {'compiled' if compiled else 'not compiled'}")
    seconds = _measure(pipeline, candidate, setting, rounds=4 if options.quick else 15)
    ratios = {name: _median_ratio(seconds[name], seconds["run"]) for name in ("whole", "same")}
    measured = {
        "benchmark": "gpu_throughput",
        "of_pure_forward": round(ratios["whole"] * kept, 4),
        "of_same_forward": round(ratios["same"], 4),
        "images_per_second": round(setting.batch / statistics.median(seconds["run"]), 3),
        "flops_kept": round(kept, 4),
        "steps": len(TIMES),
        "batch": setting.batch,
        "parameters": sum(weight.numel() for weight in pipeline.unet.parameters()),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "compiled": compiled,
        "device": device,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "machine": machine(),
    }
    if not on_gpu:
        say("no GPU is here: these figures say nothing of one")
    print(json.dumps(measured))


def _candidate(denoiser: Any) -> tuple[ado.Candidate, float]:
    """Random layers at each step, of about the wanted share of FLOPs; and the share that the whole run keeps."""
    layers, total = list_layers(denoiser), total_flops(denoiser)
    draws, removed, saved = random.Random(0), [], 0
    for share in REMOVED_SHARES:
        wanted, gone = share * total, []
        for layer in draws.sample(layers, len(layers)):
            if layer.removable and layer.saved_flops <= wanted:
                wanted -= layer.saved_flops
                gone.append(layer.index)
                saved += layer.saved_flops
        removed.append(gone)
    return ado.Candidate.from_time_steps(TIMES, removed=removed), 1 - saved / (total * len(TIMES))


def _measure(pipeline: Any, candidate: ado.Candidate, setting: Setting, rounds: int) -> dict[str, list[float]]:
    """Seconds of one batch of images in each round: the run, whole forward passes, and those with the same layers."""
    sampler = ImageSampler(pipeline, micro_batch=setting.batch, batch_size=setting.batch)
    unet = pipeline.unet
    x = torch.randn(setting.batch, 3, setting.pixels, setting.pixels).to(unet.device, unet.dtype)
    times = [torch.tensor(step, device=unet.device) for step in TIMES]

    def run() -> None:
        for images in sampler.images(candidate, range(setting.batch), 0):
            images.cpu()

    def whole() -> None:
        for step in times:
            unet(x, step)

    def same() -> None:
        now = [0]
        with install_bypass(unet, candidate.removed, lambda: now[0]):
            for now[0], step in enumerate(times):
                unet(x, step)

    ways = {"whole": whole, "run": run, "same": same}  # the whole network first: it compiles every layer
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(list(ways), len(ways)) if number else ways:
            taken = _seconds(ways[name])
            if number:  # the first round warms up
                seconds[name].append(taken)
        say(f"round {number} of {rounds}", end="\r")
    say("")
    return seconds


@torch.inference_mode()
def _seconds(way: Callable[[], None]) -> float:
    _synchronize()
    start = time.perf_counter()
    way()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _median_ratio(upper: list[float], lower: list[float]) -> float:
    """Of the rounds' own ratios: what slows the machine down for a while slows both."""
    return statistics.median(above / below for above, below in zip(upper, lower, strict=True))


if __name__ == "__main__":
    main()
