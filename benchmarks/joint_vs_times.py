"""Layers and times together against times alone, at one budget: ``python benchmarks/joint_vs_times.py [--quick]``.

Runs the studies digits-4 (K = 4 steps of the whole network), digits-joint and digits-joint-ranked (N_max = 4 L layer
runs) with equal trials and several seeds, re-scores each best candidate on fresh noise, and prints a table. The last
line is one JSON object; ``ratio`` is a study's mean over that of the first study.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from typing import Any

import torch
from common import by_evolution, machine, parser, say

from autodiffusion_opt import Candidate, Study
from autodiffusion_opt.study.verify import rescore

STUDIES = ("digits-4", "digits-joint", "digits-joint-ranked")


def search(name: str, seed: int, trials: int, images: int, folder: str) -> dict[str, Any]:
    """Run one study; its best candidate, re-scored three times."""
    overrides = by_evolution(name) if name == "digits-4" else ()
    study = Study.load(name, storage=f"sqlite:///{folder}/{name}-{seed}.db", seed=seed, overrides=overrides)
    study.run(trials, progress=False)
    best = study.best()
    candidate = best.candidate
    scored = rescore(study.problem, {"best": candidate}, images=images, repeats=3)["best"]
    say(f"{name} seed {seed}: {scored.mean:.2f} ± {scored.std:.2f}  {candidate}")
    return {
        "study": name,
        "seed": seed,
        "search": best.value,
        "mean": scored.mean,
        "std": scored.std,
        "steps": len(candidate.steps),
        "layer_runs": best.costs["layer_runs"],
        "candidate": describe(candidate),
    }


def describe(candidate: Candidate) -> list[dict[str, Any]]:
    """The steps as JSON values."""
    return [step.to_dict() for step in candidate.steps]


def print_table(rows: list[dict[str, Any]]) -> None:
    """Study, seed, value in the search, re-scored mean and spread, steps, layer runs."""
    print(f"{'study':<22}{'seed':>5}{'search':>9}{'mean':>9}{'std':>7}{'steps':>7}{'layer runs':>12}")
    for row in rows:
        print(
            f"{row['study']:<22}{row['seed']:>5}{row['search']:>9.2f}{row['mean']:>9.2f}{row['std']:>7.2f}"
            f"{row['steps']:>7}{row['layer_runs']:>12}"
        )


def main() -> None:
    """Search, re-score, print."""
    arguments = parser(__doc__, threads=2)
    arguments.add_argument("--trials", type=int, default=150)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--images", type=int, default=5000, help="of each of the three re-scorings")
    arguments.add_argument("--studies", nargs="+", default=STUDIES, choices=STUDIES)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    seeds, trials, images = (1, 14, 500) if options.quick else (options.seeds, options.trials, options.images)
    with tempfile.TemporaryDirectory() as folder:
        rows = [search(name, seed, trials, images, folder) for name in options.studies for seed in range(seeds)]
    print_table(rows)
    means = {name: statistics.mean(row["mean"] for row in rows if row["study"] == name) for name in options.studies}
    ratio = {name: round(mean / means[options.studies[0]], 4) for name, mean in means.items()}
    print(json.dumps({"ratio": ratio, "trials": trials, "images": images, "rows": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
