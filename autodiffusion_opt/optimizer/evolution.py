"""AutoDiffusion's evolutionary search (Li et al., ICCV 2023, algorithm 1), stateless over what SQL holds.

As in the authors' script a generation's parents are the best of all candidates measured before it. What differs: the
baselines are among them; crossover works on sorted sequences and keeps every step; layer sets mutate too; a child over
the budget is repaired, not drawn again; no candidate is proposed twice. With common noise both find equally good
candidates, within the noise. With several values the parents are those of non-dominated sorting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.optimizer.base import (
    CandidateSampler,
    OptimizerConfig,
    Proposal,
    first_new,
    require_evolvable,
)
from autodiffusion_opt.optimizer.dominance import best_of, front_of
from autodiffusion_opt.space import Evolvable, Space, Walkable
from autodiffusion_opt.space.baselines import UNIFORM
from autodiffusion_opt.trials.history import Past


class EvolutionConfig(OptimizerConfig):
    """``kind = "evolution"``; the defaults are those of the authors' scripts.

    Attributes:
        population: P, candidates a generation.
        parents: k, the best so far that have children.
        mutations: N_m, children of one parent each generation.
        crossovers: N_c, children of two parents; the rest of a generation is random.
        probability: p, of each step to be changed in a mutation.
        first_probability: p of the first generation's mutants of the uniform candidate.
        small_moves: the share of mutations that move a time a little, not to any time of the range; not the authors'.
        spread: standard deviation of such a move in λ = ln(α/σ).
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
    small_moves: float = Field(default=0.0, ge=0, le=1)
    spread: float = Field(default=0.4, gt=0)
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
        """The Optuna sampler. Raises UserError for a space that is not :class:`~autodiffusion_opt.space.Evolvable`."""
        return Evolution(require_evolvable(space, self.kind), seed, self)


Maker = Callable[[], tuple[Candidate, str]]


class Evolution(CandidateSampler):
    """The evolution of one space. Position p is slot ``p % P`` of generation ``p // P``."""

    several_values: ClassVar[bool] = True

    def __init__(self, space: Evolvable, seed: int, settings: EvolutionConfig) -> None:
        super().__init__(space, seed)
        self.evolvable = space
        self.settings = settings

    def propose(self, past: Past, rng: np.random.Generator) -> Proposal:
        """Algorithm 1's child for this slot; a random candidate where its parents have no new one."""
        generation, slot = divmod(past.position, self.settings.population)
        space, stage = self._stage(past, generation)
        is_first = generation == 0
        make = self._first(space, slot, rng) if is_first else self._child(space, past, generation, slot, rng)
        return first_new(
            [lambda: Proposal(*make(), stage), lambda: Proposal(space.random(rng), "random", stage)],
            past,
        )

    def _first(self, space: Evolvable, slot: int, rng: np.random.Generator) -> Maker:
        """The first population: the uniform candidate, half random, the rest mutants of the uniform one."""
        uniform = space.baselines()[UNIFORM]
        if slot == 0:
            return lambda: (uniform, "uniform")
        if slot <= self.settings.population // 2:
            return lambda: (space.random(rng), "random")
        return lambda: (space.mutate(uniform, rng, self.settings.first_probability), "mutation")

    def _child(self, space: Evolvable, past: Past, generation: int, slot: int, rng: np.random.Generator) -> Maker:
        """Mutations first, then crossovers, then random ones (algorithm 1, lines 7 to 10)."""
        measured = best_of(past, self.settings.parents, before=generation * self.settings.population)
        parents = [self.evolvable.nearest(observation.candidate) for observation in measured]  # own may be outside
        if parents and slot < self.settings.mutations:
            return lambda: self._mutant(space, parents[int(rng.integers(len(parents)))], rng)
        if len(parents) > 1 and slot < self.settings.mutations + self.settings.crossovers:

            def cross() -> tuple[Candidate, str]:
                first, second = rng.choice(len(parents), 2, replace=False)
                return space.crossover(parents[int(first)], parents[int(second)], rng), "crossover"

            return cross
        return lambda: (space.random(rng), "random")

    def _mutant(self, space: Evolvable, parent: Candidate, rng: np.random.Generator) -> tuple[Candidate, str]:
        """A child of one parent: all of a step may change, or its time and other numbers move a little."""
        is_small = self.settings.small_moves > 0 and rng.random() < self.settings.small_moves
        if not is_small or not isinstance(space, Walkable):
            return space.mutate(parent, rng, self.settings.probability), "mutation"
        coordinates = np.array(space.coordinates(space.nearest(parent)))
        moves = rng.normal(0, self.settings.spread, len(coordinates))
        moves *= rng.random(len(coordinates)) < self.settings.probability
        return space.moved(space.nearest(parent), (coordinates + moves).tolist()), "small move"

    def _stage(self, past: Past, generation: int) -> tuple[Evolvable, str | None]:
        """The space that this generation searches, and its name (section 3.4: time steps first, then layers too)."""
        whole = self.evolvable.with_layer_share(0.0)
        if whole == self.evolvable:  # no layer may be removed: there is one stage
            return self.evolvable, None
        second = self._stage_two_starts(past, generation)
        if generation < second:
            return whole, "times"
        share = min(1.0, (generation - second + 1) / self.settings.growth)
        return self.evolvable.with_layer_share(share), f"joint {share:.0%}"

    def _stage_two_starts(self, past: Past, generation: int) -> int:
        """The first generation of stage two: after ``stage_one``, or once a generation brought no better best."""
        population = self.settings.population
        before: set[Candidate] = set()
        for finished in range(min(generation, self.settings.stage_one)):
            best = {observation.candidate for observation in front_of(past, before=(finished + 1) * population)}
            if best and best == before:
                return finished + 1
            before = best
        return self.settings.stage_one
