"""AutoDiffusion's search of times as its authors published it, for ``optimizers.py`` to compare with.

Li et al., ICCV 2023, algorithm 1, as in their script for ImageNet 64 and classifier guidance, with the settings of the
shell script beside it. A candidate is a list of times in the order in which they were drawn. Only an equal list counts
as visited: the same times in another order are measured again, and a crossover may hold a time twice, which is a step
less. Their noise is fresh for every measurement, so what is measured again gets another value.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from functools import partial
from typing import NoReturn, TypeVar

import numpy as np

# population_num, select_num, mutation_num, crossover_num, m_prob; the last of the first population's mutants.
POPULATION, PARENTS, MUTATIONS, CROSSOVERS = 50, 10, 25, 15
PROBABILITY, FIRST_PROBABILITY = 0.25, 0.1
# Draws for each child that is wanted, before a generation goes without the rest.
TRIES = 10

Times = tuple[int, ...]
Drawn = TypeVar("Drawn", bound=Hashable)


class Ended(Exception):
    """The images that a search may spend are spent."""


def original_search(
    train_steps: int, steps: int, rng: np.random.Generator, measure: Callable[[Times], float]
) -> NoReturn:
    """Search until ``measure`` raises.

    Args:
        train_steps: T: times are 0 .. T - 1.
        steps: of a candidate.
        rng: of all draws.
        measure: the value of a list of times, less is better; it may raise :class:`Ended`.
    """
    values: dict[Times, float] = {}
    make = partial(measure_new, values, measure)

    def random() -> Times:
        return tuple(rng.permutation(train_steps)[:steps].tolist())

    def mutant(parent: Times, probability: float) -> Times:
        times, unused = list(parent), sorted(set(range(train_steps)) - set(parent))
        for index in range(len(times)):
            if rng.random() < probability:
                times[index] = unused.pop(int(rng.integers(len(unused))))
        return tuple(times)

    def crossed(first: Times, second: Times) -> Times:
        return tuple(mother if rng.random() < 0.5 else father for mother, father in zip(first, second, strict=True))

    def parent() -> Times:
        return parents[int(rng.integers(len(parents)))]

    uniform = uniform_times(train_steps, steps)
    population = make(1, lambda: uniform)
    population += make(POPULATION // 2, random)
    wanted = POPULATION - POPULATION // 2 - 1
    population += make(wanted, lambda: mutant(uniform, FIRST_PROBABILITY), TRIES * wanted)
    parents: list[Times] = []
    while True:
        parents = sorted(parents + population, key=values.__getitem__)[:PARENTS]  # of all generations
        population = make(MUTATIONS, lambda: mutant(parent(), PROBABILITY), TRIES * MUTATIONS)
        population += make(CROSSOVERS, lambda: crossed(parent(), parent()), TRIES * CROSSOVERS)
        population += make(POPULATION - len(population), random)


def measure_new(
    values: dict[Drawn, float],
    measure: Callable[[Drawn], float],
    count: int,
    draw: Callable[[], Drawn],
    tries: int | None = None,
) -> list[Drawn]:
    """As many as ``count`` that ``draw`` makes and ``values`` does not hold yet; ``values`` gets what they measure.

    Args:
        values: of all that was measured before.
        measure: the value of what was drawn.
        count: how many are wanted.
        draw: makes one at random.
        tries: draws before it goes without the rest; None: no bound.
    """
    made: list[Drawn] = []
    for _ in itertools.count() if tries is None else range(tries):
        if len(made) >= count:
            break
        drawn = draw()
        if drawn not in values:
            values[drawn] = measure(drawn)
            made.append(drawn)
    return made


def uniform_times(train_steps: int, steps: int) -> Times:
    """guided-diffusion's ``ddimK``: the least stride that gives K times, from 0."""
    for stride in range(1, train_steps):
        if len(range(0, train_steps, stride)) == steps:
            return tuple(range(0, train_steps, stride))
    raise ValueError(f"no stride gives {steps} of {train_steps} times")
