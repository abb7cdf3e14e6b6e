"""Evolution against its authors' search where the best is known: ``python benchmarks/evolution.py [--quick]``.

Times, and times and layers together, valued by a formula (``joint_toy.py``): no model is run. At four and at ten whole
networks, with layers so dear that none should be removed, and so cheap that many should. Printed is how far the best
candidate is above the best known one after some numbers of trials, in percent, the median over seeds. The authors'
candidates beyond the budget are measured as in their script, but are not counted as found.

``apart`` is evolution whose mutations change times or layers, not both. The last line is one JSON object.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from common import machine, parser, say
from joint_toy import LAYERS, TOYS, TRAIN_STEPS, Toy
from original_joint_search import Genes, candidate_of, original_joint_search
from original_search import Ended, Times, original_search

from autodiffusion_opt import Candidate
from autodiffusion_opt.optimizer.evolution import EvolutionConfig
from autodiffusion_opt.space import Evolvable, Joint
from autodiffusion_opt.space.joint import STEP_CHANGE
from autodiffusion_opt.trials.history import Observation, Observations

TWENTY = {"population": 20, "parents": 6, "mutations": 10, "crossovers": 6}
OPTIONS: dict[str, dict[str, Any]] = {
    "evolution": {},
    "apart": {},
    "no random ones": {"mutations": 31, "crossovers": 19},
    "P = 20": TWENTY,
    "small moves": {"small_moves": 0.5},
    "P = 20, small moves": TWENTY | {"small_moves": 0.5},
}
# The authors' max_prun: of their script, and of the space.
SHARES = {"the authors', 10 % of layers": 0.1, "the authors', 50 % of layers": 0.5}
AUTHORS = "the authors'"


class Apart(Joint):
    """A joint space whose mutations change times, or layers and the number of steps; not both, once layers may go."""

    def mutate(self, candidate: Candidate, rng: np.random.Generator, probability: float) -> Candidate:
        """Either of the two, with equal chance."""
        if self.max_removed == 0:
            return super().mutate(candidate, rng, probability)
        choice, most = self.layer_choice, self.max_removed
        if rng.random() < 0.5:
            times = self.grid.mutate(candidate.times, rng, probability)
            return self._child(list(zip(times, candidate.removed, strict=True)), {}, rng)
        drafts = [
            (time, choice.changed(time, gone, most, rng) if rng.random() < probability else gone)
            for time, gone in zip(candidate.times, candidate.removed, strict=True)
        ]
        if rng.random() < STEP_CHANGE * probability:
            drafts = self._inserted(drafts, rng) if rng.random() < 0.5 else self._deleted(drafts, rng)
        return self._child(drafts, {}, rng)


def evolution(toy: Toy, space: Evolvable, options: Mapping[str, Any], seed: int, trials: int) -> list[float]:
    """The best value after each trial."""
    sampler = EvolutionConfig(**options).sampler(space, seed)
    observations, values = Observations(), []
    for position in range(trials):
        candidate = sampler.propose_from(observations.before(position)).candidate
        values.append(toy.value(candidate))
        observations.put(Observation(position, candidate, (values[-1],)))
    return np.minimum.accumulate(values).tolist()


def authors(toy: Toy, share: float | None, seed: int, trials: int) -> list[float]:
    """The best value within the budget after each trial; with no share of layers, of their search of times alone."""
    values: list[float] = []

    def measured(candidate: Candidate, is_within: bool) -> float:
        if len(values) == trials:
            raise Ended
        value = toy.value(candidate)
        values.append(value if is_within else np.inf)
        return value

    def of_genes(genes: Genes) -> float:
        candidate = candidate_of(genes)
        runs = sum(LAYERS - len(removed) for removed in candidate.removed)
        return measured(candidate, runs <= toy.whole * LAYERS)

    def of_times(times: Times) -> float:
        return measured(Candidate.from_time_steps(sorted(set(times), reverse=True)), True)

    rng = np.random.default_rng(seed)
    with contextlib.suppress(Ended):
        if share is None:
            original_search(TRAIN_STEPS, toy.whole, rng, of_times)
        original_joint_search(TRAIN_STEPS, LAYERS, toy.whole, share or 0.0, rng, of_genes)
    return np.minimum.accumulate(values).tolist()


def joint_searches(toy: Toy, seed: int, trials: int, names: Collection[str]) -> dict[str, list[float]]:
    """By name, the best value after each trial."""
    joint = toy.joint
    spaces = {"apart": Apart(**{field.name: getattr(joint, field.name) for field in fields(joint)})}
    made = {name: authors(toy, share, seed, trials) for name, share in SHARES.items() if name in names}
    options = {name: OPTIONS[name] for name in OPTIONS if name in names}
    return made | {
        name: evolution(toy, spaces.get(name, joint), table, seed, trials) for name, table in options.items()
    }


def time_searches(toy: Toy, seed: int, trials: int, names: Collection[str]) -> dict[str, list[float]]:
    """The same for the times of whole steps."""
    made = {AUTHORS: authors(toy, None, seed, trials)} if AUTHORS in names else {}
    options = {name: OPTIONS[name] for name in OPTIONS if name in names and name != "apart"}
    return made | {name: evolution(toy, toy.times, table, seed, trials) for name, table in options.items()}


def excess(searches: list[dict[str, list[float]]], best: float, at: list[int]) -> dict[str, list[float]]:
    """By name, the median over seeds of how far the best value is above the best known one, in percent."""
    return {
        name: [
            round(100 * (float(np.median([curves[name][trials - 1] for curves in searches])) / best - 1), 2)
            for trials in at
        ]
        for name in searches[0]
    }


def main() -> None:
    """Search, print."""
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=20)
    names = [AUTHORS, *SHARES, *OPTIONS]
    arguments.add_argument("--searches", nargs="+", choices=names, default=names, help="(default: all)", metavar="NAME")
    options = arguments.parse_args()
    seeds, at = (3, [150, 300]) if options.quick else (options.seeds, [150, 300, 500])
    above: dict[str, dict[str, list[float]]] = {}
    for name, toy in TOYS.items():
        say(name)
        least = min(map(toy.best, range(toy.whole, toy.joint.steps_max + 1)))
        above[name] = excess([joint_searches(toy, seed, at[-1], options.searches) for seed in range(seeds)], least, at)
    for toy in {toy.whole: toy for toy in TOYS.values()}.values():
        name = f"{toy.whole} steps, times alone"
        say(name)
        searches = [time_searches(toy, seed, at[-1], options.searches) for seed in range(seeds)]
        above[name] = excess(searches, toy.best(toy.whole), at)
    for name, rows in above.items():
        print(f"{name + ': percent above the best after':<56}" + "".join(f"{trials:>8}" for trials in at))
        for optimizer, row in rows.items():
            print(f"{'  ' + optimizer:<56}" + "".join(f"{percent:>8.2f}" for percent in row))
    figures = {"percent_above_best": above, "trials": at, "seeds": seeds}
    print(json.dumps({"benchmark": "evolution", **figures, "machine": machine()}))


if __name__ == "__main__":
    main()
