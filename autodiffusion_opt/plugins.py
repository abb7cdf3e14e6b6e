"""Adding to the kinds that a table may name: one function for each registry.

A package adds its kinds without a call by entry points of the groups ``autodiffusion_opt.metrics``, ``.features``,
``.optimizers`` and ``.spaces``, which point at what these functions take.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective import METRICS, Metric
from autodiffusion_opt.objective.metrics.base import ImagesConfig
from autodiffusion_opt.optimizer import OPTIMIZERS, OptimizerConfig
from autodiffusion_opt.space import SPACES, SpaceConfig

if TYPE_CHECKING:
    import torch

    from autodiffusion_opt.objective.features import Extractor


def register_metric(name: str, metric: type[Metric]) -> None:
    """``[objective] kind = "name"``. Raises UserError for a class that is no complete :class:`Metric`."""
    if not (isinstance(metric, type) and issubclass(metric, Metric) and issubclass(metric.Config, ImagesConfig)):
        raise UserError(
            f"a metric must be a subclass of ado.Metric, its Config one of ado.MetricConfig; got {metric!r}"
        )
    METRICS.register(name, metric)


def register_features(name: str, load: Callable[[torch.device, Path | None], Extractor]) -> None:
    """``features = "name"``; ``load(device, weights)`` gives an extractor: ``identity``, and uint8 NCHW -> (N, D)."""
    from autodiffusion_opt.objective.features import FEATURES

    if not callable(load):
        raise UserError(f"features must be registered with a function (device, weights) -> extractor; got {load!r}")
    FEATURES.register(name, load)


def register_optimizer(name: str, config: type[OptimizerConfig]) -> None:
    """``[optimizer] kind = "name"``. Raises UserError for a class that is no complete :class:`OptimizerConfig`."""
    if not (isinstance(config, type) and issubclass(config, OptimizerConfig)):
        raise UserError(f"an optimizer must be a subclass of ado.OptimizerConfig; got {config!r}")
    OPTIMIZERS.register(name, config)


def register_space(name: str, config: type[SpaceConfig]) -> None:
    """``[space] kind = "name"``. Raises UserError for a class that is no complete :class:`SpaceConfig`."""
    if not (isinstance(config, type) and issubclass(config, SpaceConfig)):
        raise UserError(f"a space must be a subclass of ado.SpaceConfig; got {config!r}")
    SPACES.register(name, config)


def register_layer_kind(module_class: Any, kind: str, bypass: Any = None, removable: Any = None) -> Any:
    """Make every block of a class a layer; see :func:`autodiffusion_opt.sampling.layers.register_layer_kind`."""
    from autodiffusion_opt.sampling import layers

    more = {} if removable is None else {"removable": removable}
    return layers.register_layer_kind(module_class, kind, bypass, **more)
