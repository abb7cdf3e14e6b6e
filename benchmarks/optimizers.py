"""How many images each optimizer needs, by real evaluations: ``python benchmarks/optimizers.py [--quick]``.

Searches on both embedded models with 4, 6 and 10 steps, and in their joint studies: with any layer sets (``joint``),
which few optimizers take, and with those of a ranking (``joint-ranked``). ``images_to_5_percent`` is what a search had
spent once its best value was within 5 % of the best that any search of that model and space found: the median over
seeds, null where fewer than half of them came so near. Images of baselines, warm starts and pruned trials count.
``local``, the default, measures in rungs; all others measure the same number of images in every trial. ``original`` is
the authors' search (``original_search.py``), with noise of its own for each trial; its value is that of the candidate
which it holds best, on the noise of all others. It may rise again: what counts is when it was first near.

A search ends before it would spend more than ``--images``. With ``--keep FOLDER`` all that is measured is kept there: a
search that was interrupted goes on, one that was run with fewer images too, and what one search measured no other
measures again, though it counts. So the whole may be run in parts; ``--report`` runs nothing and says what is there.
The last line is one JSON object, also written to ``--results FILE``.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median, median_low
from typing import Any

import optuna
import torch
from common import machine, parser, say
from searches import DEFAULT, EVOLUTION, JOINT, OPTIMIZERS, ORIGINAL, RANKED, STUDIES, Effort, Run, Searches

from autodiffusion_opt import UserError
from autodiffusion_opt.study.config import build_optimizer
from autodiffusion_opt.study.curves import spent_until

NEAR = {"images_to_5_percent": 0.05, "images_to_20_percent": 0.2}
OVER_DEFAULT = {"original_over_default": ORIGINAL, "evolution_over_default": EVOLUTION}
QUICK = Effort(rungs=(50, 100), images=2000, fresh=200)

# A model, an optimizer and a number of steps, and the runs of its seeds; and what is said of them.
Key = tuple[str, str, str]
Runs = Mapping[Key, Sequence[Run]]


def images_until(runs: Sequence[Run], limit: float) -> int | None:
    """The median of the images until runs were at or below a value; None where fewer than half of them were."""
    spent = [spent_until(run.curve, "images", limit, 1) for run in runs]
    middle = median(spent)
    middle = middle if math.isfinite(middle) else median_low(spent)  # just half of them
    return round(middle) if math.isfinite(middle) else None


def ratios(
    reached: Mapping[Key, int | None], runs: Runs, optimizer: str
) -> tuple[dict[tuple[str, str], float | None], dict[tuple[str, str], bool]]:
    """Images of an optimizer over those of the default, and whether the ratio is only known to be so great or greater.

    It is where the optimizer did not come near with all that it spent; null where the default did not.
    """
    over_default: dict[tuple[str, str], float | None] = {}
    at_least: dict[tuple[str, str], bool] = {}
    for model, name, steps in reached:
        if name != optimizer or (model, DEFAULT, steps) not in reached:
            continue
        default, needed = reached[model, DEFAULT, steps], reached[model, name, steps]
        spent = median(run.curve.total("images") for run in runs[model, name, steps])
        over_default[model, steps] = (
            None if default is None else round((spent if needed is None else needed) / default, 2)
        )
        at_least[model, steps] = default is not None and needed is None
    return over_default, at_least


def nested(rows: Mapping[Any, Any]) -> dict[str, Any]:
    """A table in a table for each part of the keys."""
    tables: dict[str, Any] = {}
    for (*outer, last), value in rows.items():
        table = tables
        for part in outer:
            table = table.setdefault(part, {})
        table[last] = value
    return tables


def summary(runs: Runs, rescored: Mapping[Key, Mapping[str, Any]]) -> dict[str, Any]:
    """What the last line says of the searches."""
    best: dict[tuple[str, str], float] = {}
    for (model, _, steps), seeds in runs.items():
        values = [value for run in seeds for value in run.curve.best if not math.isnan(value)]
        best[model, steps] = min(best.get((model, steps), math.inf), *values)
    reached = {
        name: {
            (model, optimizer, steps): images_until(seeds, (1 + share) * best[model, steps])
            for (model, optimizer, steps), seeds in runs.items()
        }
        for name, share in NEAR.items()
    }
    results = {name: nested(rows) for name, rows in reached.items()}
    at_least = {}
    for name, optimizer in OVER_DEFAULT.items():
        over, is_bound = ratios(reached["images_to_5_percent"], runs, optimizer)
        results[name], at_least[name] = nested(over), nested(is_bound)
    return {
        **results,
        "at_least": at_least,
        "final": nested({key: round(median(run.final for run in seeds), 3) for key, seeds in runs.items()}),
        "rescored": nested(rescored),
        "best_known": nested({key: round(value, 3) for key, value in best.items()}),
        "spent": nested({key: [round(run.curve.total("images")) for run in seeds] for key, seeds in runs.items()}),
        "seeds": nested({key: [run.seed for run in seeds] for key, seeds in runs.items()}),
    }


def print_tables(results: Mapping[str, Any]) -> None:
    """A table for each model and number of steps, a row an optimizer, those that need fewest images first."""
    for model, best in results["best_known"].items():
        for steps, value in best.items():
            print(f"\n{model}, {steps}{' steps' if steps.isdecimal() else ''}: the best value known is {value:.2f}")
            print(f"{'optimizer':<24}{'seeds':>6}{'spent':>9}{'to 20 %':>9}{'to 5 %':>9}{'final':>9}{'re-scored':>16}")
            columns = [results[name].get(model, {}) for name in (*reversed(NEAR), "final", "rescored", "spent")]
            rows = [
                (name, *(column.get(name, {}).get(steps) for column in columns))
                for name in results["final"][model]
                if steps in results["final"][model][name]
            ]
            for name, to_20, to_5, final, fresh, spent in sorted(rows, key=lambda row: (row[2] or math.inf, row[3])):
                near = "".join(f"{'-' if images is None else format(images, ','):>9}" for images in (to_20, to_5))
                again = "" if fresh is None else f"{fresh['mean']:.2f} ± {fresh['std']:.2f}"
                print(f"{name:<24}{len(spent):>6}{median(spent):>9,.0f}{near}{final:>9.2f}{again:>16}")
            for name in OVER_DEFAULT:
                ratio = results[name].get(model, {}).get(steps)
                if ratio is not None:
                    bound = "at least " if results["at_least"][name][model][steps] else ""
                    print(f"images to 5 %, {name.replace('_', ' ')}: {bound}{ratio:g}")


def known_optimizers(names: Sequence[str]) -> list[str]:
    """Those that this version has; the others are told of."""
    known = []
    for name in names:
        try:
            if name != ORIGINAL:
                build_optimizer(OPTIMIZERS[name], name)
        except UserError as error:
            say(f"{name} is left out: {error}")
        else:
            known.append(name)
    return known


def run_all(searches: Searches, options: Namespace) -> dict[Key, list[Run]]:
    """The searches that are asked for, seed by seed."""
    runs: dict[Key, list[Run]] = {}
    optimizers = known_optimizers(options.optimizers)
    for model, steps in ((model, steps) for model in options.models for steps in options.steps):
        refused = {name: reason for name in optimizers if (reason := searches.refusal(model, steps, name))}
        for name, reason in refused.items():
            say(f"{model}, {steps}: {name} is left out: {reason.splitlines()[0]}")
        for seed, name in ((seed, name) for seed in options.seeds for name in optimizers if name not in refused):
            begun = time.perf_counter()
            run = searches.run(model, steps, name, seed)
            if run is None:
                continue
            runs.setdefault((model, name, steps), []).append(run)
            spent = f"{run.curve.total('images'):,.0f} images, {run.curve.total('trials'):,.0f} trials"
            spent += ", not finished" if searches.trials_left(run.curve) else ""
            say(f"{model}, {steps}, {name}, seed {seed}: {run.final:.2f}, {spent}, {time.perf_counter() - begun:.0f} s")
    return runs


def steps_of(text: str) -> str:
    """An option of ``--steps``."""
    if text not in (JOINT, RANKED) and not text.isdecimal():
        raise ValueError
    return text


def options_given() -> Namespace:
    """The command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", choices=list(STUDIES), help="(default: all)")
    arguments.add_argument(
        "--steps", nargs="+", type=steps_of, metavar="K", help="or joint, joint-ranked (default: all)"
    )
    arguments.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), help="(default: all)")
    arguments.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="(default: 0 1 2 3 4)")
    arguments.add_argument("--images", type=int, help=f"that a search may spend (default: {Effort.images})")
    arguments.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keeps all that is measured, to go on from there"
    )
    arguments.add_argument("--compile", action="store_true", help="the denoisers; values then differ by rounding")
    arguments.add_argument("--report", action="store_true", help="of what is kept; run nothing")
    arguments.add_argument("--no-rescore", action="store_true", help="do not measure winners on fresh noise")
    arguments.add_argument("--results", type=Path, metavar="FILE", help="the JSON object is written there too")
    options = arguments.parse_args()
    if options.report and options.keep is None:
        arguments.error("--report needs --keep FOLDER")
    quick = options.quick
    options.models = options.models or (["digits"] if quick else list(STUDIES))
    options.steps = options.steps or (["4"] if quick else ["4", "6", "10", JOINT, RANKED])
    options.optimizers = options.optimizers or ([DEFAULT, EVOLUTION, "random", ORIGINAL] if quick else list(OPTIMIZERS))
    options.seeds = options.seeds or ([0] if quick else list(range(5)))
    return options


def main() -> None:
    """Search, re-score, print."""
    options = options_given()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    effort = QUICK if options.quick else Effort()
    effort = effort if options.images is None else replace(effort, images=options.images)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        searches = Searches(folder, effort, options.report, options.compile)
        runs = run_all(searches, options)
        winners = {} if options.no_rescore else runs
        again = {key: searches.rescored(key[0], key[2], seeds) for key, seeds in winners.items()}
    results = summary(runs, {key: scored for key, scored in again.items() if scored is not None})
    print_tables(results)
    seconds = round(time.perf_counter() - begun)
    printed = results | asdict(effort) | {"compile": options.compile, "seconds": seconds, "machine": machine()}
    if options.results is not None:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(printed, indent=1) + "\n")
    print(json.dumps(printed))


if __name__ == "__main__":
    main()
