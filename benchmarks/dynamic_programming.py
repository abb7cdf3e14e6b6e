"""How good times by dynamic programming are, and with how many images: ``python benchmarks/dynamic_programming.py``.

For both embedded models and K = 4, 6, 10: the Fréchet distance of 500 images at the times that come from so many images
and so many points of the teacher's trajectory (:mod:`autodiffusion_opt.sampling.trajectory`), beside the pipeline's
own. ``images_spent`` is what the trajectory cost, in images of K steps. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from common import machine, parser, say

from autodiffusion_opt import Candidate
from autodiffusion_opt.sampling.own import own_candidate
from autodiffusion_opt.sampling.trajectory import IMAGES, POINTS, local_errors
from autodiffusion_opt.study.config import load_study_config
from autodiffusion_opt.study.problem import Problem, load_problem

STUDIES = {"digits": "digits-4", "digits-dit": "dit-4"}
# Images and points of the trajectory; the first is what a study uses.
SIZES = ((IMAGES, POINTS), (256, POINTS), (16, POINTS), (IMAGES, 24), (IMAGES, 16))


def value_of(problem: Problem, candidate: Candidate) -> float:
    """The study's value of a candidate, on all its images."""
    *_, score = problem.objective.measure(candidate)
    return round(next(iter(score.values.values())), 3)


def rows_of(model: str, steps: list[int], sizes: tuple[tuple[int, int], ...]) -> list[dict[str, object]]:
    """A row for each number of steps and size of the trajectory."""
    problem = load_problem(load_study_config(STUDIES[model]))
    assert problem.sampler is not None
    rows: list[dict[str, object]] = []
    for images, points in sizes:
        measured = local_errors(problem.sampler, problem.info, images=images, points=points)
        for count in steps:
            times = measured.errors.best_times(count)
            spent = round(measured.images * measured.nfe / count)
            value = value_of(problem, Candidate.from_time_steps(times))
            row = {"model": model, "steps": count, "images": images, "points": points, "images_spent": spent}
            rows.append(row | {"times": times, "value": value})
            say(f"{model} K = {count}, {images} images, {points} points: {value:.2f} at {[int(t) for t in times]}")
    for count in steps:
        own = own_candidate(problem.sampler, count)
        rows.append({"model": model, "steps": count, "times": own.times, "value": value_of(problem, own), "own": True})
    return rows


def print_table(rows: list[dict[str, object]]) -> None:
    """A line a row."""
    print(f"{'model':<12}{'K':>3}{'images':>8}{'points':>8}{'spent':>8}{'value':>9}")
    for row in rows:
        keys = ("images", "points", "images_spent")
        sizes = f"{'own':>24}" if "own" in row else "".join(f"{row[key]:>8}" for key in keys)
        print(f"{row['model']:<12}{row['steps']:>3}{sizes}{row['value']:>9.2f}")


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, threads=2)
    arguments.add_argument("--models", nargs="+", default=list(STUDIES), choices=list(STUDIES))
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    steps, sizes = ([4], SIZES[:1]) if options.quick else ([4, 6, 10], SIZES)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUTODIFFUSION_CACHE"] = str(Path(folder))  # nothing is taken from an earlier run
        rows = [row for model in options.models for row in rows_of(model, steps, sizes)]
    print_table(rows)
    print(json.dumps({"rows": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
