"""A study's optimizer as the Optuna sampler that it runs with, and the pruner beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective import Objective
from autodiffusion_opt.objective.pruners import make_pruner
from autodiffusion_opt.optimizer import CandidateSampler, OptimizerConfig, ParameterSampler
from autodiffusion_opt.optimizer.base import kind_of, require_fully_parametric
from autodiffusion_opt.space import Space
from autodiffusion_opt.study.config import StudyConfig, build_optimizer, find_part
from autodiffusion_opt.study.problem import Problem
from autodiffusion_opt.trials.attributes import numbers_of
from autodiffusion_opt.trials.history import History

# Optimizers that search with several values at once.
SEVERAL_VALUES = ("evolution", "optuna:gp", "optuna:nsga2", "optuna:nsga3", "optuna:tpe", "random")


def named_optimizer(given: str | Mapping[str, Any] | BaseSampler, where: str) -> OptimizerConfig | BaseSampler:
    """The optimizer of a kind's name, a file, a table, or an Optuna sampler. Raises UserError, which says ``where``."""
    if isinstance(given, BaseSampler):
        return given
    if isinstance(given, str):
        named = find_part("optimizer", None, given, f"{where}: optimizer")
        return build_optimizer(named.table, named.where)
    return build_optimizer(given, f"{where}: optimizer")


def searching(optimizer: OptimizerConfig | BaseSampler, space: Space, seed: int) -> BaseSampler:
    """The Optuna sampler of an optimizer, for a space. Raises UserError where it cannot search it."""
    if isinstance(optimizer, OptimizerConfig):
        if not optimizer.proposes_candidates:
            require_fully_parametric(space, optimizer.kind)
        return optimizer.sampler(space, seed)
    if isinstance(optimizer, CandidateSampler | ParameterSampler):
        return optimizer
    require_fully_parametric(space, type(optimizer).__name__)
    return ParameterSampler(optimizer, seed)


def sampler_of(
    config: StudyConfig,
    optimizer: OptimizerConfig | BaseSampler,
    problem: Problem,
    history: History | None = None,
) -> BaseSampler:
    """The Optuna sampler of an optimizer, for a study's space.

    Args:
        config: the study.
        optimizer: its own, or another to go on with.
        problem: its space and objective.
        history: that the sampler reads, where it reads any; None: it opens its own.

    Raises:
        UserError: for a space that it cannot search, several values, or bounds that it does not look at.
    """
    sampler = searching(optimizer, problem.space, config.seed)
    if isinstance(sampler, CandidateSampler | ParameterSampler):
        _check_values(config, kind_of(optimizer), sampler, problem)
        sampler.history = history
    return sampler


def _check_values(
    config: StudyConfig, name: str, sampler: CandidateSampler | ParameterSampler, problem: Problem
) -> None:
    values, bounds = list(problem.objective.directions), problem.bounds
    if len(values) > 1 and not sampler.several_values:
        raise UserError(
            f"{config.path}: optimizer {name} searches with one value; this study has {', '.join(values)}: "
            f"use {', '.join(SEVERAL_VALUES)}, or bounds (at_most, at_least) in place of all but one"
        )
    if bounds and not sampler.keeps_bounds:
        raise UserError(
            f"{config.path}: optimizer {name} does not look at bounds; this study has "
            f"{', '.join(map(str, bounds))}: use local, {', '.join(SEVERAL_VALUES)}"
        )


def pruner_of(config: StudyConfig, sampler: BaseSampler, objective: Objective) -> BasePruner:
    """What stops candidates after a rung: the objective's pruner, else the optimizer's own.

    Raises:
        UserError: for a pruner in a study with several values.
    """
    setting = getattr(config.objective, "pruner", None)
    if setting is None:
        own: BasePruner | None = sampler.pruner() if isinstance(sampler, CandidateSampler) else None
        return NopPruner() if own is None else own
    if len(objective.directions) > 1:
        raise UserError(f"pruner: Optuna's pruners compare one value; this study has {', '.join(objective.directions)}")
    return make_pruner(setting, objective.rungs, numbers_of)  # type: ignore[attr-defined]  # those with a pruner
