"""AutoDiffusion's search of times and layers as its authors published it, for ``evolution.py`` to compare with.

Li et al., ICCV 2023, section 3.4, as in their progressive search for ImageNet 64 and the shell script beside it; what
is as in :mod:`original_search` is taken from there. Steps and their layers are two lists in the order in which they
were drawn; the i-th list of layers goes with the i-th lowest time when images are sampled. A mutation never changes the
number of steps, and changes layers only at steps that remove none: their line for the others compares where it should
assign. A crossover may be over the budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import numpy as np
from original_search import (
    FIRST_PROBABILITY,
    MUTATIONS,
    PARENTS,
    POPULATION,
    PROBABILITY,
    TRIES,
    Times,
    measure_new,
    uniform_times,
)

from autodiffusion_opt import Candidate

# crossover_num of this search; the last generation of times alone; in how many the share of layers grows to max_prun.
CROSSOVERS, LAST_OF_TIMES, GROWTH = 10, 4, 5

Layers = tuple[int, ...]
Genes = tuple[Times, tuple[Layers, ...]]


def original_joint_search(
    train_steps: int,
    layers: int,
    steps: int,
    max_share: float,
    rng: np.random.Generator,
    measure: Callable[[Genes], float],
) -> NoReturn:
    """Search until ``measure`` raises.

    Args:
        train_steps: T: times are 0 .. T - 1.
        layers: of the network; any may be removed.
        steps: whole networks that are the budget.
        max_share: max_prun, of the layers of a step that may be removed in the end.
        rng: of all draws.
        measure: the value of times and the layers removed, less is better; it may raise.
    """
    values: dict[Genes, float] = {}
    make = partial(measure_new, values, measure)
    share = 0.0  # of the layers of a step that may be removed in this generation
    parents: list[Genes] = []

    def removed(count: int) -> Layers:
        return tuple(rng.permutation(layers)[:count].tolist())

    def drawn_count() -> int:
        return int(rng.random() * share * layers)

    def random() -> Genes:
        """Steps until the budget allows no more, each without a uniform number of layers."""
        counts: list[int] = []
        free, least = steps * layers, layers - int(layers * share)
        while free > least:
            count = drawn_count()
            if layers - count <= free:
                counts.append(count)
                free -= layers - count
        counts += [layers - least] * (free == least)
        times = rng.permutation(train_steps)[: len(counts)].tolist()
        return tuple(times), tuple(map(removed, counts))

    def mutant(genes: Genes, probability: float) -> Genes:
        times, removals = map(list, genes)
        unused = sorted(set(range(train_steps)) - set(times))
        for index in range(len(times)):
            if rng.random() < probability:
                times[index] = unused.pop(int(rng.integers(len(unused))))
        if share > 0:
            for index, gone in enumerate(removals):
                if not gone and rng.random() < probability:
                    removals[index] = removed(drawn_count())
        return tuple(times), tuple(removals)

    def crossed(first: Genes, second: Genes) -> Genes:
        """Each place from either; then what is left of a parent whose times come later in the order of words."""
        pairs = zip(zip(*first, strict=True), zip(*second, strict=True), strict=False)
        chosen = [mother if rng.random() < 0.5 else father for mother, father in pairs]
        for parent in (first, second):
            if [time for time, _ in chosen] < list(parent[0]):
                chosen += list(zip(*parent, strict=True))[len(chosen) :]
        return tuple(time for time, _ in chosen), tuple(gone for _, gone in chosen)

    def parent() -> Genes:
        return parents[int(rng.integers(len(parents)))]

    uniform = uniform_times(train_steps, steps), ((),) * steps
    population = make(1, lambda: uniform)
    population += make(POPULATION // 2, random)
    wanted = POPULATION - len(population)
    population += make(wanted, lambda: mutant(uniform, FIRST_PROBABILITY), TRIES * wanted)
    best = None
    for generation in itertools.count():
        parents = sorted(parents + population, key=values.__getitem__)[:PARENTS]  # of all generations
        if share > 0 or parents[0] == best or generation > LAST_OF_TIMES:
            share = min(share + max_share / GROWTH, max_share)
        best = parents[0]
        population = make(MUTATIONS, lambda: mutant(parent(), PROBABILITY), TRIES * MUTATIONS)
        population += make(CROSSOVERS, lambda: crossed(parent(), parent()), TRIES * CROSSOVERS)
        population += make(POPULATION - len(population), random)
    raise AssertionError("generations do not end")


def candidate_of(genes: Genes) -> Candidate:
    """What is sampled: of a time that comes twice a step less, and the last lists of layers are not used."""
    times = sorted(set(genes[0]))
    return Candidate.from_time_steps(times[::-1], genes[1][len(times) - 1 :: -1])
