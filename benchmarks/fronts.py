"""A front of two values against searches with one: ``python benchmarks/fronts.py [--quick]``.

Of the embedded model ``digits``: one study of (fid, flops) by NSGA-II, one by TPE, and three studies of fid alone, by
TPE, with 3, 4 and 6 steps of the whole network, which together have as many images. All are re-scored on fresh noise.
The last line is one JSON object: ``ratio`` is, for each optimizer of a front and each number of steps, the re-scored
fid of the best member of the front that costs no more than the winner of that many steps, over the winner's; a
``ratio`` of at most 1 means that the front contains or dominates the winner.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from common import by_evolution, machine, parser, say

from autodiffusion_opt import Study
from autodiffusion_opt.study.verify import Difference, Rescored, rescore

FRONT = "digits-front"
OPTIMIZERS = {"nsga2": {"kind": "optuna:nsga2", "population_size": 30}, "tpe": {"kind": "optuna:tpe"}}
STEPS = (3, 4, 6)


def toml(table: Mapping[str, Any]) -> str:
    """An inline table."""
    return "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) + "}"


def front_of(optimizer: str, trials: int, seed: int, folder: str) -> Study:
    """The study of two values, run."""
    overrides = (f"optimizer={toml(OPTIMIZERS[optimizer])}",)
    study = Study.load(FRONT, storage=f"sqlite:///{folder}/{optimizer}.db", seed=seed, overrides=overrides)
    study.run(trials, progress=False)
    return study


def winner_of(steps: int, trials: int, seed: int, folder: str) -> Study:
    """The study of one value with so many steps of the whole network, run."""
    changes = (f"space={toml({'kind': 'time-steps', 'steps': steps})}", f"optimizer={toml(OPTIMIZERS['tpe'])}")
    overrides = (*by_evolution("digits-4"), *changes)
    study = Study.load("digits-4", storage=f"sqlite:///{folder}/{steps}.db", seed=seed, overrides=overrides)
    study.run(trials, progress=False)
    return study


def compared(front: Mapping[str, Rescored], winner: Rescored, flops: float) -> dict[str, Any]:
    """The best member of a front that costs no more than a winner, beside it."""
    affordable = [scored for scored in front.values() if scored.mean_of("flops") <= flops]
    if not affordable:
        return {"winner": winner.mean, "front": None, "ratio": None, "candidate": None}
    member = min(affordable, key=lambda scored: scored.mean)
    gap = Difference.of(member, winner)
    return {
        "winner": winner.mean,
        "front": member.mean,
        "ratio": round(member.mean / winner.mean, 4),
        "differs_by_more_than_noise": gap.is_more_than_noise,
        "share_of_its_flops": round(member.mean_of("flops") / flops, 4),
        "candidate": str(member.candidate),
    }


def main() -> None:
    """Search, re-score, compare."""
    arguments = parser(__doc__)
    arguments.add_argument("--trials", type=int, default=450, help="of each front; a third of it for each winner")
    arguments.add_argument("--images", type=int, default=2000, help="of each of the three re-scorings")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    trials, images, repeats = (18, 100, 2) if options.quick else (options.trials, options.images, 3)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        winners: dict[int, Rescored] = {}
        for steps in STEPS:
            study = winner_of(steps, trials // len(STEPS), options.seed, folder)
            best = {"best": study.best().candidate}
            winners[steps] = rescore(study.problem, best, images=images, repeats=repeats)["best"]
            say(f"{steps} steps: {winners[steps].mean:.2f}  {winners[steps].candidate}")
        for optimizer in OPTIMIZERS:
            study = front_of(optimizer, trials, options.seed, folder)
            members = {f"front {rank}": result.candidate for rank, result in enumerate(study.top(), 1)}
            front = rescore(study.problem, members, images=images, repeats=repeats)
            whole = study.problem.info.flops
            results[optimizer] = {
                str(steps): compared(front, winner, steps * whole) for steps, winner in winners.items()
            }
            for steps, row in results[optimizer].items():
                say(f"{optimizer}, front of {len(front)}: {steps} steps {row}")
    ratio = {name: {steps: row["ratio"] for steps, row in rows.items()} for name, rows in results.items()}
    print(json.dumps({"ratio": ratio, "trials": trials, "images": images, "rows": results, "machine": machine()}))


if __name__ == "__main__":
    main()
