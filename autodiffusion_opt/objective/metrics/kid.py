"""``kind = "kid"``: the unbiased squared maximum mean discrepancy with a polynomial kernel (Bińkowski et al., 2018,
section 4.1 and equation 4), averaged over random subsets as torch-fidelity does."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.metrics.base import Metric, MetricConfig

if TYPE_CHECKING:
    from autodiffusion_opt.objective.references import Reference

# The seed of the subsets: torch-fidelity's own, so that the values are its values.
SUBSET_SEED = 2020
LARGEST_SUBSET = 1000


class KidConfig(MetricConfig):
    """The keys of ``kind = "kid"``.

    Attributes:
        subsets: how many random subsets are averaged.
        subset_size: m, images of either side in each; absent: 1,000, or as many as both sides have.
        degree: of the kernel (γ x·y + c)^degree.
        gamma: γ; absent: 1 / D.
        coef0: c.
    """

    subsets: int = Field(default=100, ge=1)
    subset_size: int | None = Field(default=None, ge=2)
    degree: int = Field(default=3, ge=1)
    gamma: float | None = Field(default=None, gt=0)
    coef0: float = 1.0

    @model_validator(mode="after")
    def _subsets_fit(self) -> KidConfig:
        if self.subset_size is not None and self.subset_size > self.rungs[0]:
            raise ValueError(f"subset_size must be at most images, {self.rungs[0]}; got {self.subset_size}")
        return self


class Kid(Metric):
    """Keeps the features of a candidate's images: N·D floats."""

    Config: ClassVar[type[MetricConfig]] = KidConfig

    def __init__(self, config: MetricConfig, reference: Reference) -> None:
        assert isinstance(config, KidConfig)
        self._config = config
        self._reference = reference.features
        self.dimensions = self._reference.shape[1]
        if not np.isfinite(self._reference).all():
            raise UserError("reference: the features of its images must be finite numbers; some are not")
        if len(self._reference) < 2:
            raise UserError(f"reference: it must have at least 2 images, for pairs of them; got {len(self._reference)}")
        size = config.subset_size
        if size is not None and len(self._reference) < size:
            raise UserError(
                f"subset_size must be at most {len(self._reference)}, the images of the reference; got {size}"
            )
        self._blocks: list[NDArray[np.float32]] = []

    def add(self, features: NDArray[np.float32]) -> None:
        """(N, D)."""
        self._blocks.append(features)

    def value(self) -> float:
        """The mean over subsets; unbiased, so it may be slightly below 0."""
        features = np.concatenate(self._blocks)
        size = self._config.subset_size or min(LARGEST_SUBSET, len(features), len(self._reference))
        random = np.random.RandomState(SUBSET_SEED)
        values = []
        for _ in range(self._config.subsets):
            generated = features[random.choice(len(features), size, replace=False)]
            real = self._reference[random.choice(len(self._reference), size, replace=False)]
            values.append(self._mmd2(generated, real))
        return float(np.mean(values))

    def _mmd2(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
        """Unbiased MMD² of two samples of equal size m: Σ_{i≠j} (k(x_i,x_j) + k(y_i,y_j)) / m(m-1) - 2 mean k(x,y)."""
        m = len(x)
        k_xx, k_yy, k_xy = self._kernel(x, x), self._kernel(y, y), self._kernel(x, y)
        within = (k_xx.sum() - np.trace(k_xx) + k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))
        return float(within - 2 * k_xy.mean())

    def _kernel(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float64]:
        gamma = self._config.gamma or 1.0 / x.shape[1]
        wide = x.astype(np.float64) @ y.astype(np.float64).T
        kernel: NDArray[np.float64] = (gamma * wide + self._config.coef0) ** self._config.degree
        return kernel
