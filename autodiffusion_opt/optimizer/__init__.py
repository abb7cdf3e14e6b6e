"""Optimizers: how the next candidate is chosen. Always an Optuna sampler, so that storage, dashboard and parallel
workers are the same for all.

Kinds: ``evolution`` (AutoDiffusion's algorithm 1), ``random``. A kind is a definition with a method ``sampler``.
"""

from __future__ import annotations

from autodiffusion_opt.optimizer.base import OptimizerConfig
from autodiffusion_opt.optimizer.evolution import EvolutionConfig
from autodiffusion_opt.optimizer.random_search import RandomConfig

KINDS: dict[str, type[OptimizerConfig]] = {"evolution": EvolutionConfig, "random": RandomConfig}

__all__ = ["KINDS", "EvolutionConfig", "OptimizerConfig", "RandomConfig"]
