"""Other methods that sample in few steps, against ours at equal FLOPs: ``python benchmarks/peers.py [--quick]``.

On both embedded models, for budgets of whole networks: the pipeline's own steps; Align Your Steps, DM-NonUniform and
GITS (``peer_schedules.py``); AutoDiffusion as its authors search (``original_search.py``); DeepCache's uniform caching,
the best of the intervals 2, 3 and 5 (Ma et al., CVPR 2024, section 3.3); a genetic search of cache bits in the manner
of ECAD (``peer_caching.py``), one for all budgets; a cache policy by annealing and hill climbing, then times, in the
manner of BudCache (``peer_annealing.py``); and ours: ``local`` on times, and then on times and cached steps together.
Images that each generated are counted, calls of the denoiser beside them as so many images.

Winners are measured again on fresh noise, the same for all. ``not_as_good`` names the peers that are better than both
of ours by more than the noise (95 %, paired over the repeats). The last line is one JSON object.

With ``--keep FOLDER`` what was measured is kept there, and the same command goes on after an interruption.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from common import machine, parser, say
from peer_annealing import annealed_caching
from peer_caching import CachingFront, evolved_caching
from peer_schedules import Schedule, align_your_steps, optimized_time_steps, trajectory_steps
from searches import CACHED, DEFAULT, ORIGINAL, STUDIES, Effort, Run, Searches

from autodiffusion_opt import Candidate
from autodiffusion_opt.space import cost
from autodiffusion_opt.space.caching import INTERVALS
from autodiffusion_opt.study.problem import Problem
from autodiffusion_opt.study.verify import Difference, Rescored, rescore

OWN, AYS, DMN, GITS = "own", "Align Your Steps", "DM-NonUniform", "GITS"
AUTODIFFUSION, DEEPCACHE, ECAD, BUDCACHE = "AutoDiffusion", "DeepCache", "ECAD", "BudCache"
TIMES, CACHED_TIMES = "ours: times", "ours: times, cached"
OURS = (TIMES, CACHED_TIMES)
METHODS = (OWN, DMN, GITS, AYS, DEEPCACHE, ECAD, BUDCACHE, AUTODIFFUSION, *OURS)
BUDGETS = (4, 6, 8, 10)
# ECAD's schedule: with all but one of these steps at the cheapest branch the least budget is kept.
SCHEDULE_STEPS = 16
ECAD_IMAGES = 200  # of a trial
ANNEALED_IMAGES = 64  # of a comparison


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        ours: images and rungs of each of our searches.
        original: images of AutoDiffusion's search.
        evolved: trials of ECAD's, for all budgets.
        annealed: images of each of BudCache's comparisons.
        fresh: images of each re-scoring.
        repeats: of it.
    """

    ours: Effort
    original: int
    evolved: int
    annealed: int
    fresh: int
    repeats: int


def value_of(problem: Problem, candidate: Candidate, images: int) -> float:
    """The study's value of a candidate."""
    *_, score = problem.objective.measure(candidate, images=images)
    return next(iter(score.values.values()))


def winners(
    folder: Path,
    model: str,
    networks: int,
    seed: int,
    sizes: Sizes,
    front: CachingFront | None,
    wanted: Collection[str],
) -> Iterator[tuple[str, Schedule]]:
    """What each of the wanted methods finds within a budget, by name; one that has nothing so cheap is left out."""
    ours, steps = Searches(folder, sizes.ours, False), str(networks)
    problem, images = ours.problem(model, steps), sizes.ours.rungs[-1]
    caching = ours.problem(model, f"{CACHED}{networks}")

    def value(candidate: Candidate) -> float:
        return value_of(problem, candidate, images)

    def uniform() -> Schedule:
        presets = caching.space.presets()  # type: ignore[attr-defined]
        candidates = {presets[name] for interval in INTERVALS if (name := f"full every {interval}") in presets}
        return Schedule(min(candidates, key=value), images * len(candidates))

    def evolved() -> Schedule | None:
        best = None if front is None else front.best_within(networks)
        return None if best is None or front is None else Schedule(best, front.images)

    def original() -> Schedule:
        searches = Searches(folder, Effort(sizes.ours.rungs, sizes.original), False)
        return schedule_of(searches.run(model, steps, ORIGINAL, seed))

    def times() -> Schedule:
        return schedule_of(ours.run(model, steps, DEFAULT, seed))  # measured once, and then read

    def cached() -> Schedule:
        before, path = times(), folder / f"{model}-{networks}-{seed}.json"
        path.write_text(before.candidate.to_json(), encoding="utf-8")
        found = schedule_of(ours.run(model, f"{CACHED}{networks}", DEFAULT, seed, start_from=(str(path),)))
        return replace(found, images=before.images + found.images)

    methods: dict[str, Callable[[], Schedule | None]] = {
        OWN: lambda: Schedule(problem.baselines[OWN], 0),
        DMN: lambda: optimized_time_steps(problem, networks),
        GITS: lambda: trajectory_steps(problem, networks),
        AYS: lambda: align_your_steps(problem, networks, value, images),
        DEEPCACHE: uniform,
        ECAD: evolved,
        BUDCACHE: lambda: annealed_caching(caching, networks, sizes.annealed, seed),
        AUTODIFFUSION: original,
        TIMES: times,
        CACHED_TIMES: cached,
    }
    for name in METHODS:
        schedule = methods[name]() if name in wanted else None
        if schedule is not None:
            yield name, schedule


def schedule_of(run: Run | None) -> Schedule:
    """The winner of a search that may measure."""
    assert run is not None
    return Schedule(run.winner, round(run.curve.total("images")))


def rows_of(
    model: str, networks: int, problem: Problem, chosen: Mapping[str, Schedule], scored: Mapping[str, Rescored]
) -> list[dict[str, Any]]:
    """A row for each method; ``behind``: by how much it is worse than the better of ours, and the noise of that."""
    best = min((name for name in OURS if name in scored), key=lambda name: scored[name].mean, default=None)
    rows = []
    for name, schedule in chosen.items():
        behind = None if best is None else Difference.of(scored[name], scored[best])
        rows.append(
            {
                "model": model,
                "networks": networks,
                "method": name,
                "cost": round(cost.networks(problem.info, schedule.candidate), 2),
                "images": schedule.images,
                "mean": round(scored[name].mean, 3),
                "std": round(scored[name].std, 3),
                "behind": None if behind is None else round(behind.mean, 3),
                "noise": None if behind is None else round(behind.half_width, 3),
                "is_better": behind is not None and behind.mean < 0 and behind.is_more_than_noise,
                "candidate": schedule.candidate.to_dict()["steps"],
            }
        )
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    """A line a method."""
    for row in rows:
        behind = "" if row["behind"] is None else f"{row['behind']:>+9.2f} ± {row['noise']:.2f}"
        print(
            f"{row['model']:<12}{row['networks']:>9}  {row['method']:<21}{row['cost']:>6.2f}{row['images']:>9,}"
            f"{row['mean']:>9.2f} ± {row['std']:<7.2f}{behind}",
            flush=True,
        )


def compared(options: Namespace, sizes: Sizes, folder: Path) -> list[dict[str, Any]]:
    """The rows of all models and budgets, printed as they come."""
    rows: list[dict[str, Any]] = []
    header = f"{'model':<12}{'networks':>9}  {'method':<21}{'cost':>6}{'images':>9}{'re-scored':>19}{'behind ours':>16}"
    print(header)
    for model in options.models:
        searches = Searches(folder, sizes.ours, False)
        shared = searches.problem(model, f"{CACHED}{max(options.networks)}")
        begun = time.perf_counter()
        front = None
        if ECAD in options.methods:
            front = evolved_caching(shared, SCHEDULE_STEPS, ECAD_IMAGES, sizes.evolved, options.seed)
            say(f"{model}, {ECAD}: {front.images:,} images, {time.perf_counter() - begun:.0f} s")
        for networks in options.networks:
            chosen: dict[str, Schedule] = {}
            for name, schedule in winners(folder, model, networks, options.seed, sizes, front, options.methods):
                chosen[name] = schedule
                spent = f"{schedule.images:,} images, {time.perf_counter() - begun:.0f} s in all"
                say(f"{model}, {networks} networks, {name}: {schedule.candidate}, {spent}")
            problem = searches.problem(model, f"{CACHED}{networks}")
            candidates = {name: schedule.candidate for name, schedule in chosen.items()}
            scored = rescore(problem, candidates, images=sizes.fresh, repeats=sizes.repeats)
            rows += (new := rows_of(model, networks, problem, chosen, scored))
            print_rows(new)
    return rows


def main() -> None:
    """Search, re-score, print."""
    arguments = parser(__doc__, threads=1)
    arguments.add_argument("--models", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    arguments.add_argument("--networks", type=int, nargs="+", default=list(BUDGETS), help="budgets")
    arguments.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="that are measured")
    arguments.add_argument("--seed", type=int, default=0, help="of the searches")
    arguments.add_argument("--images", type=int, default=15_000, help="of each of our two searches")
    arguments.add_argument("--original", type=int, default=60_000, help="images of AutoDiffusion's search")
    arguments.add_argument("--evolved", type=int, default=400, help=f"trials of ECAD's, {ECAD_IMAGES} images each")
    arguments.add_argument("--fresh", type=int, default=5_000, help="images of each re-scoring")
    arguments.add_argument("--repeats", type=int, default=3, help="re-scorings")
    arguments.add_argument("--keep", type=Path, metavar="FOLDER", help="keeps all that is measured")
    arguments.add_argument("--results", type=Path, metavar="FILE", help="the JSON object is written there too")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", "delta_grad == 0.0")  # SciPy's: the bound is nearly linear there
    sizes = Sizes(
        Effort(images=options.images),
        options.original,
        options.evolved,
        ANNEALED_IMAGES,
        options.fresh,
        options.repeats,
    )
    if options.quick:
        options.models, options.networks = ["digits"], [4]
        sizes = Sizes(Effort((50, 100), 1000), 1000, 12, 4, 200, 3)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = compared(options, sizes, folder)
    not_as_good = [[row["model"], row["networks"], row["method"]] for row in rows if row["is_better"]]
    printed = {
        "rows": rows,
        "not_as_good": not_as_good,
        "images": sizes.ours.images,
        "original": sizes.original,
        "evolved": sizes.evolved,
        "fresh": sizes.fresh,
        "repeats": sizes.repeats,
        "seed": options.seed,
        "seconds": round(time.perf_counter() - begun),
        "machine": machine(),
    }
    if options.results is not None:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(printed, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(printed))


if __name__ == "__main__":
    main()
