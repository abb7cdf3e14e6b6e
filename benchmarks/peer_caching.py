"""A genetic search of what to take from a cache, in the manner of ECAD, for ``peers.py``.

Aggarwal, Shrivastava and Gwilliam, "Evolutionary Caching to Accelerate Your Off-the-Shelf Diffusion Model" (2025,
arXiv 2506.15682): steps stay the pipeline's own; a bit for each step and each part of the network says
whether the part is computed or taken from the cache; NSGA-II looks for the front of cost and quality, and begins with
uniform caching. Its body was not at hand, so these are our words for its abstract and others' accounts.

What differs: a part here is what lies between two branches, and what is deeper than a part from the cache is from the
cache too, since a partial step takes all from one place. Optuna's NSGA-II crosses bits over uniformly.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import optuna

from autodiffusion_opt import Candidate
from autodiffusion_opt.candidate import Step
from autodiffusion_opt.space import cost
from autodiffusion_opt.study.problem import Problem

POPULATION = 32
# Of the first population: a full step every so many, the others at one of the branches; 1: no cache.
INTERVALS = (2, 3, 4, 5, 8)


@dataclass(frozen=True)
class CachingFront:
    """What a search measured.

    Attributes:
        networks: cost, value and candidate of each trial.
        images: that it spent.
    """

    measured: tuple[tuple[float, float, Candidate], ...]
    images: int

    def best_within(self, networks: float) -> Candidate | None:
        """The best candidate that costs at most so many whole networks; None where none does."""
        affordable = [entry for entry in self.measured if entry[0] <= networks + 1e-9]
        return min(affordable, key=lambda entry: entry[1])[2] if affordable else None


def evolved_caching(problem: Problem, steps: int, images: int, trials: int, seed: int) -> CachingFront:
    """Search the bits of ``steps`` steps of the pipeline's own.

    Args:
        problem: whose model has branches.
        steps: of the schedule, which stays as it is.
        images: of each trial.
        trials: that are measured; what a genome repeats is measured once.
        seed: of the search.
    """
    times = [index * (problem.info.train_steps // steps) for index in reversed(range(steps))]  # "leading"
    parts = range(len(problem.info.branch_flops))  # deeper and deeper; the shallowest is always computed
    names = [[f"step {step} part {part}" for part in parts] for step in range(1, steps)]

    def decoded(bits: dict[str, bool]) -> Candidate:
        kinds: list[int | None] = [None]
        for of_step in names:
            depth = next((part for part in parts if not bits[of_step[part]]), None)
            kinds.append(depth)
        return Candidate(tuple(Step(time, (), kind) for time, kind in zip(times, kinds, strict=True)))

    values: dict[Candidate, float] = {}

    def measure(trial: optuna.Trial) -> tuple[float, float]:
        candidate = decoded({name: trial.suggest_categorical(name, (False, True)) for row in names for name in row})
        if candidate not in values:
            *_, score = problem.objective.measure(candidate, images=images)
            values[candidate] = next(iter(score.values.values()))
        return cost.networks(problem.info, candidate), values[candidate]

    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.enqueue_trial({name: True for row in names for name in row})
    for branch, interval in product(parts, INTERVALS):
        rows = [(step % interval == 0, row) for step, row in enumerate(names, start=1)]
        study.enqueue_trial({name: full or part < branch for full, row in rows for part, name in enumerate(row)})
    while len(values) < trials and len(study.trials) < 3 * trials:
        study.optimize(measure, n_trials=1)
    measured = tuple((cost.networks(problem.info, made), value, made) for made, value in values.items())
    return CachingFront(measured, images * len(values))
