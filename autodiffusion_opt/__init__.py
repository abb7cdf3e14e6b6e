"""Search the time steps and the layers of a pretrained diffusion model, training nothing.

import autodiffusion_opt as ado

study = ado.Study("mine", pipeline="digits", space="four-steps", objective="digits-fid", trials=40)
study.run()
pipeline = ado.apply(ado.load_pipeline("digits"), study.best().candidate)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.errors import EvaluationError, UserError

if TYPE_CHECKING:
    from autodiffusion_opt.objective import CandidateMetric, Features, ImageMetric, Metric, MetricConfig
    from autodiffusion_opt.optimizer import CandidateSampler, OptimizerConfig, Proposal
    from autodiffusion_opt.plugins import (
        register_features,
        register_layer_kind,
        register_metric,
        register_optimizer,
        register_space,
    )
    from autodiffusion_opt.sampling.adm import ADMPipeline, NoisyClassifier
    from autodiffusion_opt.sampling.apply import applied, apply, install, remove
    from autodiffusion_opt.sampling.compile import compile_layers
    from autodiffusion_opt.sampling.load import load_pipeline
    from autodiffusion_opt.space import ModelInfo, Space, SpaceConfig
    from autodiffusion_opt.study.callback import Callback
    from autodiffusion_opt.study.compare import compare
    from autodiffusion_opt.study.run import Study

__version__ = "0.2.0"
# Names that need torch, SQL or Optuna are imported when they are first used.
_LATER = {
    "ADMPipeline": "sampling.adm",
    "Callback": "study.callback",
    "CandidateMetric": "objective",
    "CandidateSampler": "optimizer",
    "Features": "objective",
    "ImageMetric": "objective",
    "Metric": "objective",
    "MetricConfig": "objective",
    "ModelInfo": "space",
    "NoisyClassifier": "sampling.adm",
    "OptimizerConfig": "optimizer",
    "Proposal": "optimizer",
    "Space": "space",
    "SpaceConfig": "space",
    "Study": "report.study",
    "applied": "sampling.apply",
    "apply": "sampling.apply",
    "compare": "study.compare",
    "compile_layers": "sampling.compile",
    "install": "sampling.apply",
    "load_pipeline": "sampling.load",
    "register_features": "plugins",
    "register_layer_kind": "plugins",
    "register_metric": "plugins",
    "register_optimizer": "plugins",
    "register_space": "plugins",
    "remove": "sampling.apply",
}

__all__ = [
    "ADMPipeline",
    "Callback",
    "Candidate",
    "CandidateMetric",
    "CandidateSampler",
    "EvaluationError",
    "Features",
    "ImageMetric",
    "Metric",
    "MetricConfig",
    "ModelInfo",
    "NoisyClassifier",
    "OptimizerConfig",
    "Proposal",
    "Space",
    "SpaceConfig",
    "Step",
    "Study",
    "UserError",
    "applied",
    "apply",
    "compare",
    "compile_layers",
    "install",
    "load_pipeline",
    "register_features",
    "register_layer_kind",
    "register_metric",
    "register_optimizer",
    "register_space",
    "remove",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
