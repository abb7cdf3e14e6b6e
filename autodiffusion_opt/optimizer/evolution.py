"""AutoDiffusion's evolutionary search (Li et al., ICCV 2023, algorithm 1), stateless over what SQL holds.

Differences from the authors' script, all of them repairs: a generation's parents are the best of *all* earlier
generations and of the baselines; crossover works on sorted sequences and never loses a step; layer sets do mutate;
the budget holds for every child; no candidate is proposed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.optimizer.base import CandidateSampler, OptimizerConfig, Proposal, unseen
from autodiffusion_opt.space import Space
from autodiffusion_opt.trials.history import Observation, best_of


class EvolutionConfig(OptimizerConfig):
    """``kind = "evolution"``; the defaults are those of the authors' scripts.

    Attributes:
        population: P, candidates a generation.
        parents: k, the best so far that have children.
        mutations: N_m, children of one parent each generation.
        crossovers: N_c, children of two parents; the rest of a generation is random.
        probability: p, of each step to be changed in a mutation.
        first_probability: p of the first generation's mutants of the uniform candidate.
        stage_one: at most so many generations search time steps with the whole network, in a space that has layers.
        growth: generations over which the removable share of layers then grows to its maximum.
    """

    kind: Literal["evolution"] = "evolution"
    proposes_candidates: ClassVar[bool] = True
    population: int = Field(default=50, ge=2)
    parents: int = Field(default=10, ge=1)
    mutations: int = Field(default=25, ge=0)
    crossovers: int = Field(default=15, ge=0)
    probability: float = Field(default=0.25, gt=0, le=1)
    first_probability: float = Field(default=0.1, gt=0, le=1)
    stage_one: int = Field(default=3, ge=0)
    growth: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _children_fit(self) -> EvolutionConfig:
        if self.mutations + self.crossovers > self.population:
            raise ValueError(
                f"mutations + crossovers must be at most population, {self.population}; "
                f"got {self.mutations} + {self.crossovers}"
            )
        return self

    def sampler(self, space: Space, seed: int) -> Evolution:
        """The Optuna sampler."""
        return Evolution(space, seed, self)


class Evolution(CandidateSampler):
    """The evolution of one space. Position p is slot ``p % P`` of generation ``p // P``."""

    def __init__(self, space: Space, seed: int, settings: EvolutionConfig) -> None:
        super().__init__(space, seed)
        self.settings = settings

    def propose(self, seen: Sequence[Observation], position: int, rng: np.random.Generator) -> Proposal:
        """Algorithm 1's child for this slot; a random candidate where its parents have no new one."""
        generation, slot = divmod(position, self.settings.population)
        space, stage = self._stage(seen, generation)
        first = generation == 0
        make = self._first(space, slot, rng) if first else self._child(space, seen, generation, slot, rng)
        known = {one.candidate for one in seen}

        def random() -> tuple[Candidate, str]:
            return space.random(rng), "random"

        makers = [_with_stage(make, stage), _with_stage(random, stage)]
        return unseen(makers, known)

    def _first(self, space: Space, slot: int, rng: np.random.Generator) -> Maker:
        """The first population: the uniform candidate, half random, the rest mutants of the uniform one."""
        uniform = next(iter(space.baselines().values()))
        if slot == 0:
            return lambda: (uniform, "uniform")
        if slot <= self.settings.population // 2:
            return lambda: (space.random(rng), "random")
        return lambda: (space.mutate(uniform, rng, self.settings.first_probability), "mutation")

    def _child(self, space: Space, seen: Sequence[Observation], generation: int, slot: int, rng: np.random.Generator) -> Maker:
        """Mutations first, then crossovers, then random ones (algorithm 1, lines 7 to 10)."""
        earlier = [one for one in seen if one.position < generation * self.settings.population]
        parents = [one.candidate for one in best_of(earlier, self.settings.parents)]
        if parents and slot < self.settings.mutations:
            return lambda: (space.mutate(_pick(parents, rng), rng, self.settings.probability), "mutation")
        if len(parents) > 1 and slot < self.settings.mutations + self.settings.crossovers:
            return lambda: (space.crossover(*_pair(parents, rng), rng), "crossover")
        return lambda: (space.random(rng), "random")

    def _stage(self, seen: Sequence[Observation], generation: int) -> tuple[Space, str | None]:
        """The space that this generation searches, and its name."""
        if self.space.with_layer_share(0.0) == self.space:
            return self.space, None
        second = self._stage_two_starts(seen, generation)
        if generation < second:
            return self.space.with_layer_share(0.0), "times"
        share = min(1.0, (generation - second + 1) / self.settings.growth)
        return self.space.with_layer_share(share), f"joint {share:.0%}"

    def _stage_two_starts(self, seen: Sequence[Observation], generation: int) -> int:
        """The first generation of stage two: after ``stage_one``, or once a generation brought no better best."""
        population = self.settings.population
        before: Candidate | None = None
        for finished in range(min(generation, self.settings.stage_one)):
            best = best_of((one for one in seen if one.position < (finished + 1) * population), 1)
            if best and best[0].candidate == before:
                return finished + 1
            before = best[0].candidate if best else None
        return self.settings.stage_one


Maker = Callable[[], tuple[Candidate, str]]


def _with_stage(make: Maker, stage: str | None) -> Callable[[], Proposal]:
    return lambda: Proposal(*make(), stage)


def _pick(parents: Sequence[Candidate], rng: np.random.Generator) -> Candidate:
    return parents[int(rng.integers(len(parents)))]


def _pair(parents: Sequence[Candidate], rng: np.random.Generator) -> tuple[Candidate, Candidate]:
    one, other = rng.choice(len(parents), 2, replace=False)
    return parents[int(one)], parents[int(other)]
