"""Optimizers: how the next candidate is chosen. Always an Optuna sampler, so that storage, dashboard and parallel
workers are the same for all.

Kinds: ``local`` (pattern search from warm starts), ``evolution`` (AutoDiffusion's algorithm 1), ``random``; Optuna's
own ``optuna:tpe``, ``optuna:cmaes``, ``optuna:nsga2``, ``optuna:random``. A kind is a table with a method
``sampler(space, seed)``. In Python any Optuna sampler will do.
"""

from __future__ import annotations

from autodiffusion_opt.config import Registry
from autodiffusion_opt.optimizer.base import CandidateSampler, OptimizerConfig, Proposal
from autodiffusion_opt.optimizer.evolution import EvolutionConfig
from autodiffusion_opt.optimizer.local import LocalSearchConfig
from autodiffusion_opt.optimizer.parameters import PREFIX, SAMPLERS, OptunaConfig, ParameterSampler
from autodiffusion_opt.optimizer.random_search import RandomSearchConfig

_BUILTIN: dict[str, type[OptimizerConfig]] = {
    "local": LocalSearchConfig,
    "evolution": EvolutionConfig,
    "random": RandomSearchConfig,
    **{PREFIX + name: OptunaConfig for name in SAMPLERS},
}
# What a study without a table [optimizer] uses.
DEFAULT = "local"
OPTIMIZERS: Registry[type[OptimizerConfig]] = Registry("optimizer", "optimizers", _BUILTIN, OptimizerConfig)

__all__ = [
    "DEFAULT",
    "OPTIMIZERS",
    "CandidateSampler",
    "EvolutionConfig",
    "LocalSearchConfig",
    "OptimizerConfig",
    "OptunaConfig",
    "ParameterSampler",
    "Proposal",
    "RandomSearchConfig",
]
