"""Objectives: what is minimised, candidate -> value, by generating images and comparing them with a reference.

Kinds: ``fid`` (the Fréchet distance of features).
"""

from __future__ import annotations

from autodiffusion_opt.objective.definitions import KINDS, FidConfig, ObjectiveConfig

__all__ = ["KINDS", "FidConfig", "ObjectiveConfig"]
