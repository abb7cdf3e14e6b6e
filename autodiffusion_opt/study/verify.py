"""Re-score candidates honestly: fresh noise, more images, several repeats.

Search values are for ranking: the best of many noisy values is too good, and FID is biased by the number of images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import EvaluationError
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.study.problem import Problem

# Seeds of re-scoring start here, far from those that tables use.
FRESH_SEED = 1_000_000_007


@dataclass(frozen=True)
class Rescored:
    """The first value of a candidate over repeats, each with noise of its own; NaN where it could not be measured."""

    candidate: Candidate
    values: tuple[float, ...]

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
        std = None if math.isnan(self.std) else self.std
        return {"mean": self.mean, "std": std, "values": list(self.values), "candidate": self.candidate.to_dict()}


def rescore(
    problem: Problem,
    candidates: Mapping[str, Candidate],
    *,
    images: int,
    repeats: int,
    progress: Progress = silent,
) -> dict[str, Rescored]:
    """Each candidate scored ``repeats`` times on ``images`` images; repeat r uses the same fresh noise for all.

    Args:
        problem: a study's model and objective.
        candidates: by name; equal candidates are scored once.
        images: a repeat.
        repeats: how often.
        progress: is told of the images of all candidates and repeats together.

    Raises:
        UserError: for a candidate that does not fit the model, before any is scored.
    """
    distinct = list(dict.fromkeys(candidates.values()))
    if problem.sampler is not None:
        from autodiffusion_opt.sampling.apply import install

        for candidate in distinct:
            with install(problem.sampler.pipeline, candidate):
                pass
    runs = [(candidate, repeat) for candidate in distinct for repeat in range(repeats)]
    values: dict[Candidate, list[float]] = {candidate: [] for candidate in distinct}
    name = next(iter(problem.objective.directions))
    for index, (candidate, repeat) in enumerate(runs):

        def tell(what: str, done: int, total: int, before: int = index * images) -> None:
            progress("re-scoring images", before + done, len(runs) * images)

        try:
            *_, score = problem.objective.measure(candidate, images=images, seed=FRESH_SEED + repeat, progress=tell)
            values[candidate].append(score.values[name])
        except EvaluationError:  # the others are measured all the same
            values[candidate].append(math.nan)
    return {name: Rescored(candidate, tuple(values[candidate])) for name, candidate in candidates.items()}
