"""Optimizers: how the next candidate is chosen. Always an Optuna sampler, so that storage, dashboard and parallel
workers are the same for all.

Kinds: ``local`` (pattern search from warm starts, the default), ``evolution`` (AutoDiffusion's algorithm 1),
``random``; Optuna's samplers as ``optuna:NAME``, Nevergrad's optimizers as ``nevergrad:NAME``. A kind is a table with a
method ``sampler(space, seed)``. In Python any Optuna sampler will do.
"""

from __future__ import annotations

from autodiffusion_opt.config import Registry
from autodiffusion_opt.optimizer.base import CandidateSampler, OptimizerConfig, Proposal
from autodiffusion_opt.optimizer.evolution import EvolutionConfig
from autodiffusion_opt.optimizer.local import LocalSearchConfig
from autodiffusion_opt.optimizer.nevergrad import NevergradConfig
from autodiffusion_opt.optimizer.nevergrad_names import PREFIX as NEVERGRAD_PREFIX
from autodiffusion_opt.optimizer.optuna_samplers import PREFIX, SAMPLERS, CatCmaConfig, GridConfig, OptunaConfig
from autodiffusion_opt.optimizer.parameters import ParameterSampler
from autodiffusion_opt.optimizer.random_search import RandomSearchConfig

_BUILTIN: dict[str, type[OptimizerConfig]] = {
    "local": LocalSearchConfig,
    "evolution": EvolutionConfig,
    "random": RandomSearchConfig,
    **{PREFIX + name: OptunaConfig for name in SAMPLERS},
    PREFIX + "grid": GridConfig,
    PREFIX + "catcma": CatCmaConfig,
}
# What a study without a table [optimizer] uses.
DEFAULT = "local"
OPTIMIZERS: Registry[type[OptimizerConfig]] = Registry(
    "optimizer", "optimizers", _BUILTIN, OptimizerConfig, families={NEVERGRAD_PREFIX: NevergradConfig}
)

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
