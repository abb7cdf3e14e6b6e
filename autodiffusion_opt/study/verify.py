"""Re-score candidates honestly: fresh noise, more images, several repeats.

Search values are for ranking: the best of many noisy values is too good, and FID is biased by the number of images.
Repeat r uses the same fresh noise for all candidates, so that differences between them are paired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import EvaluationError, UserError
from autodiffusion_opt.objective.image_objective import ImageObjective
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.space import OWN, UNIFORM
from autodiffusion_opt.study.problem import Problem

# Seeds of re-scoring start here, far from those that tables use.
FRESH_SEED = 1_000_000_007
# What is told as a difference is one with this confidence.
CONFIDENCE = 0.95
# Shares of the images at which values are taken for the extrapolation to infinitely many.
SHARES = (0.25, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Rescored:
    """The first value of a candidate over repeats, each with noise of its own; NaN where it could not be measured.

    Attributes:
        extrapolated: the value for infinitely many images, where it was asked for.
    """

    candidate: Candidate
    values: tuple[float, ...]
    extrapolated: float | None = None

    @property
    def mean(self) -> float:
        """The mean over repeats."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """The standard deviation over repeats (n - 1); not a number for a single repeat."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan

    def to_dict(self) -> dict[str, object]:
        """As ``verify --json`` prints it."""
        more = {} if self.extrapolated is None else {"extrapolated": self.extrapolated}
        std = None if math.isnan(self.std) else self.std
        return {
            "mean": self.mean,
            "std": std,
            "values": list(self.values),
            **more,
            "candidate": self.candidate.to_dict(),
        }


@dataclass(frozen=True)
class Difference:
    """By how much two candidates differ, paired over repeats.

    Attributes:
        mean: of the first's value less the second's.
        half_width: of the interval of :data:`CONFIDENCE` about it (Student's t); NaN for a single repeat.
    """

    mean: float
    half_width: float

    @classmethod
    def of(cls, first: Rescored, second: Rescored) -> Difference:
        """Of two candidates that were scored with the same seeds."""
        from scipy.stats import t  # a second to import

        gaps = np.array(first.values) - np.array(second.values)
        if len(gaps) < 2:
            return cls(float(gaps.mean()), math.nan)
        error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
        return cls(float(gaps.mean()), float(t.ppf((1 + CONFIDENCE) / 2, len(gaps) - 1)) * error)

    @property
    def is_more_than_noise(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half_width  # False for NaN

    def sentence(self, first: str, second: str, *, less_is_better: bool) -> str:
        """What the numbers say, in words."""
        if math.isnan(self.half_width):
            return f"{first} less {second}: {self.mean:.4g}; with one repeat nothing is known of the noise"
        interval = f"{self.mean:.4g} ± {self.half_width:.2g} ({CONFIDENCE:.0%}, paired over repeats)"
        if not self.is_more_than_noise:
            return f"{first} and {second} do not differ by more than the noise: {interval}"
        verdict = "better" if (self.mean < 0) == less_is_better else "worse"
        return f"{first} is {verdict} than {second} by more than the noise: {interval}"


def rescore(
    problem: Problem,
    candidates: Mapping[str, Candidate],
    *,
    images: int,
    repeats: int,
    extrapolate: bool = False,
    progress: Progress = silent,
) -> dict[str, Rescored]:
    """Each candidate scored ``repeats`` times on ``images`` images; repeat r uses the same fresh noise for all.

    Args:
        problem: a study's model and objective.
        candidates: by name; equal candidates are scored once.
        images: a repeat.
        repeats: how often.
        extrapolate: also for infinitely many images: the intercept of a line in 1/images through the values at
            :data:`SHARES` of the images, the mean over repeats (Chong and Forsyth, 2020, section 3).
        progress: is told of the images of all candidates and repeats together.

    Raises:
        UserError: for a candidate that does not fit the model, before any is scored; to extrapolate, for an objective
            without rungs of images.
    """
    distinct = list(dict.fromkeys(candidates.values()))
    if problem.sampler is not None:
        from autodiffusion_opt.sampling.apply import install

        for candidate in distinct:
            with install(problem.sampler.pipeline, candidate):
                pass
    rungs = sorted({max(round(share * images), 2) for share in SHARES}) if extrapolate else [images]
    objective = problem.objective
    if extrapolate:
        if not isinstance(objective, ImageObjective):
            raise UserError("--extrapolate needs an objective that measures images in rungs; this one does not")
        objective = replace(objective, images=tuple(rungs))
    runs = [(candidate, repeat) for candidate in distinct for repeat in range(repeats)]
    curves: dict[Candidate, list[list[float]]] = {candidate: [] for candidate in distinct}
    name = next(iter(objective.directions))
    for index, (candidate, repeat) in enumerate(runs):

        def tell(what: str, done: int, total: int, before: int = index * images) -> None:
            if what == "images":
                progress("re-scoring images", before + done, len(runs) * images)
            else:  # what they are compared with is made first
                progress(what, done, total)

        count = None if extrapolate else images
        try:
            scores = objective.measure(candidate, images=count, seed=FRESH_SEED + repeat, progress=tell)
            curves[candidate].append([score.values[name] for score in scores])
        except EvaluationError:  # the others are measured all the same
            curves[candidate].append([math.nan] * len(rungs))
    return {
        label: Rescored(
            candidate,
            tuple(curve[-1] for curve in curves[candidate]),
            _at_infinity(rungs, curves[candidate]) if extrapolate else None,
        )
        for label, candidate in candidates.items()
    }


def _at_infinity(rungs: list[int], curves: list[list[float]]) -> float:
    """The intercept at 1/images = 0 of the line through the mean curve."""
    _, intercept = np.polyfit(1 / np.array(rungs), np.mean(curves, axis=0), 1)
    return float(intercept)


@dataclass(frozen=True)
class Verified:
    """What ``verify`` found.

    Attributes:
        rescored: baselines, then the candidates, by name.
        candidates: the names that are no baselines, in the order of the search.
        differences: of each candidate less the baseline that results are divided by.
        sentences: what the numbers say.
        flattered_by: by how much the search's value of its winner was too good; None where it is not known.
    """

    images: int
    repeats: int
    rescored: dict[str, Rescored]
    candidates: tuple[str, ...]
    differences: dict[str, Difference]
    sentences: tuple[str, ...]
    flattered_by: float | None

    def to_dict(self) -> dict[str, object]:
        """As ``verify --json`` prints it."""
        scored = {name: entry.to_dict() for name, entry in self.rescored.items()}
        others = {name: scored.pop(name) for name in self.candidates}
        return {
            "images": self.images,
            "repeats": self.repeats,
            "best": others.pop("best"),
            **({"top": others} if others else {}),
            "baselines": scored,
            "differences": {name: asdict(difference) for name, difference in self.differences.items()},
            "flattered_by": self.flattered_by,
            "sentences": list(self.sentences),
        }


def verified(
    problem: Problem,
    candidates: Mapping[str, Candidate],
    searched: tuple[float, int] | None,
    images: int,
    repeats: int,
    extrapolate: bool = False,
    progress: Progress = silent,
) -> Verified:
    """Re-score a search's best and the baselines, and say what the numbers mean.

    Args:
        problem: a study's model and objective.
        candidates: ``best`` first, then others of the search, by name.
        searched: the best's value in the search, and its number of images; None where it is not known.
        images: a repeat.
        repeats: how often.
        extrapolate: also for infinitely many images.
        progress: is told of the images.

    Raises:
        UserError: as :func:`rescore`.
    """
    everything = {**problem.baselines, **candidates}
    rescored = rescore(problem, everything, images=images, repeats=repeats, extrapolate=extrapolate, progress=progress)
    less_is_better = next(iter(problem.objective.directions.values())) == "minimize"
    base = OWN if OWN in rescored else UNIFORM
    differences = {name: Difference.of(rescored[name], rescored[base]) for name in candidates if base in rescored}
    sentences = [gap.sentence(name, base, less_is_better=less_is_better) for name, gap in differences.items()]
    sign = 1 if less_is_better else -1
    winner = min(candidates, key=lambda name: sign * rescored[name].mean)
    if winner != "best":
        gap = Difference.of(rescored[winner], rescored["best"])
        sentences.append(f"{winner} wins: {gap.sentence(winner, 'best', less_is_better=less_is_better)}")
    flattered = None
    if searched is not None:
        value, count = searched
        fresh = rescore(problem, {"best": candidates["best"]}, images=count, repeats=repeats)["best"].mean
        flattered = (fresh - value) * sign
        verdict = f"was too good by {flattered:.4g}" if flattered > 0 else "was not too good"
        sentences.append(
            f"the search's value of its best, {value:.4g} on {count} images, {verdict}: "
            f"on as many images of fresh noise it is {fresh:.4g}"
        )
    return Verified(images, repeats, rescored, tuple(candidates), differences, tuple(sentences), flattered)
