"""A cache policy at a fixed compute by annealing and hill climbing, in the manner of BudCache, for ``peers.py``.

Lei, Zhao, Yuan and Zhang, "Budget-Constrained Step-Level Diffusion Caching" (ICML 2026, arXiv 2606.13496), with the
settings of the authors' script for FLUX.1-dev (Westlake-AGI-Lab/BudCache, ``configs/search_flux.yaml``): of 28 steps of
the pipeline's own, which are computed is searched, so that the samples are the nearest to those of 28 computed ones;
then the steps' times, for the policy that was found.

What differs: their cached step runs no block of a transformer, as a partial step at branch 0 does, and its cost counts;
of a UNet, whose partial steps all run some blocks, a cached step is not run at all, which for DDIM is to hold its
output. Samples are compared as images, of several noises in place of one; a pattern search moves the times,
where theirs is gradient descent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from peer_schedules import Schedule

from autodiffusion_opt import Candidate
from autodiffusion_opt.candidate import Step
from autodiffusion_opt.space import Walkable, cost
from autodiffusion_opt.space.baselines import leading
from autodiffusion_opt.study.problem import Problem

STEPS, ANNEALED, CLIMBED = 28, 200, 20  # of the schedule; proposals of annealing; rounds of hill climbing
HOTTEST, COLDEST = 0.05, 1e-5
NEAR = 3  # a computed step moves so far in hill climbing, and mostly in annealing
NEAR_SHARE, PAIR_SHARE = 0.7, 0.1  # of annealing's moves: to a place that near; of two steps at once
FAR_MOVES = 2  # of each computed step in hill climbing
FIRST_SHARE = 0.25  # of the computed steps are the first ones, always
CHEAP = 0.05  # of a whole step: a cached one may cost so much
LAMBDA_STEPS = (0.4, 0.2, 0.1)  # of the pattern search

Policy = tuple[int, ...]  # the computed steps, ascending


@dataclass
class Distance:
    """Mean squared difference of pixels in [-1, 1] to the samples of all steps computed.

    Attributes:
        images: that are compared.
        calls: of the denoiser, whole ones, that were spent.
    """

    problem: Problem
    images: int
    seed: int
    calls: float = 0.0

    def __post_init__(self) -> None:
        self.measured: dict[Candidate, float] = {}
        self.wanted = self._samples(policy_of(self.problem, tuple(range(STEPS))))

    def __call__(self, candidate: Candidate) -> float:
        """Of a candidate; what was measured is known."""
        if candidate not in self.measured:
            self.measured[candidate] = float((self._samples(candidate) - self.wanted).square().mean())
        return self.measured[candidate]

    def _samples(self, candidate: Candidate) -> torch.Tensor:
        assert self.problem.sampler is not None
        self.calls += self.images * (cost.networks(self.problem.info, candidate) or 0.0)
        blocks = self.problem.sampler.images(candidate, range(self.images), self.seed)
        return torch.cat(list(blocks)).float() / 127.5 - 1


def policy_of(problem: Problem, computed: Policy) -> Candidate:
    """The pipeline's own steps; those not computed at the cheapest branch, or left out where that is dear."""
    times, is_cheap = leading(problem.info, STEPS), problem.info.branch_shares[0] < CHEAP
    steps = (Step(time, (), None if i in computed else 0) for i, time in enumerate(times))
    return Candidate(tuple(step for step in steps if step.branch is None or is_cheap))


def annealed_caching(problem: Problem, networks: int, images: int, seed: int) -> Schedule | None:
    """The policy and times within a budget; None where it does not pay for the cached steps.

    Args:
        problem: whose model has branches, and whose space has partial steps.
        networks: the budget.
        images: that samples are compared by.
        seed: of the search.
    """
    counts = (
        k for k in range(1, STEPS) if cost.networks(problem.info, policy_of(problem, tuple(range(k)))) <= networks
    )
    count = max(counts, default=0)
    if count == 0:
        return None
    distance, rng = Distance(problem, images, seed), np.random.default_rng(seed)
    first = max(1, int(FIRST_SHARE * count))
    rest = rng.choice(np.arange(first, STEPS), count - first, replace=False)
    policy = annealed(problem, distance, (*range(first), *sorted(rest.tolist())), first, rng)
    policy = climbed(problem, distance, policy, first, rng)
    candidate = aligned(problem, distance, policy_of(problem, policy))
    whole = cost.networks(problem.info, candidate) or 1.0
    return Schedule(candidate, round(distance.calls / whole))


def annealed(problem: Problem, distance: Distance, policy: Policy, first: int, rng: np.random.Generator) -> Policy:
    """Metropolis' rule at temperatures that fall geometrically; the best policy met."""
    present = best = policy
    for number in range(ANNEALED):
        temperature = HOTTEST * (COLDEST / HOTTEST) ** (number / ANNEALED)
        proposed = moved(present, first, rng)
        worse = distance(policy_of(problem, proposed)) - distance(policy_of(problem, present))
        if worse < 0 or rng.random() < math.exp(-worse / temperature):
            present = proposed
        best = min(best, present, key=lambda each: distance(policy_of(problem, each)))
    return best


def moved(policy: Policy, first: int, rng: np.random.Generator) -> Policy:
    """One computed step, or two, at other places."""
    movable, free = [i for i in policy if i >= first], [i for i in range(first, STEPS) if i not in policy]
    if not movable or not free:
        return policy
    pair = rng.random() < PAIR_SHARE and min(len(movable), len(free)) > 1
    gone = set(rng.choice(movable, 2 if pair else 1, replace=False).tolist())
    near = [i for i in free if abs(i - min(gone)) <= NEAR]
    places = near if not pair and near and rng.random() < NEAR_SHARE else free
    return tuple(sorted({*policy} - gone | set(rng.choice(places, len(gone), replace=False).tolist())))


def climbed(problem: Problem, distance: Distance, policy: Policy, first: int, rng: np.random.Generator) -> Policy:
    """The best neighbour again and again, until none is better."""
    for _ in range(CLIMBED):
        best = min(neighbours(policy, first, rng), key=lambda each: distance(policy_of(problem, each)), default=policy)
        if distance(policy_of(problem, best)) >= distance(policy_of(problem, policy)):
            break
        policy = best
    return policy


def neighbours(policy: Policy, first: int, rng: np.random.Generator) -> Iterator[Policy]:
    """Each computed step but the first ones at each free place near it, and at two anywhere."""
    for step in (i for i in policy if i >= first):
        near = range(max(first, step - NEAR), min(STEPS, step + NEAR + 1))
        for place in {*near, *rng.integers(first, STEPS, FAR_MOVES).tolist()} - {*policy}:
            yield tuple(sorted({*policy} - {step} | {place}))


def aligned(problem: Problem, distance: Distance, candidate: Candidate) -> Candidate:
    """The policy at other times, one moved in λ after the other."""
    space = problem.space
    assert isinstance(space, Walkable)
    for step in LAMBDA_STEPS:
        for index in range(len(candidate.steps)):
            for sign in (1, -1):
                coordinates = list(space.coordinates(candidate))
                coordinates[index] += sign * step
                proposed = space.moved(candidate, coordinates)
                is_same_policy = proposed.branches == candidate.branches  # the order of steps may have changed
                if is_same_policy and distance(proposed) < distance(candidate):
                    candidate = proposed
                    break
    return candidate
