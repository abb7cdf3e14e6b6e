"""Re-score candidates honestly: fresh noise, more images, several repeats.

Search values are for ranking: the best of many noisy values is too good, and FID is biased by the number of images.
Repeat r uses the same fresh noise for all candidates, so that differences between them are paired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import EvaluationError, UserError
from autodiffusion_opt.objective.image_objective import ImageObjective
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.space import OWN, UNIFORM
from autodiffusion_opt.study.problem import Problem
from autodiffusion_opt.trials.history import dominates

# Seeds of re-scoring start here, far from those that tables use.
FRESH_SEED = 1_000_000_007
# What is told as a difference is one with this confidence.
CONFIDENCE = 0.95
# Shares of the images at which values are taken for the extrapolation to infinitely many.
SHARES = (0.25, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Rescored:
    """The values of a candidate over repeats, each with noise of its own; NaN where they could not be measured.

    Attributes:
        measured: name -> a value of each repeat; the first that is optimised first.
        extrapolated: the first value for infinitely many images, where it was asked for.
    """

    candidate: Candidate
    measured: Mapping[str, tuple[float, ...]]
    extrapolated: float | None = None

    @property
    def values(self) -> tuple[float, ...]:
        """Of the first value, one a repeat."""
        return next(iter(self.measured.values()))

    @property
    def mean(self) -> float:
        """The mean of the first value."""
        return self.mean_of(next(iter(self.measured)))

    @property
    def std(self) -> float:
        """The spread of the first value."""
        return self.std_of(next(iter(self.measured)))

    def mean_of(self, name: str) -> float:
        """The mean of a value over repeats."""
        return float(np.mean(self.measured[name]))

    def std_of(self, name: str) -> float:
        """The standard deviation of a value over repeats (n - 1); not a number for a single repeat."""
        values = self.measured[name]
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    def half_width_of(self, name: str) -> float:
        """Of the interval of :data:`CONFIDENCE` about the mean (Student's t); not a number for a single repeat."""
        return _half_width(self.measured[name])

    def to_dict(self) -> dict[str, object]:
        """As ``verify --json`` prints it: the first value, and ``further`` ones by name."""
        first, *rest = ((name, self._described(name)) for name in self.measured)
        more = {} if self.extrapolated is None else {"extrapolated": self.extrapolated}
        further = {"further": dict(rest)} if rest else {}
        return {**first[1], **more, **further, "candidate": self.candidate.to_dict()}

    def _described(self, name: str) -> dict[str, object]:
        std = self.std_of(name)
        return {
            "mean": self.mean_of(name),
            "std": None if math.isnan(std) else std,
            "values": list(self.measured[name]),
        }


def _half_width(values: Sequence[float]) -> float:
    """Of the interval of :data:`CONFIDENCE` about the mean of values; NaN for a single one."""
    from scipy.stats import t  # a second to import

    if len(values) < 2:
        return math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error


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
        """Of the first values of two candidates that were scored with the same seeds."""
        gaps = np.array(first.values) - np.array(second.values)
        return cls(float(gaps.mean()), _half_width(gaps.tolist()))

    @property
    def is_more_than_noise(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half_width  # False for NaN

    def sentence(self, first: str, second: str, *, less_is_better: bool) -> str:
        """What the numbers say, in words."""
        if math.isnan(self.mean):
            return f"{first} and {second} cannot be compared: one of them could not be measured"
        if math.isnan(self.half_width):
            return f"{first} less {second}: {self.mean:.4g}; with one repeat nothing is known of the noise"
        interval = f"{self.mean:.4g} ± {two_digits(self.half_width)} ({CONFIDENCE:.0%}, paired over repeats)"
        if not self.is_more_than_noise:
            return f"{first} and {second} do not differ by more than the noise: {interval}"
        verdict = "better" if (self.mean < 0) == less_is_better else "worse"
        return f"{first} is {verdict} than {second} by more than the noise: {interval}"


def two_digits(width: float) -> str:
    """An uncertainty, rounded: ``0.043``, ``1.9``, ``190``."""
    return f"{float(f'{width:.2g}'):g}"


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
    if isinstance(objective, ImageObjective):
        objective = objective.for_verify()
    if extrapolate:
        if not isinstance(objective, ImageObjective):
            raise UserError("--extrapolate needs an objective that measures images in rungs; this one does not")
        objective = replace(objective, images=tuple(rungs))
    runs = [(candidate, repeat) for candidate in distinct for repeat in range(repeats)]
    curves: dict[Candidate, list[list[Mapping[str, float]]]] = {candidate: [] for candidate in distinct}
    first = next(iter(objective.directions))
    for index, (candidate, repeat) in enumerate(runs):

        def tell(what: str, done: int, total: int, before: int = index * images) -> None:
            if what == "images":
                progress("re-scoring images", before + done, len(runs) * images)
            else:  # what they are compared with is made first
                progress(what, done, total)

        count = None if extrapolate else images
        try:
            scores = objective.measure(candidate, images=count, seed=FRESH_SEED + repeat, progress=tell)
            curves[candidate].append([score.values for score in scores])
        except EvaluationError:  # the others are measured all the same
            curves[candidate].append([dict.fromkeys(objective.directions, math.nan)] * len(rungs))

    def rescored(candidate: Candidate) -> Rescored:
        last = [curve[-1] for curve in curves[candidate]]
        names = dict.fromkeys(name for values in last for name in values)
        measured = {name: tuple(values.get(name, math.nan) for values in last) for name in names}
        curve = [[values[first] for values in curve] for curve in curves[candidate]]
        return Rescored(candidate, measured, _at_infinity(rungs, curve) if extrapolate else None)

    return {label: rescored(candidate) for label, candidate in candidates.items()}


def _at_infinity(rungs: list[int], curves: list[list[float]]) -> float:
    """The intercept at 1/images = 0 of the line through the mean curve."""
    _, intercept = np.polyfit(1 / np.array(rungs), np.mean(curves, axis=0), 1)
    return float(intercept)


@dataclass(frozen=True)
class Verified:
    """What ``verify`` says.

    Attributes:
        images: a repeat.
        repeats: how many.
        rescored: baselines, then the candidates, by name.
        candidates: the names that are no baselines, in the order of the search; of a front, those that are still in it.
        differences: of each candidate less the baseline that results are divided by; none of a front.
        sentences: what the numbers say.
        flattered_by: by how much the search's value of its winner was too good; None where it is not known.
        is_front: whether the candidates are the front of several values.
    """

    images: int
    repeats: int
    rescored: dict[str, Rescored]
    candidates: tuple[str, ...]
    differences: dict[str, Difference]
    sentences: tuple[str, ...]
    flattered_by: float | None
    is_front: bool = False

    def to_dict(self) -> dict[str, object]:
        """As ``verify --json`` prints it."""
        scored = {name: entry.to_dict() for name, entry in self.rescored.items()}
        chosen = {name: scored.pop(name) for name in self.candidates}
        best = {} if self.is_front else {"best": chosen.pop("best")}
        ranked = {"front" if self.is_front else "top": chosen} if chosen else {}
        return {
            "images": self.images,
            "repeats": self.repeats,
            **best,
            **ranked,
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
        candidates: ``best`` first, then others of the search, by name; or a front.
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
    sentences = _broken_bounds(problem, {name: rescored[name] for name in candidates})
    if "best" not in candidates:
        kept, dropped = _front_again(problem, {name: rescored[name] for name in candidates})
        left = {name: scored for name, scored in rescored.items() if name not in dropped}
        return Verified(images, repeats, left, kept, {}, (*dropped.values(), *sentences), None, is_front=True)
    less_is_better = next(iter(problem.objective.directions.values())) == "minimize"
    base = OWN if OWN in rescored else UNIFORM
    differences = {name: Difference.of(rescored[name], rescored[base]) for name in candidates if base in rescored}
    sentences += [gap.sentence(name, base, less_is_better=less_is_better) for name, gap in differences.items()]
    sign = 1 if less_is_better else -1
    measured = [name for name in candidates if not math.isnan(rescored[name].mean)]
    winner = min(measured, key=lambda name: sign * rescored[name].mean, default="best")
    if winner != "best":
        gap = Difference.of(rescored[winner], rescored["best"])
        sentences.append(f"{winner} wins: {gap.sentence(winner, 'best', less_is_better=less_is_better)}")
    flattered = None
    if searched is not None:
        value, count = searched
        fresh = rescore(problem, {"best": candidates["best"]}, images=count, repeats=repeats)["best"].mean
        if not math.isnan(fresh):
            flattered = (fresh - value) * sign
            verdict = f"was too good by {flattered:.4g}" if flattered > 0 else "was not too good"
            sentences.append(
                f"the search's value of its best, {value:.4g} on {count} images, {verdict}: "
                f"on as many images of fresh noise it is {fresh:.4g}"
            )
    return Verified(images, repeats, rescored, tuple(candidates), differences, tuple(sentences), flattered)


def _front_again(problem: Problem, rescored: Mapping[str, Rescored]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The names that no other dominates by its means, and a sentence for each of those that are dominated now."""
    directions = problem.objective.directions
    signs = {name: 1 if direction == "minimize" else -1 for name, direction in directions.items()}
    losses = {
        label: tuple(sign * scored.mean_of(name) for name, sign in signs.items()) for label, scored in rescored.items()
    }
    dropped = {}
    for label, own in losses.items():
        by = next((name for name, loss in losses.items() if dominates(loss, own)), None)
        if any(map(math.isnan, own)):
            dropped[label] = f"{label} is dropped: it could not be measured"
        elif by is not None:
            dropped[label] = f"{label} is dropped: on fresh noise {by} is nowhere worse"
    return tuple(label for label in losses if label not in dropped), dropped


def _broken_bounds(problem: Problem, rescored: Mapping[str, Rescored]) -> list[str]:
    """A sentence for each candidate that is beyond a bound once it is re-scored."""
    return [
        f"{label} is beyond a bound: {bound}; it has {bound.name} {scored.mean_of(bound.name):.4g}"
        for label, scored in rescored.items()
        for bound in problem.bounds
        if bound.name in scored.measured and bound.excess({bound.name: scored.mean_of(bound.name)}) > 0
    ]
