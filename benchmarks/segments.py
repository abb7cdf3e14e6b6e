"""Segments and partial steps against time steps at equal FLOPs: ``python benchmarks/segments.py [--quick]``.

At each budget of whole networks, these ways, each by ``local``:

- uniform steps, and uniform caching (the best of the intervals 2, 3 and 5);
- segments on the uniform schedule, some of which may be left out;
- uneven times: a search of three times as many trials, which goes on from the best of the next smaller budget with
  ``--from-smaller``;
- times with partial steps, and these with layers too: from the best of the first two thirds of the times' trials, for
  0.2 networks more.

Of each search the best ``--top``, its uniform baselines and the times it went on from are measured again on fresh
noise, as ``verify`` does, and the best of these again on other fresh noise, 3 times. What a file of ``--results`` holds
is not run again, so that a long table can be made in parts.

The last line is one JSON object: the rows; ``over_times``, the value of each way over that of times alone, a seed each;
``smallest``, the least budget at which the median of some way is within 5 % of the teacher's 100 uniform steps, and of
20 uniform steps.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import machine, parser, say

from autodiffusion_opt import Candidate, Study
from autodiffusion_opt.space import cost
from autodiffusion_opt.study.problem import Problem
from autodiffusion_opt.study.verify import FRESH_SEED, rescore

UNIFORM, CACHING, SEGMENTS, TIMES = "uniform", "caching", "segments", "times"
CACHED, JOINT = "times, cached", "times, layers, cached"
SEARCHED = (SEGMENTS, TIMES, CACHED, JOINT)
WAYS = (UNIFORM, CACHING, *SEARCHED)
BUDGETS = (4, 6, 8, 10, 20, 40)
# Uniform steps that all is compared with.
TEACHER, SHORTER = 100, 20
WITHIN = 1.05
STUDIES = {"digits": "digits-4", "digits-dit": "dit-4"}
Rows = list[dict[str, Any]]
FIRST = "first.json"  # the best of the times' trials that the ways with partial steps go on from
SMALLER = "smaller.json"  # the best times of the next smaller budget
EXTRA = 0.2  # of a network, for partial steps beside K whole ones
MANY = 40  # networks


@dataclass(frozen=True)
class Setting:
    """How much each search may spend.

    Attributes:
        trials: of a search; the times have three times as many, and their first two thirds are also the beginning of
            the ways with partial steps.
        rungs: images of a trial.
        top: candidates of a search that are measured again.
        again: images of that.
        images: of each of the three final measurements.
        is_compiled: whether denoisers are compiled; values then differ by rounding.
        is_from_smaller: whether times go on from the best of the next smaller budget.
    """

    trials: int
    rungs: tuple[int, ...]
    top: int
    again: int
    images: int
    is_compiled: bool = False
    is_from_smaller: bool = False


def steps_max(networks: int) -> int:
    """Full and partial steps of a candidate, at most; from 40 networks on uniform caching is worth to be among them."""
    return 2 * networks if networks < MANY else 3 * networks


def spaces(networks: int) -> dict[str, dict[str, Any]]:
    """The tables of the searched spaces."""
    cached = {"kind": "cached-steps", "max_flops": networks + EXTRA, "steps_max": steps_max(networks)}
    left_out = {"interval_min": 0, "max_flops": networks}  # a segment may be left out
    return {
        SEGMENTS: {"kind": "segments", "steps": 5 * networks, "segments": [networks, 2 * networks]} | left_out,
        TIMES: {"kind": "time-steps", "steps": networks},
        CACHED: cached,
        JOINT: cached | {"layers": "any"},
    }


def study(
    model: str, way: str, networks: int, seed: int, setting: Setting, folder: str, smaller: Candidate | None = None
) -> Study:
    """The study of a way to search; times go on from the best of a smaller budget, where there is one."""
    like = Study.load(STUDIES[model]).config
    pipeline, objective = (part.model_dump(mode="json") for part in (like.pipeline, like.objective))
    # Times with partial steps go on from the best times alone, which are in their space.
    starts = [str(Path(folder, FIRST))] if way in (CACHED, JOINT) else ["dp"]
    if smaller is not None and way == TIMES:
        starts.append(str(Path(folder, SMALLER)))
        Path(folder, SMALLER).write_text(smaller.to_json())
    return Study(
        way.replace(", ", "-"),
        pipeline=pipeline | {"compile": setting.is_compiled},
        space=spaces(networks)[way],
        objective=objective | {"images": list(setting.rungs)},
        optimizer={"kind": "local", "start_from": starts},
        trials=setting.trials,
        seed=seed,
        storage=f"sqlite:///{folder}/{model}-{networks}-{seed}.db",
    )


def searched(
    model: str,
    networks: int,
    seed: int,
    setting: Setting,
    folder: str,
    ways: Sequence[str],
    smaller: Candidate | None,
) -> tuple[Problem, dict[str, Any]]:
    """The problem, and the candidates of each way that are to be measured again.

    Partial steps go on from the first two thirds of the times' trials, which are run for them where times are not
    wanted.
    """
    best: dict[str, list[Candidate]] = {}
    for way in SEARCHED:
        if way not in ways and not (way == TIMES and {CACHED, JOINT} & {*ways}):
            continue
        say(f"{model}, {networks} networks, seed {seed}: {way}")
        search = study(model, way, networks, seed, setting, folder, smaller)
        search.run((2 if way == TIMES else 1) * setting.trials, progress=False)
        if way == TIMES:
            first = search.best().candidate
            Path(folder, FIRST).write_text(first.to_json())
            if way not in ways:
                continue
            search.run(3 * setting.trials, progress=False)
        best[way] = [result.candidate for result in search.top(setting.top)]
        if way == TIMES:
            continue
        presets = search.problem.space.presets()  # type: ignore[attr-defined]
        best[way] += presets.values()
        if way == SEGMENTS:
            best[UNIFORM] = [presets["fewer steps"]]
            best[CACHING] = [candidate for name, candidate in presets.items() if name.startswith("full every")]
        else:
            best[way].append(first)
    return search.problem, best


def chosen(problem: Problem, best: Mapping[str, list[Candidate]], setting: Setting) -> dict[str, Candidate]:
    """The best candidate of each way on fresh noise, which is not that of the final measurement."""

    @cache
    def value(candidate: Candidate) -> float:
        scores = problem.objective.measure(candidate, images=setting.again, seed=FRESH_SEED - 1)
        return next(iter(list(scores)[-1].values.values()))

    return {way: min(listed, key=value) for way, listed in best.items() if listed}


def lines(
    model: str,
    networks: int,
    seed: int,
    problem: Problem,
    winners: Mapping[str, Candidate],
    rows: Rows,
    setting: Setting,
) -> Rows:
    """The lines of a cell; a candidate that a row of its model measured on as many images is not measured again."""
    same = [each for each in rows if each["model"] == model and each["images"] == setting.images]
    measured = {json.dumps(each["candidate"]): each for each in same}
    held = {way: measured.get(json.dumps(candidate.to_dict()["steps"])) for way, candidate in winners.items()}
    new = {way: candidate for way, candidate in winners.items() if held[way] is None}
    scored = rescore(problem, new, images=setting.images, repeats=3)
    values = {way: {"mean": scored[way].mean, "std": scored[way].std} for way in scored}
    return [
        row(model, networks, seed, way, problem, winners[way], values.get(way) or held[way], setting)  # type: ignore[arg-type]
        for way in WAYS
        if way in winners
    ]


def row(
    model: str,
    networks: int,
    seed: int,
    way: str,
    problem: Problem,
    candidate: Candidate,
    value: Mapping[str, float],
    setting: Setting,
) -> dict[str, Any]:
    """A line of the table; of a way that is searched, with its trials."""
    spent: dict[str, Any] = {}
    if way in SEARCHED:
        spent = {"trials": (3 if way == TIMES else 1) * setting.trials, "rungs": list(setting.rungs)}
        spent |= {"from_smaller": setting.is_from_smaller} if way != SEGMENTS else {}
        if way in (CACHED, JOINT):
            spent |= {"times_before": 2 * setting.trials, "steps_max": steps_max(networks)}
    return {
        "model": model,
        "networks": networks,
        "seed": seed,
        "way": way,
        "cost": round(cost.networks(problem.info, candidate), 3),
        "mean": round(value["mean"], 4),
        "std": round(value["std"], 4),
        **spent,
        "images": setting.images,
        "candidate": candidate.to_dict()["steps"],
    }


def of_smaller_budget(rows: Rows, model: str, networks: int) -> Candidate | None:
    """The best times of the next smaller budget that has rows."""
    times = [row for row in rows if row["model"] == model and row["way"] == TIMES and row["networks"] < networks]
    best = min(times, key=lambda row: (-row["networks"], row["mean"]), default=None)
    return None if best is None else Candidate.from_time_steps([step["time"] for step in best["candidate"]])


def teacher(model: str, steps: int, setting: Setting, folder: str) -> dict[str, Any]:
    """The line of so many uniform steps."""
    problem = study(model, TIMES, steps, 0, setting, folder).problem
    (line,) = lines(model, steps, 0, problem, {UNIFORM: problem.baselines["own"]}, [], setting)
    return line


def keep(rows: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """Write what there is, where a file is asked for."""
    if path is not None:
        path.write_text(json.dumps({"rows": rows, "machine": machine()}, indent=1) + "\n")


def over_times(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Of each model, budget and way, a ratio a seed."""
    times = {(each["model"], each["networks"], each["seed"]): each["mean"] for each in rows if each["way"] == TIMES}
    ratios: dict[str, dict[str, dict[str, list[float]]]] = {}
    for each in rows:
        cell = each["model"], each["networks"], each["seed"]
        if cell in times and each["way"] != TIMES:
            of_budget = ratios.setdefault(each["model"], {}).setdefault(str(each["networks"]), {})
            of_budget.setdefault(each["way"], []).append(round(each["mean"] / times[cell], 4))
    return ratios


def smallest(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int | None]]:
    """Of each model, the least budget within 5 % of each number of uniform steps."""
    least: dict[str, dict[str, int | None]] = {}
    for model in {each["model"] for each in rows}:
        values: dict[tuple[int, str], list[float]] = {}
        for each in rows:
            if each["model"] == model:
                values.setdefault((each["networks"], each["way"]), []).append(each["mean"])
        medians = {key: median(means) for key, means in values.items()}
        for steps in (TEACHER, SHORTER):
            limit = WITHIN * medians.get((steps, UNIFORM), -math.inf)
            within = [networks for (networks, _), value in medians.items() if value <= limit and networks < steps]
            least.setdefault(model, {})[str(steps)] = min(within, default=None)
    return least


def main() -> None:
    """Search, re-score, print."""
    arguments = parser(__doc__, threads=1)
    arguments.add_argument("--trials", type=int, default=120)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--images", type=int, default=5000, help="of each of the three re-scorings")
    arguments.add_argument("--rungs", type=int, nargs="+", default=[100, 500], help="images of a trial")
    arguments.add_argument("--compile", action="store_true", help="the denoisers; values then differ by rounding")
    arguments.add_argument(
        "--from-smaller", action="store_true", help="times go on from those of the next smaller budget with rows"
    )
    arguments.add_argument("--top", type=int, default=3, help="candidates of a search that are measured again")
    arguments.add_argument("--networks", type=int, nargs="+", default=list(BUDGETS))
    arguments.add_argument("--models", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    arguments.add_argument("--results", type=Path, help="a JSON file whose rows are kept, and added to")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    setting = Setting(
        options.trials,
        tuple(options.rungs),
        options.top,
        again=2000,
        images=options.images,
        is_compiled=options.compile,
        is_from_smaller=options.from_smaller,
    )
    budgets, models, seeds = options.networks, options.models, options.seeds
    if options.quick:
        setting = replace(setting, trials=12, rungs=(50, 100), top=1, again=100, images=200)
        budgets, models, seeds = [4], ["digits"], 1
    rows: Rows = []
    if options.results is not None and options.results.exists():
        rows = json.loads(options.results.read_text())["rows"]
    done = {(each["model"], each["networks"], each["seed"], each["way"]) for each in rows}
    print(f"{'model':<12}{'networks':>9}{'seed':>5}  {'way':<23}{'cost':>7}{'mean':>9}{'std':>7}  candidate")
    for model, steps in ((m, k) for m in ([] if options.quick else models) for k in (TEACHER, SHORTER)):
        if (model, steps, 0, UNIFORM) not in done:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(teacher(model, steps, setting, folder))
            keep(rows, options.results)
    for cell in ((m, n, s) for m in models for n in budgets for s in range(seeds)):
        missing = [way for way in SEARCHED if (*cell, way) not in done]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            smaller = of_smaller_budget(rows, *cell[:2]) if setting.is_from_smaller else None
            of_cell = replace(setting, is_from_smaller=smaller is not None)
            problem, best = searched(*cell, of_cell, folder, missing, smaller)
            made = lines(*cell, problem, chosen(problem, best, of_cell), rows, of_cell)
        again = [(*cell, each["way"]) for each in made]
        rows = [each for each in rows if (each["model"], each["networks"], each["seed"], each["way"]) not in again]
        rows += made
        for each in made:
            print(
                f"{each['model']:<12}{each['networks']:>9}{each['seed']:>5}  {each['way']:<23}{each['cost']:>7.2f}"
                f"{each['mean']:>9.2f}{each['std']:>7.2f}  {json.dumps(each['candidate'])}",
                flush=True,
            )
        keep(rows, options.results)
    figures = {"over_times": over_times(rows), "smallest": smallest(rows)}
    print(json.dumps({"rows": rows, **figures, "machine": machine()}))


if __name__ == "__main__":
    main()
