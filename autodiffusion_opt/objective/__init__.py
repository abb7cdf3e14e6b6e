"""Objectives: what is minimised, candidate -> named values, by generating images and comparing them with a reference.

A table ``[objective]`` names a metric by its ``kind`` (see :mod:`autodiffusion_opt.objective.metrics`). In Python an
objective may also be a function: :class:`ImageMetric`, :class:`CandidateMetric`.
"""

from __future__ import annotations

from autodiffusion_opt.objective.base import Objective, ObjectiveConfig, Score
from autodiffusion_opt.objective.custom import CandidateMetric, Features, ImageMetric
from autodiffusion_opt.objective.goals import Direction
from autodiffusion_opt.objective.metrics import METRICS, Metric, MetricConfig

__all__ = [
    "METRICS",
    "CandidateMetric",
    "Direction",
    "Features",
    "ImageMetric",
    "Metric",
    "MetricConfig",
    "Objective",
    "ObjectiveConfig",
    "Score",
]
