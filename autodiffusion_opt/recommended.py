"""Optimizers worth trying first, with what each is for; docs/optimizers.md has the measurements."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

RECOMMENDED: Mapping[str, str] = MappingProxyType(
    {
        "local": "pattern search in log-SNR from warm starts, with rungs of its own; the default",
        "evolution": "AutoDiffusion's evolutionary search; times and layers, several values",
        "random": "random search: what every other one must beat",
        "optuna:tpe": "tree-structured Parzen estimators; several values, bounds",
        "optuna:gp": "Gaussian processes, for few trials of few parameters",
        "optuna:cmaes": "CMA-ES, for times alone",
        "optuna:nsga2": "a genetic algorithm for fronts of several values",
        "nevergrad:CMA": "CMA-ES of Nevergrad",
        "nevergrad:TwoPointsDE": "differential evolution with two-point crossover",
        "nevergrad:NgIohTuned": "Nevergrad's own choice for the space and the budget",
    }
)
