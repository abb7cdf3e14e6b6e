"""What every space can do. A space is a frozen value; it knows the model's numbers and nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from optuna.distributions import BaseDistribution

from autodiffusion_opt.candidate import Candidate


class Space(Protocol):
    """What may be chosen: turns a candidate into named parameters and back.

    Every point of the box decodes to a valid candidate, and ``decode(encode(c)) == c`` for every candidate of the
    space, unless :attr:`fully_parametric` is false.
    """

    @property
    def fully_parametric(self) -> bool:
        """Whether the parameters say all of a candidate, so that an optimizer of parameters can search the space."""
        ...

    def distributions(self) -> dict[str, BaseDistribution]:
        """The box: Optuna's distribution of every parameter, always the same ones."""
        ...

    def decode(self, parameters: Mapping[str, Any]) -> Candidate:
        """The candidate of a point of the box. Total and deterministic; what does not fit is repaired."""
        ...

    def encode(self, candidate: Candidate) -> dict[str, Any]:
        """A point of the box that decodes to ``candidate``. Raises UserError if it is not of this space."""
        ...

    def check(self, candidate: Candidate) -> None:
        """Raises UserError, saying why, for a candidate that is not of this space."""
        ...

    def baselines(self) -> dict[str, Candidate]:
        """The usual choices at the same budget, by name; ``leading`` (uniform) is always there, and first."""
        ...

    def random(self, rng: np.random.Generator) -> Candidate:
        """A candidate drawn at random."""
        ...

    def mutate(self, candidate: Candidate, rng: np.random.Generator, probability: float) -> Candidate:
        """``candidate`` with each of its steps changed with ``probability``."""
        ...

    def crossover(self, one: Candidate, other: Candidate, rng: np.random.Generator) -> Candidate:
        """A child that takes each step from one of two parents."""
        ...

    def with_layer_share(self, share: float) -> Space:
        """The same space where only ``share`` (0..1) of the layers that may be removed may be; itself if none may."""
        ...
