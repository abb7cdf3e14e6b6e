"""A paper's table measured again: its published candidates, on a model and a reference that somebody has."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.catalogue import find_candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.paths import absolute
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.study.config import load_study_config
from autodiffusion_opt.study.problem import Problem, load_problem
from autodiffusion_opt.study.verify import Rescored, rescore


@dataclass(frozen=True)
class Published:
    """A row of a paper's table.

    Attributes:
        label: of the row.
        fid: as printed; None: of this candidate none is known to us.
        candidate: its name in ``studies/candidates/``; None: the pipeline's own steps.
        steps: of the pipeline's own.
    """

    label: str
    fid: float | None
    candidate: str | None = None
    steps: int = 0


@dataclass(frozen=True)
class Experiment:
    """A table of a paper: the study that says how it is measured, and its rows."""

    study: str
    rows: tuple[Published, ...]


# Li et al., AutoDiffusion, ICCV 2023: ADM-G on ImageNet 64, from 50,000 images.
EXPERIMENTS = {
    "adm-imagenet64": Experiment(
        "adm-imagenet64-4",
        (
            Published("4 steps, uniform", 138.66, steps=4),
            Published("4 steps, searched", 17.86, "adm-imagenet64-4"),
            Published("6 steps, searched", 11.17, "adm-imagenet64-6"),
            Published("steps and layers, N_max 580", None, "adm-imagenet64-nmax580"),
        ),
    )
}


@dataclass(frozen=True)
class Reproduced:
    """A row, and what it gave here."""

    published: Published
    scored: Rescored

    def to_dict(self) -> dict[str, object]:
        """As ``reproduce --json`` prints it."""
        published = {"label": self.published.label, "published": self.published.fid}
        return {**published, "measured": self.scored.mean, **self.scored.to_dict()}


def reproduce(
    name: str,
    weights: str,
    reference: str,
    *,
    images: int,
    repeats: int = 1,
    device: str | None = None,
    overrides: Iterable[str] = (),
    progress: Progress = silent,
) -> list[Reproduced]:
    """Measure an experiment's rows.

    Args:
        name: of the experiment.
        weights: the model's folder, as ``convert`` writes it.
        reference: as in an objective.
        images: a repeat.
        repeats: each with noise of its own.
        device: where the model runs.
        overrides: changes of the study, ``KEY=VALUE``.
        progress: is told of loading and of images.

    Raises:
        UserError: for a model or a reference that is not there, or candidates that do not fit the model.
    """
    experiment = EXPERIMENTS[name]
    given = {"pipeline.model": _path(weights), "objective.reference": _path(reference)}
    words = [*(f"{key}={json.dumps(value)}" for key, value in given.items()), *overrides]
    config = load_study_config(experiment.study, words).on_device(device)
    problem = load_problem(config, progress=progress)
    candidates = {row.label: _candidate(row, problem) for row in experiment.rows}
    scored = rescore(problem, candidates, images=images, repeats=repeats, progress=progress)
    return [Reproduced(row, scored[row.label]) for row in experiment.rows]


def _path(word: str) -> str:
    """A file or folder that is there, from the working folder; else the word as it is: a name."""
    path = absolute(word)
    return str(path) if path.exists() or "/" in word else word


def _candidate(row: Published, problem: Problem) -> Candidate:
    if row.candidate is None:
        from autodiffusion_opt.sampling.own import own_candidate

        if problem.sampler is None:
            raise UserError("the experiment's study has no pipeline")
        return own_candidate(problem.sampler, row.steps)
    path = find_candidate(row.candidate)
    if path is None:
        raise UserError(f"studies/candidates/{row.candidate}.json is not there; install autodiffusion-opt again")
    return Candidate.load(path)
