"""Random search: every candidate drawn from the space's own distribution, none twice."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from autodiffusion_opt.optimizer.base import CandidateSampler, OptimizerConfig, Proposal, first_new, require_evolvable
from autodiffusion_opt.space import Evolvable, Space
from autodiffusion_opt.trials.history import Past


class RandomSearchConfig(OptimizerConfig):
    """``kind = "random"``: what every other optimizer must beat."""

    kind: Literal["random"] = "random"
    proposes_candidates: ClassVar[bool] = True

    def sampler(self, space: Space, seed: int) -> RandomSearch:
        """The Optuna sampler. Raises UserError for a space that cannot draw candidates."""
        return RandomSearch(require_evolvable(space, self.kind), seed)


class RandomSearch(CandidateSampler):
    """Independent draws from the space."""

    several_values = True

    def __init__(self, space: Evolvable, seed: int) -> None:
        super().__init__(space, seed)
        self.evolvable = space

    def propose(self, past: Past, rng: np.random.Generator) -> Proposal:
        """A random candidate that was not proposed before."""
        return first_new([lambda: Proposal(self.evolvable.random(rng), "random")], past)
