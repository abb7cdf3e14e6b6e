"""Layers and times together against times alone, at one budget: ``python benchmarks/joint_vs_times.py [--quick]``.

For both embedded models: times alone with K = 4 whole networks (``times``), and joint spaces at the layer runs of four
whole networks (``layer runs``) and at their FLOPs (``flops``). All with the default optimizer, as many trials and
several seeds; the best of each is measured again on fresh noise. The last line is one JSON object; ``ratio`` is a mean
over seeds, divided by that of times alone.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from typing import Any

import torch
from common import machine, parser, say

from autodiffusion_opt import Candidate, Study
from autodiffusion_opt.study.verify import rescore

TIMES, LAYER_RUNS, FLOPS = "times", "layer runs", "flops"
# Model -> budget -> study and what is changed in it.
STUDIES: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    model: {TIMES: (times, ()), LAYER_RUNS: (joint, ()), FLOPS: (joint, ("space=joint-4-networks",))}
    for model, times, joint in (("digits", "digits-4", "digits-joint"), ("digits-dit", "dit-4", "dit-joint"))
}


def search(model: str, budget: str, seed: int, trials: int, images: int, folder: str) -> dict[str, Any]:
    """Run one study; its best candidate, re-scored three times."""
    name, overrides = STUDIES[model][budget]
    storage = f"sqlite:///{folder}/{model}-{budget.replace(' ', '-')}-{seed}.db"
    study = Study.load(name, storage=storage, seed=seed, overrides=overrides)
    study.run(trials, progress=False)
    best = study.best()
    candidate = best.candidate
    scored = rescore(study.problem, {"best": candidate}, images=images, repeats=3)["best"]
    say(f"{model}, {budget}, seed {seed}: {scored.mean:.2f} ± {scored.std:.2f}  {candidate}")
    return {
        "model": model,
        "budget": budget,
        "seed": seed,
        "search": best.value,
        "mean": scored.mean,
        "std": scored.std,
        "steps": len(candidate.steps),
        "layer_runs": best.costs["layer_runs"],
        "networks": best.costs["flops"] / study.problem.info.flops,
        "candidate": describe(candidate),
    }


def describe(candidate: Candidate) -> list[dict[str, Any]]:
    """The steps as JSON values."""
    return [step.to_dict() for step in candidate.steps]


def print_table(rows: list[dict[str, Any]]) -> None:
    """Model, budget, seed, value in the search, re-scored mean and spread, steps, layer runs, FLOPs in networks."""
    print(
        f"{'model':<12}{'budget':<12}{'seed':>5}{'search':>9}{'mean':>9}{'std':>7}{'steps':>7}{'layer runs':>12}"
        f"{'networks':>10}"
    )
    for row in rows:
        print(
            f"{row['model']:<12}{row['budget']:<12}{row['seed']:>5}{row['search']:>9.2f}{row['mean']:>9.2f}"
            f"{row['std']:>7.2f}{row['steps']:>7}{row['layer_runs']:>12}{row['networks']:>10.2f}"
        )


def main() -> None:
    """Search, re-score, print."""
    arguments = parser(__doc__, threads=2)
    arguments.add_argument("--trials", type=int, default=150)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--images", type=int, default=5000, help="of each of the three re-scorings")
    arguments.add_argument("--models", nargs="+", choices=list(STUDIES), help="(default: all)")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    seeds, trials, images = (1, 12, 200) if options.quick else (options.seeds, options.trials, options.images)
    models = options.models or (["digits"] if options.quick else list(STUDIES))
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            search(model, budget, seed, trials, images, folder)
            for model in models
            for budget in STUDIES[model]
            for seed in range(seeds)
        ]
    print_table(rows)
    means = {
        (model, budget): statistics.mean(
            row["mean"] for row in rows if (row["model"], row["budget"]) == (model, budget)
        )
        for model in models
        for budget in STUDIES[model]
    }
    ratio = {
        model: {budget: round(means[model, budget] / means[model, TIMES], 4) for budget in STUDIES[model]}
        for model in models
    }
    print(json.dumps({"ratio": ratio, "trials": trials, "images": images, "rows": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
