"""Wall time against the share of FLOPs that bypassed layers save, on a UNet of ADM's layout.

    python benchmarks/layer_bypass.py [--quick] [--threads N]

Ideal: half of the FLOPs take half of the time, a line of slope 1 (relative time over relative FLOPs kept).
All points are measured side by side, one forward pass of each per round in shuffled order, and each is
compared with the whole network of its own round: a machine that slows down for a while slows all of them.
The last line of stdout is one JSON object; progress goes to stderr.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import adm, machine, parser, say

from autodiffusion_opt.sampling.layers import Layer, install_bypass, list_layers, total_flops

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of the FLOPs, to be removed


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    computer = machine()
    say(f"{computer['processor']}, {computer['cores']} cores, {options.threads} threads, torch {computer['torch']}")
    denoiser = adm(pixels=32, width=96 if options.quick else 128)
    points = _points(denoiser, sets=2 if options.quick else 3)
    _measure(denoiser, points, rounds=7 if options.quick else 15)
    slope, intercept = _line(points)
    measured = {
        "benchmark": "layer_bypass",
        "slope": round(slope, 3),
        "intercept": round(intercept, 3),
        "overhead_ms_per_step": round(_overhead(rounds=100 if options.quick else 400), 3),
        "seconds_whole": round(statistics.median(points[0]["seconds"]), 4),
        "gflop_whole": round(total_flops(denoiser) / 1e9, 2),
        "layers": len(list_layers(denoiser)),
        "points": [{key: point[key] for key in ("kept", "time", "removed")} for point in points],
        "machine": computer,
    }
    say(f"relative time = {slope:.3f} × FLOPs kept + {intercept:.3f}")
    say(f"58 hooks that let their layers run: {measured['overhead_ms_per_step']} ms a step")
    print(json.dumps(measured))


def _points(denoiser: Any, sets: int) -> list[dict[str, Any]]:
    """For each share, some random sets of layers that save about as much; the whole network is first."""
    layers, total = list_layers(denoiser), total_flops(denoiser)
    generator = random.Random(0)
    chosen = [_choose(layers, share * total, generator) for share in SHARES for _ in range(sets if share else 1)]
    return [_point(gone, total) for gone in chosen]


def _choose(layers: list[Layer], wanted: float, generator: random.Random) -> list[Layer]:
    """Layers in random order, as long as they fit into what is to be saved."""
    gone: list[Layer] = []
    for layer in generator.sample(layers, len(layers)):
        if layer.saved_flops <= wanted:
            wanted -= layer.saved_flops
            gone.append(layer)
    return gone


def _point(gone: list[Layer], total: int) -> dict[str, Any]:
    kept = round(1 - sum(layer.saved_flops for layer in gone) / total, 4)
    return {"removed": len(gone), "indices": {layer.index for layer in gone}, "kept": kept, "seconds": []}


def _measure(denoiser: Any, points: list[dict[str, Any]], rounds: int) -> None:
    size = denoiser.config.sample_size
    x = torch.randn(1, 3, size, size)
    generator = random.Random(1)
    for number in range(rounds + 1):
        for point in generator.sample(points, len(points)):
            with install_bypass(denoiser, [point["indices"]], lambda: 0):
                seconds = _seconds(lambda: denoiser(x, 5))
            if number:  # the first round warms up
                point["seconds"].append(seconds)
        say(f"round {number} of {rounds}", end="\r")
    say("")
    for point in points:
        ratios = [own / whole for own, whole in zip(point["seconds"], points[0]["seconds"], strict=True)]
        point["time"] = round(statistics.median(ratios), 4)
        say(f"  {point['kept']:.1%} of the FLOPs: {point['time']:.1%} of the time, {point['removed']} removed")


def _seconds(run: Callable[[], Any]) -> float:
    with torch.no_grad():
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def _line(points: list[dict[str, Any]]) -> tuple[float, float]:
    """Least squares: slope and intercept of relative time over relative FLOPs kept."""
    slope, intercept = statistics.linear_regression(
        [point["kept"] for point in points], [point["time"] for point in points]
    )
    return slope, intercept


def _overhead(rounds: int) -> float:
    """Milliseconds a step that the hooks cost where all 58 layers have one and none is removed at this step.

    On a network so small that little else takes time.
    """
    denoiser = adm(pixels=8, width=8, groups=8)
    everything = {layer.index for layer in list_layers(denoiser)}
    x = torch.randn(1, 3, 8, 8)
    differences = []
    for _ in range(rounds):
        bare = _seconds(lambda: denoiser(x, 5))
        with install_bypass(denoiser, [(), everything], lambda: 0):
            differences.append(_seconds(lambda: denoiser(x, 5)) - bare)
    return 1000 * statistics.median(differences)


if __name__ == "__main__":
    main()
