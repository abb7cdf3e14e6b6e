"""One trial: propose, measure, tell."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import EvaluationError
from autodiffusion_opt.objective import Score
from autodiffusion_opt.objective.image_objective import Clock
from autodiffusion_opt.objective.pruners import AtEachImage
from autodiffusion_opt.space import cost
from autodiffusion_opt.study.callback import Callback
from autodiffusion_opt.study.previews import is_improving, keep_preview
from autodiffusion_opt.study.problem import Problem
from autodiffusion_opt.study.provenance import provenance
from autodiffusion_opt.trials.attributes import (
    CANDIDATE,
    COST_EXCESS,
    ERROR,
    EVALUATION_FAILED,
    EXCESS,
    FIXED_PARAMETERS,
    FLAT,
    OF_IMAGES,
    OPTIMIZER,
    ORIGIN,
    PROVENANCE,
    RETRY_OF,
    REUSED_FROM,
    SCORE,
    SECONDS_OF,
    candidate_of,
    constraints_of,
    given_name,
)
from autodiffusion_opt.trials.claims import Claim, storage_of
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.studies import begin_trial, set_constraints, set_parameters


def run_trial(optimizer: str, problem: Problem, claim: Claim, history: History, callback: Callback) -> FrozenTrial:
    """Run the trial that a worker has claimed; the trial as SQL then holds it.

    One that others failed meanwhile, since this worker did not answer, stays failed: a warning says so.

    Args:
        optimizer: the kind of the optimizer that is asked.
        problem: the study's model, space and objective.
        claim: the trial.
        history: of the study.
        callback: is told of the candidate and its images.
    """
    with claim.heartbeat():
        try:
            _run(optimizer, problem, claim, history, callback)
        except optuna.exceptions.UpdateFinishedTrialError:
            warnings.warn(
                f"trial {claim.number} does not count: others took this worker for dead, so long did it not answer",
                stacklevel=2,
            )
    return history.refresh().trials[claim.number]


def _run(optimizer: str, problem: Problem, claim: Claim, history: History, callback: Callback) -> None:
    begun, clock = time.perf_counter(), Clock()
    trial = begin_trial(claim.study, claim.trial_id)
    # Read from SQL: the trial object does not know what its sampler has published meanwhile.
    stored = history.refresh().trials[claim.number]
    is_enqueued = bool(stored.system_attrs.get(FIXED_PARAMETERS))
    candidate = candidate_of(stored)
    with claim.together():
        set_parameters(trial, problem.space.distributions())
        if candidate is None:  # chosen by its parameters alone
            candidate = problem.space.decode(trial.params)
            trial.set_user_attr(ORIGIN, "enqueued" if is_enqueued else optimizer)
            trial.set_user_attr(CANDIDATE, candidate.to_json())
        # A retry keeps the name of who proposed what it retries; what was given or enqueued has none.
        if not {OPTIMIZER, RETRY_OF} & set(stored.user_attrs) and not is_enqueued:
            trial.set_user_attr(OPTIMIZER, optimizer)
    callback.proposed(trial.number, candidate)
    is_given = given_name(stored) is not None  # never stopped: what comes after is compared with it
    earlier = history.measured_with(candidate)
    if earlier is not None and not (is_given and earlier.state == TrialState.PRUNED):
        _reuse(claim, trial, earlier)
        return
    try:
        score, is_stopped = _measure(problem, trial, candidate, callback, clock, may_stop=not is_given)
    except EvaluationError as error:
        with claim.together():
            trial.set_user_attr(ERROR, str(error))
            trial.set_user_attr(EVALUATION_FAILED, True)
            trial.set_user_attr(PROVENANCE, provenance(problem))
            claim.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        return
    bookkeeping = time.perf_counter() - begun - clock.seconds["measuring"]
    seconds_of = {**score.seconds_of, "bookkeeping": bookkeeping}
    more = {SECONDS_OF: seconds_of, PROVENANCE: provenance(problem)}
    directions = claim.study.directions
    values = tuple(score.values[name] for name in problem.objective.directions)
    with claim.together():
        trial.set_user_attr(SCORE, score.to_dict() | more)
        _set_flat(trial, score.to_dict())
        if score.preview is not None and not is_stopped:
            trials = history.trials
            if is_given or is_improving(values, trials.values(), directions):
                columns = problem.sampler.columns if problem.sampler else None
                keep_preview(trial, score.preview, trials, storage_of(claim.study).url, columns)
        set_constraints(claim.study, trial, {bound.key: bound.excess(score.values) for bound in problem.bounds})
        if is_stopped:
            claim.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            claim.study.tell(trial, list(values), skip_if_finished=True)


def _set_flat(trial: optuna.Trial, score: Mapping[str, Any]) -> None:
    for name in FLAT:
        if score.get(name) is not None:
            trial.set_user_attr(name, score[name])


def _reuse(claim: Claim, trial: optuna.Trial, earlier: FrozenTrial) -> None:
    """Take over what was measured of an equal candidate, which is never sampled twice."""
    for images, value in earlier.intermediate_values.items():
        trial.report(value, images)
    with claim.together():
        trial.set_user_attr(REUSED_FROM, earlier.number)
        trial.set_user_attr(SCORE, earlier.user_attrs.get(SCORE, {}))
        _set_flat(trial, earlier.user_attrs.get(SCORE, {}))
        set_constraints(claim.study, trial, constraints_of(earlier))
        if OF_IMAGES in earlier.user_attrs:
            trial.set_user_attr(OF_IMAGES, earlier.user_attrs[OF_IMAGES])
        if earlier.state == TrialState.PRUNED:
            claim.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            claim.study.tell(trial, list(earlier.values), skip_if_finished=True)


def _measure(
    problem: Problem, trial: optuna.Trial, candidate: Candidate, callback: Callback, clock: Clock, *, may_stop: bool
) -> tuple[Score, bool]:
    """The score of the last rung that was measured, and whether the candidate was stopped there.

    After each rung the value goes to SQL, at the number of images, where the pruner compares it. The clock's part
    ``measuring`` is the objective's time.
    """
    objective = problem.objective
    rungs: tuple[int, ...] = getattr(objective, "rungs", ())
    names = list(objective.directions)
    score: Score | None = None
    clock.start()
    for score in objective.measure(candidate, progress=callback.progress):
        clock.stop("measuring")
        if len(rungs) > 1 and len(names) == 1:
            trial.report(score.values[names[0]], score.images)
            if isinstance(trial.study.pruner, AtEachImage):
                trial.set_user_attr(OF_IMAGES, [float(f"{number:.7g}") for number in score.of_images])
            if may_stop and score.images < rungs[-1]:
                if problem.bounds:
                    excess = [(bound.name, max(bound.excess(score.values), 0)) for bound in problem.bounds]
                    trial.set_user_attr(EXCESS, sum(beyond for _, beyond in excess))
                    trial.set_user_attr(COST_EXCESS, sum(beyond for name, beyond in excess if name in cost.COSTS))
                if trial.should_prune():
                    return score, True
        clock.start()
    clock.stop("measuring")
    assert score is not None  # an objective yields at least one
    return score, False
