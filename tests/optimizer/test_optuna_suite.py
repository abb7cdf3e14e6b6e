"""Optuna's own suite for samplers, run over ours. It samples from studies of any parameters, without a space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from marks import slow_but
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase

from autodiffusion_opt import testing
from autodiffusion_opt.optimizer import ParameterSampler
from autodiffusion_opt.study.config import build_optimizer, build_space

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
SPACE: Any = build_space(testing.SPACES["time steps"], "here").space(testing.INFO)
WRAPPED: dict[str, Callable[[], BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "gp": optuna.samplers.GPSampler,
    "qmc": optuna.samplers.QMCSampler,
    "random": optuna.samplers.RandomSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "nsga3": optuna.samplers.NSGAIIISampler,
}


class TestCandidateSamplers(BasicSamplerTestCase):
    @pytest.fixture(params=slow_but(["evolution", "random", "optuna:grid", "nevergrad:OnePlusOne"], "evolution"))
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        table = build_optimizer({"kind": request.param}, "here")
        return lambda: table.sampler(SPACE, 0)


class TestParameterSamplers(BasicSamplerTestCase):
    @pytest.fixture(params=slow_but(WRAPPED, "tpe", "random"))
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        return lambda: ParameterSampler(WRAPPED[request.param](), 0)
