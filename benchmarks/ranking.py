"""How well each metric ranks candidates on few images: ``python benchmarks/ranking.py [--quick]``.

Kendall's τ of candidates with 4 steps, on 50 to 1,000 images, to their FID on 20,000 other images; for both embedded
models and every metric that can measure them. Half of the candidates are drawn at random, half are mutants of a good
one. ``common``: all candidates start from the same noise, as in a study; ``fresh``: each from noise of its own.
``tau_better_half`` is the same of the better half of the candidates alone.

``equal_ranking`` is, for each number of images of ``fid``, the least number of ``rfid`` whose τ of the better half is
no less, with common noise; ``seconds_per_image`` what an image of a candidate takes, and one of the teacher, which
``rfid`` needs once a study.

Where a metric refuses so few images, or these images at all, the entry is null and ``refused`` says why. The last line
is one JSON object. With ``--keep FILE`` what is measured is kept there, and a run that was interrupted goes on.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import by_evolution, machine, parser, say
from scipy.stats import kendalltau

from autodiffusion_opt import Candidate, Study, UserError
from autodiffusion_opt.objective.image_objective import ImageObjective
from autodiffusion_opt.objective.metrics import METRICS
from autodiffusion_opt.progress import silent
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.space import UNIFORM, Evolvable
from autodiffusion_opt.study.config import build_objective, build_space
from autodiffusion_opt.study.problem import Problem
from autodiffusion_opt.study.verify import FRESH_SEED

STUDIES = {"digits": "digits-4", "digits-dit": "dit-4"}
# What the tables of the metrics say; each gets those of the keys that it has.
TABLE = {"features": "digits", "reference": "digits"}
# Seeds of noise: of all candidates, of the first candidate's own, of the search for a good one.
COMMON_SEED, OWN_SEEDS, SEARCH_SEED = 0, 1000, 1
# Of a mutant's times to be replaced, as in the search.
MUTATED = 0.25

# Sets of images in memory: a candidate's and the teacher's of one seed, and one that is being made.
SETS = 3

# Metric -> number of images -> its value.
Values = dict[str, dict[int, float]]


@dataclass(frozen=True)
class RememberingSampler(ImageSampler):
    """Makes the first ``most`` images of a candidate and a seed in one pass, and remembers the last few of these sets:
    all metrics, and the teacher's features and images, are of the same pass."""

    most: int = 0
    _sets: dict[tuple[Candidate, int], torch.Tensor] = field(default_factory=dict)

    def images(
        self, candidate: Candidate, indices: Sequence[int], seed: int, broken: list[int] | None = None
    ) -> Iterator[torch.Tensor]:
        """Those of ``indices``, which must be below ``most``."""
        yield self.all_images(candidate, seed)[list(indices)]

    def all_images(self, candidate: Candidate, seed: int) -> torch.Tensor:
        """uint8 (most, C, H, W)."""
        key = candidate, seed
        if key not in self._sets:
            if len(self._sets) == SETS:
                del self._sets[next(iter(self._sets))]
            self._sets[key] = torch.cat(list(super().images(candidate, range(self.most), seed)))
        return self._sets[key]


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        counts: the numbers of images that metrics get, ascending.
        candidates: how many are ranked.
        reference: images of the FID that they are ranked by.
        trials: of the search for a good candidate.
        teacher_steps: of the teacher.
    """

    counts: tuple[int, ...] = (50, 100, 250, 500, 1000)
    candidates: int = 40
    reference: int = 20_000
    trials: int = 150
    teacher_steps: int = 50


QUICK = Effort(counts=(50, 100), candidates=4, reference=1000, trials=6, teacher_steps=10)


@dataclass(frozen=True)
class Meters:
    """Every metric at every number of images.

    Attributes:
        objectives: of a metric and a number of images, where it can measure so many of these images.
        refused: metric -> number of images -> why not, for the others.
    """

    objectives: Mapping[tuple[str, int], ImageObjective]
    refused: Mapping[str, Mapping[int, str]]

    def measure(self, images: torch.Tensor, seed: int) -> Values:
        """The values of a candidate's images, which started from a seed."""
        values: Values = {}
        for (kind, count), objective in self.objectives.items():
            values.setdefault(kind, {})[count] = measured(objective, images[:count], seed)
        return values


def measured(objective: ImageObjective, images: torch.Tensor, seed: int) -> float:
    """The value that is optimised, of these images. Raises UserError where the metric refuses them."""
    measurement = objective.start(seed, len(images), silent)
    measurement.add(images)
    return measurement.values(is_last=True)[next(iter(objective.directions))]


def meters(problem: Problem, sampler: RememberingSampler, counts: Sequence[int], teacher_steps: int) -> Meters:
    """All metrics that there are, each tried on the images of a usual schedule."""
    images = sampler.all_images(next(iter(problem.space.baselines().values())), COMMON_SEED)
    objectives: dict[tuple[str, int], ImageObjective] = {}
    refused: dict[str, dict[int, str]] = {}
    keys = TABLE | {"teacher_steps": teacher_steps}
    for kind in METRICS:
        known = {key: value for key, value in keys.items() if key in METRICS[kind].Config.model_fields}
        for count in counts:
            table = {"kind": kind, "images": count, "seed": COMMON_SEED, **known}
            try:
                objective = build_objective(table, kind).objective(sampler, problem.info, Path.cwd())
                assert isinstance(objective, ImageObjective)
                measured(objective, images[:count], COMMON_SEED)
            except UserError as error:
                refused.setdefault(kind, {})[count] = str(error)
            else:
                objectives[kind, count] = objective
    return Meters(objectives, refused)


def good_candidate(study: str, trials: int, folder: Path) -> Candidate:
    """The best of a short search on 250 images of other noise."""
    overrides = (*by_evolution(study), "objective.images=250", f"objective.seed={SEARCH_SEED}")
    search = Study.load(study, storage=f"sqlite:///{folder}/{study}.db", overrides=overrides)
    search.run(trials, progress=False)
    return search.best().candidate


def chosen(space: Evolvable, good: Candidate, count: int) -> list[Candidate]:
    """Half of them drawn at random, half mutants of a good one; all different."""
    rng = np.random.default_rng(0)
    candidates: dict[Candidate, None] = {}

    def fill(up_to: int, make: Callable[[], Candidate]) -> None:
        while len(candidates) < up_to:
            candidates[make()] = None

    fill(count // 2, lambda: space.random(rng))
    fill(count, lambda: space.mutate(good, rng, MUTATED))
    return list(candidates)


class Kept:
    """Results by key, a line of JSON each in a file; in memory alone without a file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self._results: dict[str, Any] = dict(map(json.loads, lines))

    def of(self, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """The result of a key, computed once."""
        text = json.dumps(key, sort_keys=True)
        if text not in self._results:
            self._results[text] = compute()
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(json.dumps([text, self._results[text]]) + "\n")
        return json.loads(json.dumps(self._results[text]))  # numbers of images are text in JSON, so always


def model_results(model: str, effort: Effort, kept: Kept) -> dict[str, Any]:
    """``tau``, ``tau_better_half`` and ``refused`` of a model."""
    with tempfile.TemporaryDirectory() as folder:
        study = STUDIES[model]
        problem = Study.load(study, storage=f"sqlite:///{folder}/problem.db", overrides=by_evolution(study)).problem
        same = {"model": model, "fingerprint": problem.fingerprint}
        sought = same | {"search": effort.trials}
        winner = kept.of(sought, lambda: good_candidate(STUDIES[model], effort.trials, Path(folder)).to_dict())
    good = Candidate.from_dict(winner)
    say(f"{model}: a good candidate is {good}")
    own = problem.sampler
    assert own is not None
    assert isinstance(problem.space, Evolvable)
    sampler = RememberingSampler(
        own.pipeline, own.conditions, own.call, own.micro_batch, own.batch_size, most=effort.counts[-1]
    )
    metrics = meters(problem, sampler, effort.counts, effort.teacher_steps)
    for kind, reasons in metrics.refused.items():
        reason = next(iter(reasons.values())).splitlines()[0]
        say(f"{model}: no {kind} of {', '.join(map(str, reasons))} images: {reason}")

    def of(number: int, candidate: Candidate) -> dict[str, Any]:
        *_, score = problem.objective.measure(candidate, images=effort.reference, seed=FRESH_SEED)
        seeds = {"common": COMMON_SEED, "fresh": OWN_SEEDS + number}
        values = {noise: metrics.measure(sampler.all_images(candidate, seed), seed) for noise, seed in seeds.items()}
        return {"fid": score.values["fid"], **values}

    results = []
    for number, candidate in enumerate(chosen(problem.space, good, effort.candidates)):
        key = same | {"candidate": candidate.to_dict(), "number": number} | asdict(effort)
        results.append(kept.of(key, partial(of, number, candidate)))
        say(f"{model} {number + 1}/{effort.candidates}: {candidate} FID {results[-1]['fid']:.2f}")
    better = sorted(results, key=lambda result: result["fid"])[: effort.candidates // 2]
    of_half = all_tau(better, effort.counts)
    return {
        "equal_ranking": equal_ranking(of_half["common"], effort.counts),
        "seconds_per_image": seconds_per_image(problem, effort),
        "tau": all_tau(results, effort.counts),
        "tau_better_half": of_half,
        "refused": metrics.refused,
        "good": good.to_dict(),
        "fid": {"best": better[0]["fid"], "median": better[-1]["fid"], "worst": max(each["fid"] for each in results)},
    }


def all_tau(results: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> dict[str, dict[str, dict[int, Any]]]:
    """Noise -> metric -> number of images -> τ; None where the metric refused."""
    return {
        noise: {kind: {count: tau(results, noise, kind, count) for count in counts} for kind in METRICS}
        for noise in ("common", "fresh")
    }


def tau(results: Sequence[Mapping[str, Any]], noise: str, kind: str, count: int) -> float | None:
    """Kendall's τ to FID; of a metric of which more is better, of its negative."""
    values = [result[noise].get(kind, {}).get(str(count)) for result in results]
    if None in values:
        return None
    sign = 1 if METRICS[kind].direction == "minimize" else -1
    tau = kendalltau(sign * np.array(values), [result["fid"] for result in results]).statistic
    return round(float(tau), 3)


def equal_ranking(taus: Mapping[str, Mapping[int, float | None]], counts: Sequence[int]) -> dict[int, int | None]:
    """Number of images of ``fid`` -> the least of ``rfid`` that ranks as well; None where no number measured does."""
    relative = {count: value for count, value in taus["rfid"].items() if value is not None}
    wanted = {count: value for count, value in taus["fid"].items() if value is not None}
    return {n: next((m for m in counts if relative.get(m, -2.0) >= tau), None) for n, tau in wanted.items()}


def seconds_per_image(problem: Problem, effort: Effort) -> dict[str, float]:
    """Wall time of sampling after a first batch: of as many uniform steps as a candidate has, and of the teacher."""
    sampler = problem.sampler
    assert sampler is not None
    teacher = build_space({"kind": "time-steps", "steps": effort.teacher_steps}, "teacher").space(problem.info)
    images, seconds = effort.counts[-1], {}
    for name, space in (("candidate", problem.space), ("teacher", teacher)):
        steps = space.baselines()[UNIFORM]
        list(sampler.images(steps, range(min(images, sampler.micro_batch)), COMMON_SEED))
        begun = time.perf_counter()
        list(sampler.images(steps, range(images), COMMON_SEED))
        seconds[name] = round((time.perf_counter() - begun) / images, 6)
    return seconds


def print_table(model: str, result: Mapping[str, Any], counts: Sequence[int]) -> None:
    """A row a metric, a column a number of images; in brackets that of the better half."""
    fid = result["fid"]
    print(f"\n{model}: FID from {fid['best']:.1f} to {fid['worst']:.1f}, the median {fid['median']:.1f}")
    for noise, rows in result["tau"].items():
        print(f"{noise:<10}" + "".join(f"{count:>13}" for count in counts))
        for kind, row in rows.items():
            half = result["tau_better_half"][noise][kind]
            if any(value is not None for value in row.values()):
                cells = ["-" if row[n] is None else f"{row[n]:.2f} ({half[n]:.2f})" for n in counts]
                print(f"  {kind:<8}" + "".join(f"{cell:>13}" for cell in cells))


def main() -> None:
    """Measure, print."""
    arguments = parser(__doc__, threads=2)
    arguments.add_argument("--models", nargs="+", default=list(STUDIES), choices=list(STUDIES))
    arguments.add_argument("--keep", type=Path, metavar="FILE", help="keeps what is measured, to go on from there")
    arguments.add_argument("--reference", type=int, help=f"images of the FID  [default: {Effort.reference}]")
    arguments.add_argument("--trials", type=int, help=f"of the search for a good candidate  [default: {Effort.trials}]")
    arguments.add_argument("--seconds", action="store_true", help="measure seconds_per_image alone")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    given = {key: value for key in ("reference", "trials") if (value := getattr(options, key)) is not None}
    effort = replace(QUICK if options.quick else Effort(), **given)
    if options.seconds:
        taken = {model: seconds_per_image(Study.load(STUDIES[model]).problem, effort) for model in options.models}
        print(json.dumps({"seconds_per_image": taken, "machine": machine()}))
        return
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["AUTODIFFUSION_CACHE"] = cache  # a teacher for every candidate: nothing to keep
        kept = Kept(options.keep)
        results = {model: model_results(model, effort, kept) for model in options.models}
    for model, result in results.items():
        print_table(model, result, effort.counts)
    parts = ("tau", "tau_better_half", "equal_ranking", "seconds_per_image", "fid", "good", "refused")
    print(
        json.dumps(
            {part: {model: result[part] for model, result in results.items()} for part in parts}
            | asdict(effort)
            | {"seconds": round(time.perf_counter() - begun), "machine": machine()}
        )
    )


if __name__ == "__main__":
    main()
