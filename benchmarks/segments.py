"""Segments and partial steps against time steps at equal FLOPs: ``python benchmarks/segments.py [--quick]``.

At each budget of whole networks: uniform steps, uniform caching (the best of the intervals 2, 3 and 5),
searched segments on the uniform schedule, searched uneven times, and times with partial steps beside them, for which
the budget is 0.2 networks more. The best of each is measured again on fresh noise, 3 times. The last line is one JSON
object.
"""

from __future__ import annotations

import json
import tempfile
from typing import Any

import torch
from common import machine, parser, say

from autodiffusion_opt import Candidate, Study
from autodiffusion_opt.space import cost
from autodiffusion_opt.study.verify import rescore

UNIFORM, CACHING, SEGMENTS, TIMES, CACHED = "uniform", "caching", "segments", "times", "times, cached"
BUDGETS = (4, 6, 8, 10, 20, 40)
STUDIES = {"digits": "digits-4", "digits-dit": "dit-4"}
EXTRA = 0.2  # of a network, for partial steps beside K whole ones


def spaces(networks: int) -> dict[str, dict[str, Any]]:
    """The tables of the searched spaces."""
    count = max(networks // 2, 1)
    segments = {"kind": "segments", "steps": 5 * networks, "segments": [count, networks], "max_flops": float(networks)}
    times = {"kind": "time-steps", "steps": networks}
    cached = {"kind": "cached-steps", "max_flops": networks + EXTRA, "steps_max": networks + 4}
    return {SEGMENTS: segments, TIMES: times, CACHED: cached}


def searched(
    model: str, networks: int, seed: int, trials: int, rungs: list[int], folder: str
) -> tuple[Any, dict[str, Candidate]]:
    """The problem, and the best candidate of each way."""
    like = Study.load(STUDIES[model]).config
    pipeline, objective = (part.model_dump(mode="json") for part in (like.pipeline, like.objective))
    best: dict[str, Candidate] = {}
    storage = f"sqlite:///{folder}/{model}-{networks}-{seed}.db"
    for name, table in spaces(networks).items():
        # Times with partial steps go on from the best times alone, which are in their space.
        starts = [f"{TIMES}-{seed}"] if name == CACHED else ["dp"]
        study = Study(
            f"{name.replace(', ', '-')}-{seed}",
            pipeline=pipeline,
            space=table,
            objective=objective | {"images": rungs},
            optimizer={"kind": "local", "start_from": starts},
            trials=trials,
            seed=seed,
            storage=storage,
        )
        study.run(progress=False)
        best[name] = study.best().candidate
        if name == SEGMENTS:
            presets = study.problem.space.presets()
            value = {result.candidate: result.value for result in study.top(trials)}
            caching = [each for key, each in presets.items() if key.startswith("full every") and each in value]
            best[UNIFORM] = presets["fewer steps"]
            if caching:
                best[CACHING] = min(caching, key=value.__getitem__)
    return study.problem, best


def main() -> None:
    """Search, re-score, print."""
    arguments = parser(__doc__, threads=1)
    arguments.add_argument("--trials", type=int, default=150)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--images", type=int, default=5000, help="of each of the three re-scorings")
    arguments.add_argument("--networks", type=int, nargs="+", default=list(BUDGETS))
    arguments.add_argument("--models", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    trials, seeds, images = (20, 1, 200) if options.quick else (options.trials, options.seeds, options.images)
    rungs = [50, 100] if options.quick else [100, 500]
    budgets, models = ([4], ["digits"]) if options.quick else (options.networks, options.models)
    rows: list[dict[str, Any]] = []
    print(f"{'model':<12}{'networks':>9}{'seed':>5}  {'way':<15}{'cost':>7}{'mean':>9}{'std':>7}  candidate")
    with tempfile.TemporaryDirectory() as folder:
        for model, networks, seed in ((m, n, s) for m in models for n in budgets for s in range(seeds)):
            say(f"{model}, {networks} networks, seed {seed}")
            problem, best = searched(model, networks, seed, trials, rungs, folder)
            scored = rescore(problem, best, images=images, repeats=3)
            for name, candidate in best.items():
                networks_of = cost.flops(problem.info, candidate) / problem.info.flops
                row = {"model": model, "networks": networks, "seed": seed, "way": name, "cost": round(networks_of, 3)}
                row |= {"mean": scored[name].mean, "std": scored[name].std, "candidate": candidate.to_dict()["steps"]}
                rows.append(row)
                print(
                    f"{model:<12}{networks:>9}{seed:>5}  {name:<15}{networks_of:>7.2f}{row['mean']:>9.2f}"
                    f"{row['std']:>7.2f}  {candidate}",
                    flush=True,
                )
    print(json.dumps({"rows": rows, "trials": trials, "images": images, "machine": machine()}))


if __name__ == "__main__":
    main()
