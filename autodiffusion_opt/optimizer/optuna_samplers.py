"""Optuna's samplers by name, ``kind = "optuna:tpe"``: the tables, what of their arguments TOML can say, and the
packages that they need.

``optuna:grid`` and ``optuna:catcma`` are samplers of this package, named as Optuna and its hub name the methods.
"""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, QMCSampler
from optuna.trial import FrozenTrial
from pydantic import ConfigDict, Field, model_validator

from autodiffusion_opt.errors import UserError, reason_of, unknown_text
from autodiffusion_opt.optimizer.base import OptimizerConfig, require_fully_parametric
from autodiffusion_opt.optimizer.catcma import CatCmaSampler
from autodiffusion_opt.optimizer.grid import GridSearch
from autodiffusion_opt.optimizer.parameters import ParameterSampler
from autodiffusion_opt.space import Space

PREFIX = "optuna:"
SAMPLERS = {
    "tpe": "TPESampler",
    "cmaes": "CmaEsSampler",
    "gp": "GPSampler",
    "qmc": "QMCSampler",
    "random": "RandomSampler",
    "nsga2": "NSGAIISampler",
    "nsga3": "NSGAIIISampler",
}
# Packages that a sampler imports only when it is asked.
NEEDS = {"cmaes": ("cmaes",), "catcma": ("cmaes",), "gp": ("scipy", "torch"), "qmc": ("scipy",)}
# What TOML can say of an argument's annotation: `int | None`, `Literal['a', 'b']`. Not functions, not other samplers.
_PLAIN = re.compile(r"(int|float|bool|str|None)( \| (int|float|bool|str|None))*")


class OptunaConfig(OptimizerConfig):
    """``kind = "optuna:tpe"``, ``cmaes``, ``gp``, ``qmc``, ``random``, ``nsga2``, ``nsga3`` likewise: Optuna's sampler.

    Every other key is an argument of the sampler: ``n_startup_trials = 20``.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="after")
    def _arguments_exist(self) -> OptunaConfig:
        sampler = _sampler_class(self.kind)
        parameters = inspect.signature(sampler).parameters
        allowed = {
            name: str(parameter.annotation)
            for name, parameter in parameters.items()
            if name != "seed" and _PLAIN.fullmatch(str(parameter.annotation))
        }
        for name, value in (self.__pydantic_extra__ or {}).items():
            if name == "seed":
                raise ValueError("seed is the study's: set it beside trials")
            if name in parameters and name not in allowed:
                raise ValueError(f"{name} of {sampler.__name__} takes objects of Python: pass the sampler in Python")
            if name not in allowed:
                raise ValueError(unknown_text(f"an argument of {sampler.__name__}", name, allowed))
            if not _fits(value, allowed[name]):
                raise ValueError(f"{name} of {sampler.__name__} must be {allowed[name]}; got {value!r}")
        return self

    def sampler(self, space: Space, seed: int) -> BaseSampler:
        """The sampler. Raises UserError for arguments that it refuses, or a package that is not installed."""
        require_fully_parametric(space, self.kind)
        require_packages(self.kind)
        options = dict(self.__pydantic_extra__ or {})
        sampler_class: Callable[..., BaseSampler] = _sampler_class(self.kind)
        try:
            with warnings.catch_warnings():
                # A table that names a sampler, or an option, says that it is wanted.
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                if sampler_class is QMCSampler:
                    return ParameterSampler(PositionalQMC(space.distributions(), seed=seed, **options), seed)
                return ParameterSampler(sampler_class(seed=seed, **options), seed)
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"optimizer {self.kind}: {reason_of(error)}") from None


class GridConfig(OptimizerConfig):
    """``kind = "optuna:grid"``: every combination of evenly spaced values, in random order.

    Attributes:
        points: values of each parameter that has more; those of a choice are all taken. Absent: as many, 2 to 10, as
            keep the grid within 10,000 combinations.
    """

    kind: Literal["optuna:grid"] = "optuna:grid"
    points: int | None = Field(default=None, ge=2)

    def sampler(self, space: Space, seed: int) -> GridSearch:
        """The sampler. Raises UserError for a grid of too many points."""
        require_fully_parametric(space, self.kind)
        return GridSearch(space, seed, self.points)


class CatCmaConfig(OptimizerConfig):
    """``kind = "optuna:catcma"``: CatCMA with margin, a CMA-ES for numbers, whole numbers and choices at once.

    Attributes:
        population: candidates a generation; absent: 4 + 3 ln(parameters).
    """

    kind: Literal["optuna:catcma"] = "optuna:catcma"
    population: int | None = Field(default=None, ge=4)

    def sampler(self, space: Space, seed: int) -> BaseSampler:
        """The sampler. Raises UserError where the package cmaes is not installed."""
        require_fully_parametric(space, self.kind)
        require_packages(self.kind)
        return ParameterSampler(CatCmaSampler(space.distributions(), self.population), seed)


class PositionalQMC(QMCSampler):
    """Optuna's quasi-random sequence, its element the trial's number: the position, as ParameterSampler shows it.

    Optuna counts the elements in an attribute of the study, so a retry skips one, and takes the first trial's
    parameters at random.

    Args:
        box: the distribution of every parameter.
        options: of Optuna's class.
    """

    def __init__(self, box: Mapping[str, BaseDistribution], **options: Any) -> None:
        super().__init__(**options)
        self._box = {name: distribution for name, distribution in box.items() if not distribution.single()}
        self._element = 0

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole box, always: a sequence of another dimension is another sequence."""
        return dict(self._box)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The element of the trial's number."""
        self._element = trial.number
        return super().sample_relative(study, trial, search_space)

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._element  # what Optuna's class asks for


def require_packages(kind: str) -> None:
    """Raises UserError where a package that the sampler imports inside a trial is not installed."""
    for package in NEEDS.get(kind.removeprefix(PREFIX), ()):
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(f"optimizer {kind} needs the package {package}: pip install {package}") from None


def _sampler_class(kind: str) -> type[BaseSampler]:
    name = kind.removeprefix(PREFIX)
    if name not in SAMPLERS:
        raise ValueError(unknown_text("a sampler of Optuna", kind, [PREFIX + known for known in SAMPLERS]))
    sampler: type[BaseSampler] = getattr(optuna.samplers, SAMPLERS[name])
    return sampler


def _fits(value: Any, annotation: str) -> bool:
    """Whether a TOML value is of one of an annotation's types; a whole number is also a number."""
    names = annotation.split(" | ")
    return type(value).__name__ in names or (type(value) is int and "float" in names)
