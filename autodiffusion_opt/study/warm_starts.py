"""Candidates that a search begins with, beside the baselines: computed, or taken from what was found before."""

from __future__ import annotations

import time
import warnings
from collections.abc import Container, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError, unknown_text
from autodiffusion_opt.optimizer import OptimizerConfig
from autodiffusion_opt.paths import absolute
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.space import UNIFORM, Caching, Space
from autodiffusion_opt.study.config import StudyConfig
from autodiffusion_opt.study.problem import Problem
from autodiffusion_opt.study.results import stored_study
from autodiffusion_opt.trials.storage import Storage

DYNAMIC_PROGRAMMING = "dp"
GAPS = 2  # the widest of a warm start, of which each gets a partial step


@dataclass(frozen=True)
class WarmStart:
    """A candidate that a search begins with.

    Attributes:
        candidate: in the study's space.
        spent: what it cost to find, as JSON: ``name``, ``images``, ``nfe`` of each, ``seconds``; None: nothing new.
    """

    candidate: Candidate
    spent: Mapping[str, Any] | None = None


def warm_starts(
    config: StudyConfig,
    optimizer: OptimizerConfig | BaseSampler,
    problem: Problem,
    storage: Storage,
    known: Container[str] = (),
    progress: Progress = silent,
) -> dict[str, WarmStart]:
    """The warm starts of an optimizer, by name; the baselines among them are measured anyway, and not among these.

    Where steps may be partial ones, each comes with more of them too.

    Args:
        config: the study.
        optimizer: its ``start_from`` names ``dp``, studies, or candidates' files, whose paths start from the folder
            that the optimizer's table is in.
        problem: the study's model and space.
        storage: in which other studies are.
        known: names that the study has already.
        progress: is told of images that are sampled.

    Raises:
        UserError: for names that are none of these, files that are no candidates, studies without a result, and where
            dynamic programming cannot be had: not for a ``dp`` that is there by default, which is left out.
    """
    starts: dict[str, WarmStart] = {}
    for name in getattr(optimizer, "start_from", ()):
        if name in known or name in problem.baselines:
            continue
        if name == DYNAMIC_PROGRAMMING:
            is_asked_for = "start_from" in getattr(optimizer, "model_fields_set", ())
            starts |= _dynamic_programming(config, problem, progress, is_asked_for=is_asked_for)
        else:
            starts[name] = WarmStart(problem.space.nearest(_known(config, storage, name)))
    if isinstance(problem.space, Caching):
        for name, start in list(starts.items()):
            more = islice(problem.space.partial_steps_more(start.candidate).items(), GAPS)
            starts |= {f"{name}, {added}": WarmStart(candidate) for added, candidate in more}
    return starts


def _dynamic_programming(
    config: StudyConfig, problem: Problem, progress: Progress, *, is_asked_for: bool
) -> dict[str, WarmStart]:
    """The times of least local errors, as many as the uniform baseline has, and as any that has another number; none
    where there are none by default."""
    if problem.sampler is None:
        if is_asked_for:
            raise UserError(f"{config.path}: start_from: {DYNAMIC_PROGRAMMING} needs a pipeline to sample with")
        return {}
    from autodiffusion_opt.sampling.trajectory import local_errors

    began = time.perf_counter()
    try:
        points = trajectory_points(problem.space)
        measured = local_errors(problem.sampler, problem.info, points=points, progress=progress)
        times = [measured.errors.best_times(steps) for steps in _numbers_of_steps(problem.space)]
    except UserError as error:
        if is_asked_for:
            raise UserError(f"{config.path}: start_from: {DYNAMIC_PROGRAMMING}: {error}") from None
        warnings.warn(f"there is no warm start {DYNAMIC_PROGRAMMING!r}: {error}", stacklevel=4)
        return {}
    spent = {
        "name": DYNAMIC_PROGRAMMING,
        "images": measured.images,
        "nfe": measured.nfe,
        "seconds": round(time.perf_counter() - began, 3),
    }
    first, *others = (problem.space.nearest(Candidate.from_time_steps(each)) for each in times)
    more = {f"{DYNAMIC_PROGRAMMING} of {len(each.steps)} steps": WarmStart(each) for each in others}
    return {DYNAMIC_PROGRAMMING: WarmStart(first, spent)} | more


def trajectory_points(space: Space) -> int:
    """Points of the teacher's trajectory, enough for dynamic programming to choose a candidate's times from."""
    from autodiffusion_opt.sampling.trajectory import POINTS

    return max(POINTS, 2 * max(_numbers_of_steps(space)))


def _numbers_of_steps(space: Space) -> list[int]:
    """Those of the baselines, the uniform one's first; one fewer too where a partial step costs more than these leave
    of the budget."""
    baselines = space.baselines()
    numbers = list(dict.fromkeys(len(candidate.steps) for candidate in baselines.values()))
    if isinstance(space, Caching) and numbers[0] > 1 and not space.partial_steps_more(baselines[UNIFORM]):
        numbers.append(numbers[0] - 1)
    return numbers


def _known(config: StudyConfig, storage: Storage, name: str) -> Candidate:
    """The candidate of a file, or the best of another study."""
    if name.endswith(".json"):
        path = absolute(name, config.base_of("optimizer"))
        if not Path(path).is_file():
            raise UserError(f"{config.path}: start_from: there is no file {name} ({path})")
        return Candidate.load(path)
    studies = [known for known in optuna.get_all_study_names(storage) if known != config.name]
    if name not in studies:
        allowed = [DYNAMIC_PROGRAMMING, *studies]
        raise UserError(f"{config.path}: start_from: {unknown_text('a warm start', name, allowed)}")
    return stored_study(name, storage).top(1)[0].candidate
