"""What the Fréchet distance of a trial costs, beside two other ways to it: ``python benchmarks/frechet.py [--quick]``.

N random features of 2,048 dimensions against a reference of 2,048, in float64, all in one run. What is timed is what a
trial pays after its last image, with what the reference gives already at hand:

- ours: from the collected features (N up to 0.75 D) or their sums to the distance; the reference's root is kept.
- torch_fidelity, sqrtm: from the mean and covariance of the features to the distance, by torch-fidelity's own function
  and by scipy.linalg.sqrtm. The covariance, which ours does not need for few images, is not charged to them.

Every way is run three times and the fastest counts, but sqrtm runs once. ``--quick`` leaves out N above 1,000 and
sqrtm but at N = 1,000. The last line is one JSON object; ``speedup_vs_sqrtm`` and ``speedup_vs_torch_fidelity`` are
those at N = 1,000, and ``largest_difference`` is the greatest relative one between the three distances.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import scipy.linalg
from common import machine
from numpy.typing import NDArray
from torch_fidelity.metric_fid import fid_statistics_to_metric

from autodiffusion_opt.objective.statistics import FrechetDistance, Gaussian, Moments

DIMENSIONS = 2048
SIZES = (500, 1000, 2000, 5000, 10_000, 50_000)
QUICK_SIZES = (500, 1000)
BLOCK = 1000
COMPARED = 1000
REPEATS = 3


@functools.cache
def turn() -> NDArray[np.float32]:
    """A random rotation, so that the features are correlated."""
    return np.linalg.qr(np.random.default_rng(7).normal(size=(DIMENSIONS, DIMENSIONS)))[0].astype(np.float32)


def blocks(count: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Random features, correlated and of unequal scale, float32, ``BLOCK`` rows at a time."""
    rng = np.random.default_rng(seed)
    scale = np.geomspace(0.01, 1, DIMENSIONS, dtype=np.float32)
    for start in range(0, count, BLOCK):
        rows = min(BLOCK, count - start)
        yield rng.standard_normal((rows, DIMENSIONS), dtype=np.float32) * scale @ turn() + 0.01 * seed


def seconds(call: Callable[[], float], times: int) -> tuple[float, float]:
    """The fastest of some calls, and what it gave."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        value = call()
        taken.append(time.perf_counter() - begun)
    return min(taken), value


def by_sqrtm(generated: Gaussian, reference: Gaussian) -> float:
    """Equation 6 of Heusel et al. (2017) as it is written."""
    difference = generated.mean - reference.mean
    root = scipy.linalg.sqrtm(generated.covariance @ reference.covariance).real
    return float(difference @ difference + np.trace(generated.covariance + reference.covariance - 2 * root))


def by_torch_fidelity(generated: Gaussian, reference: Gaussian) -> float:
    """torch-fidelity's own function of statistics."""
    both: list[dict[str, NDArray[np.float64]]] = [
        {"mu": gaussian.mean, "sigma": gaussian.covariance} for gaussian in (generated, reference)
    ]
    return float(fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"])


def measure(count: int, reference: Gaussian, with_sqrtm: bool) -> dict[str, float]:
    """Seconds of each way at a number of images."""
    ours, moments = FrechetDistance(reference), Moments(DIMENSIONS)
    for block in blocks(count, seed=1):
        ours.add(block)
        moments.add(block)
    generated = moments.gaussian()
    figures, values = {"images": float(count)}, []
    ways: dict[str, tuple[Callable[[], float], int]] = {
        "ours": (ours.value, REPEATS),
        "torch_fidelity": (lambda: by_torch_fidelity(generated, reference), REPEATS),
    }
    if with_sqrtm:
        ways["sqrtm"] = (lambda: by_sqrtm(generated, reference), 1)
    for way, (call, times) in ways.items():
        taken, value = seconds(call, times)
        figures[way] = round(taken, 4)
        values.append(value)
    figures["largest_difference"] = float(np.ptp(values) / max(values))
    print("  ".join(f"{key} {value:.4g}" for key, value in figures.items()), file=sys.stderr)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    options = parser.parse_args()
    moments = Moments(DIMENSIONS)
    for block in blocks(2 * DIMENSIONS, seed=0):
        moments.add(block)
    reference = moments.gaussian()
    root_seconds, _ = seconds(lambda: float(reference.root[0, 0]), 1)
    sizes = QUICK_SIZES if options.quick else SIZES
    rows = [measure(size, reference, not options.quick or size == COMPARED) for size in sizes]
    at = next(row for row in rows if row["images"] == COMPARED)
    result = {
        "speedup_vs_sqrtm": round(at["sqrtm"] / at["ours"], 1),
        "speedup_vs_torch_fidelity": round(at["torch_fidelity"] / at["ours"], 1),
        "images": COMPARED,
        "dimensions": DIMENSIONS,
        "largest_difference": max(row["largest_difference"] for row in rows),
        "seconds_of_the_references_root": round(root_seconds, 2),
        "seconds": rows,
        "machine": machine() | {"load": round(os.getloadavg()[0], 2)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
