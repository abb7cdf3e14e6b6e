"""Metrics on features: a class with ``add(features)`` and ``value()``, a file each, one registry.

Kinds: ``fid`` (Fréchet distance), ``kid`` (unbiased polynomial MMD).
"""

from __future__ import annotations

from autodiffusion_opt.objective.metrics.base import METRICS, Metric, MetricConfig
from autodiffusion_opt.objective.metrics.fid import Fid
from autodiffusion_opt.objective.metrics.kid import Kid

METRICS.register("fid", Fid)
METRICS.register("kid", Kid)

__all__ = ["METRICS", "Fid", "Kid", "Metric", "MetricConfig"]
