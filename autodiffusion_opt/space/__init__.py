"""A space says what may be chosen: it turns a candidate into named parameters and back, and names no model.

A kind of space is a class of tables (what TOML may say) and a frozen value (what it means for one model's numbers):
``SPACES[kind]`` builds the table, ``table.space(info)`` gives the :class:`Space`. Kinds:

- ``time-steps``: K distinct times, the whole network at each;
- ``joint``: times and the layers that run at each, under a budget of layer runs;
- ``segments``: full, partial and null steps of one schedule;
- ``cached-steps``: times, which of the steps are partial ones, and layers, under a budget of FLOPs;
- ``engine``: the settings of an engine's cache, and times.

To add one: a file with both classes and a line in :data:`SPACES`; a plug-in has an entry point of the group
``autodiffusion_opt.spaces``.
"""

from __future__ import annotations

from autodiffusion_opt.config import Registry
from autodiffusion_opt.space.base import (
    Caching,
    Compared,
    Evolvable,
    Exchanging,
    Layered,
    Space,
    SpaceConfig,
    Toggle,
    Walkable,
)
from autodiffusion_opt.space.baselines import OWN, UNIFORM
from autodiffusion_opt.space.cached_steps import CachedSteps
from autodiffusion_opt.space.cached_steps_config import CachedStepsConfig
from autodiffusion_opt.space.engine_config import EngineConfig
from autodiffusion_opt.space.engine_settings import EngineSettings
from autodiffusion_opt.space.joint import Joint
from autodiffusion_opt.space.joint_config import JointConfig
from autodiffusion_opt.space.layer_choice import LayerRanking
from autodiffusion_opt.space.model_info import Layout, ModelInfo
from autodiffusion_opt.space.segments import Segments
from autodiffusion_opt.space.segments_config import SegmentsConfig
from autodiffusion_opt.space.time_grid import TimeGrid
from autodiffusion_opt.space.time_steps import TimeSteps, TimeStepsConfig

SPACES: Registry[type[SpaceConfig]] = Registry(
    "space",
    "spaces",
    {
        "time-steps": TimeStepsConfig,
        "joint": JointConfig,
        "segments": SegmentsConfig,
        "cached-steps": CachedStepsConfig,
        "engine": EngineConfig,
    },
    SpaceConfig,
)

__all__ = [
    "OWN",
    "SPACES",
    "UNIFORM",
    "CachedSteps",
    "CachedStepsConfig",
    "Caching",
    "Compared",
    "EngineConfig",
    "EngineSettings",
    "Evolvable",
    "Exchanging",
    "Joint",
    "JointConfig",
    "LayerRanking",
    "Layered",
    "Layout",
    "ModelInfo",
    "Segments",
    "SegmentsConfig",
    "Space",
    "SpaceConfig",
    "TimeGrid",
    "TimeSteps",
    "TimeStepsConfig",
    "Toggle",
    "Walkable",
]
