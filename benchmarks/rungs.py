"""Rungs of images with a pruner against all images for every trial: ``python benchmarks/rungs.py [--quick]``.

Each study is run twice with the same optimizer, seed and number of trials: with 500 images a trial, and with
``--rungs`` and ``--pruner``. Both winners are then measured again with the same fresh noise, and their difference is
paired over repeats. Several seeds, both embedded models. Images taken over from an earlier trial do not count.

With rungs ``micro_batch`` is the largest number that divides all of them: a call always makes ``micro_batch`` images,
so a rung of 50 images would cost 250 with the files' own. ``seconds_share`` is of the time of making and measuring
images. The last line is one JSON object; ``studies`` holds an entry for each model and seed.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from common import by_evolution, machine, parser, say

from autodiffusion_opt import Candidate, Study
from autodiffusion_opt.study.problem import Problem
from autodiffusion_opt.study.verify import Difference, Rescored, rescore
from autodiffusion_opt.trials.attributes import REUSED_FROM, SCORE

STUDIES = {"digits": "digits-4", "digits-dit": "dit-4"}


@dataclass(frozen=True)
class Search:
    """What a search cost and gave.

    Attributes:
        best: its winner.
        images: which it generated.
        seconds: of making and measuring them.
        problem: the study's model and objective.
    """

    best: Candidate
    images: int
    seconds: float
    problem: Problem


def search(name: str, seed: int, trials: int | None, folder: str, overrides: tuple[str, ...] = ()) -> Search:
    """Run a study; None: with as many trials as its file says."""
    storage = f"sqlite:///{folder}/{name}-{seed}-{len(overrides)}.db"
    study = Study.load(name, storage=storage, seed=seed, overrides=overrides)
    study.run(trials, progress=False)
    scores = [trial.user_attrs[SCORE] for trial in study.trials() if REUSED_FROM not in trial.user_attrs]
    images, seconds = (sum(score[key] for score in scores) for key in ("images", "seconds"))
    return Search(study.best().candidate, images, seconds, study.problem)


def compare(model: str, seed: int, options: Any, folder: str) -> dict[str, Any]:
    """Both searches of a model and a seed, and their winners on fresh noise."""
    micro_batch = math.gcd(*options.rungs)
    rungs = (f"objective.images={options.rungs}", f"pipeline.micro_batch={micro_batch}")
    if options.optimizer != "local":  # which has a pruner of its own
        rungs += (f"objective.pruner={options.pruner}",)
    base = (*by_evolution(STUDIES[model]), f"optimizer={options.optimizer}")
    full = search(STUDIES[model], seed, options.trials, folder, base)
    pruned = search(STUDIES[model], seed, options.trials, folder, (*base, *rungs))
    winners = {"full": full.best, "rungs": pruned.best}
    rescored = rescore(full.problem, winners, images=options.images, repeats=options.repeats)
    difference = Difference.of(rescored["rungs"], rescored["full"])
    say(f"{model} seed {seed}: {difference.sentence('rungs', 'full', less_is_better=True)}")
    return {
        "model": model,
        "seed": seed,
        "images_full": full.images,
        "images_rungs": pruned.images,
        "share": round(pruned.images / full.images, 3),
        "seconds_share": round(pruned.seconds / full.seconds, 3),
        "best_full": described(rescored["full"]),
        "best_rungs": described(rescored["rungs"]),
        "difference": asdict(difference) | {"is_more_than_noise": difference.is_more_than_noise},
    }


def described(best: Rescored) -> dict[str, Any]:
    """Mean, standard deviation and times."""
    return {"mean": round(best.mean, 3), "std": round(best.std, 3), "times": best.candidate.times}


def print_table(rows: list[dict[str, Any]]) -> None:
    """A row for each model and seed, and the means of each model."""
    print(f"{'model':<12}{'seed':>5}{'images':>9}{'rungs':>9}{'share':>7}{'time':>6}{'full':>15}{'with rungs':>15}")
    for row in rows:
        full, rungs = (f"{row[key]['mean']:.2f} ± {row[key]['std']:.2f}" for key in ("best_full", "best_rungs"))
        difference = row["difference"]
        print(
            f"{row['model']:<12}{row['seed']:>5}{row['images_full']:>9}{row['images_rungs']:>9}{row['share']:>7.2f}"
            f"{row['seconds_share']:>6.2f}{full:>15}{rungs:>15}   {difference['mean']:+.2f} ± "
            f"{difference['half_width']:.2f}{' *' if difference['is_more_than_noise'] else ''}"
        )


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Over the seeds of a model."""
    return {
        "share": round(float(np.mean([row["share"] for row in rows])), 3),
        "seconds_share": round(float(np.mean([row["seconds_share"] for row in rows])), 3),
        "best_full": round(float(np.mean([row["best_full"]["mean"] for row in rows])), 3),
        "best_rungs": round(float(np.mean([row["best_rungs"]["mean"] for row in rows])), 3),
    }


def main() -> None:
    """Search, re-score, print."""
    arguments = parser(__doc__, threads=2)
    arguments.add_argument("--models", nargs="+", default=list(STUDIES), choices=list(STUDIES))
    arguments.add_argument("--optimizer", default="evolution", help="local prunes by itself")
    arguments.add_argument("--rungs", nargs="+", type=int, default=[50, 500], help="numbers of images")
    arguments.add_argument("--pruner", default="successive-halving", help="a kind, or a TOML table")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--trials", type=int, help="another number than the studies' own")
    arguments.add_argument("--images", type=int, default=2000, help="of each repeat of the re-scoring")
    arguments.add_argument("--repeats", type=int, default=3)
    options = arguments.parse_args()
    if options.quick:
        options.models, options.seeds, options.trials, options.images = ["digits"], 1, 20, 500
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare(model, seed, options, folder) for model in options.models for seed in range(options.seeds)]
    print_table(rows)
    by_model = {model: means([row for row in rows if row["model"] == model]) for model in options.models}
    setting = {key: getattr(options, key) for key in ("rungs", "pruner", "trials", "images", "repeats")}
    print(json.dumps({"means": by_model, "studies": rows, **setting, "machine": machine()}))


if __name__ == "__main__":
    main()
