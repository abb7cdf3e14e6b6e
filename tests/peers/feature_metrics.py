"""Metrics of features that are given, and torch-fidelity's values of the same features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from autodiffusion_opt.config import build
from autodiffusion_opt.objective import METRICS, Metric
from autodiffusion_opt.objective.metrics.base import FeaturesConfig, TeacherConfig
from autodiffusion_opt.objective.references import Reference
from autodiffusion_opt.objective.statistics import Moments
from autodiffusion_opt.objective.teacher_reference import TeacherReference
from autodiffusion_opt.progress import silent
from autodiffusion_opt.sampling.kept import KeptRows

Array = NDArray[np.float32]
DIMENSIONS = 12
# Kinds that measure features. Those that measure images have tests of their own.
KINDS = sorted(kind for kind in METRICS if issubclass(METRICS[kind].Config, FeaturesConfig))
TO_TEACHER = {kind for kind in KINDS if issubclass(METRICS[kind].Config, TeacherConfig)}
# What a metric may be beyond the keys that all have, so that it suits 200 features.
SETTINGS: dict[str, dict[str, Any]] = {"kid": {"subsets": 10, "subset_size": 100}}


def features(count: int, seed: int = 0, shift: float = 0.0) -> Array:
    """Correlated, of unequal scale."""
    rng, mix = np.random.default_rng(seed), np.random.default_rng(99).normal(size=(DIMENSIONS, DIMENSIONS))
    return (rng.normal(size=(count, DIMENSIONS)) @ mix * np.linspace(0.5, 2, DIMENSIONS) + shift).astype(np.float32)


def reference(given: Array) -> Reference:
    def statistics() -> Any:
        moments = Moments(given.shape[1])
        moments.add(given)
        return moments.gaussian()

    return Reference("features", statistics, lambda: given)


class InMemory(KeptRows):
    """Rows that are there."""

    def __init__(self, rows: Array) -> None:
        self.kept = rows

    def need(self, count: int, progress: Any = silent) -> None:
        assert count <= len(self.kept)

    def rows(self, start: int, stop: int) -> Any:
        return self.kept[start:stop]


def table_of(kind: str, **more: Any) -> dict[str, Any]:
    compared = {"teacher_steps": 8} if kind in TO_TEACHER else {"reference": "digits"}
    return {"kind": kind, "images": 200, "features": "pixels"} | compared | more


def metric(kind: str, real: Array, **more: Any) -> Metric:
    table = table_of(kind, **SETTINGS.get(kind, {}) | more)
    compared = TeacherReference(InMemory(real), len(real), 10) if kind in TO_TEACHER else reference(real)
    return METRICS[kind](build(METRICS[kind].Config, table, "here"), compared)


def value(kind: str, generated: Array, real: Array, block: int = 1000, **more: Any) -> float:
    measuring = metric(kind, real, **more)
    for start in range(0, len(generated), block):
        measuring.add(generated[start : start + block])
    return measuring.value()


def fid_by_fidelity(generated: Array, real: Array) -> float:
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    both = (generated.astype(np.float64), real.astype(np.float64))
    stats = [{"mu": wide.mean(axis=0), "sigma": np.cov(wide, rowvar=False)} for wide in both]
    return float(fid.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"])


def kid_by_fidelity(generated: Array, real: Array, subsets: int = 10, size: int = 100, **kernel: Any) -> float:
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    wide = (torch.from_numpy(generated.astype(np.float64)), torch.from_numpy(real.astype(np.float64)))
    settings = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1.0} | kernel
    found = kid.kid_features_to_metric(
        *wide, kid_subsets=subsets, kid_subset_size=size, verbose=False, rng_seed=2020, **settings
    )
    return float(found["kernel_inception_distance_mean"])
