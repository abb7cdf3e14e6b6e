"""Random search: every candidate drawn from the space's own distribution, none twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from autodiffusion_opt.optimizer.base import CandidateSampler, OptimizerConfig, Proposal, unseen
from autodiffusion_opt.space import Space
from autodiffusion_opt.trials.history import Observation


class RandomConfig(OptimizerConfig):
    """``kind = "random"``: what every other optimizer must beat."""

    kind: Literal["random"] = "random"
    proposes_candidates: ClassVar[bool] = True

    def sampler(self, space: Space, seed: int) -> RandomCandidates:
        """The Optuna sampler."""
        return RandomCandidates(space, seed)


class RandomCandidates(CandidateSampler):
    """Independent draws from the space."""

    def propose(self, seen: Sequence[Observation], position: int, rng: np.random.Generator) -> Proposal:
        """A random candidate that was not proposed before."""
        return unseen([lambda: Proposal(self.space.random(rng), "random")], {one.candidate for one in seen})
