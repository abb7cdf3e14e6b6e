"""Spaces: what may be chosen. A kind of space is a definition (what TOML may say) and a frozen value (what it means).

Kinds: ``time-steps`` (K times, the whole network at each), ``joint`` (times and the layers run at each, under a budget
of layer runs).
"""

from __future__ import annotations

from autodiffusion_opt.space.base import Space
from autodiffusion_opt.space.definitions import KINDS, JointConfig, SpaceConfig, TimeStepsConfig
from autodiffusion_opt.space.model_info import ModelInfo
from autodiffusion_opt.space.joint import Joint
from autodiffusion_opt.space.time_steps import TimeSteps

__all__ = [
    "KINDS",
    "Joint",
    "JointConfig",
    "ModelInfo",
    "Space",
    "SpaceConfig",
    "TimeSteps",
    "TimeStepsConfig",
]
