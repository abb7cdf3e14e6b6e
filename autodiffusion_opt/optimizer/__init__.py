"""Optimizers: how the next candidate is chosen. Always an Optuna sampler, so that storage, dashboard and parallel
workers are the same for all.

Kinds: ``evolution`` (AutoDiffusion's algorithm 1), ``random``. A kind is a definition with a method ``sampler``.
"""

from __future__ import annotations

from autodiffusion_opt.optimizer.base import OptimizerDefinition
from autodiffusion_opt.optimizer.evolution import EvolutionDefinition
from autodiffusion_opt.optimizer.uniform import RandomDefinition

KINDS: dict[str, type[OptimizerDefinition]] = {"evolution": EvolutionDefinition, "random": RandomDefinition}

__all__ = ["KINDS", "EvolutionDefinition", "OptimizerDefinition", "RandomDefinition"]
