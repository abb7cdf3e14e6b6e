"""CatCMA with margin (Hamano et al., 2025, https://arxiv.org/abs/2504.07884) of the package cmaes: an Optuna sampler.

It keeps nothing but its random generator. A trial's attribute holds the generation it is of and the point that its
parameters were made from; the distribution of a generation follows from the points and the losses of those before, so
it is computed anew from what SQL holds, the same in every worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.optimizer.unit_box import cells, value_at
from autodiffusion_opt.trials.attributes import CATCMA
from autodiffusion_opt.trials.studies import set_attributes

# With more values than this a parameter is searched as a real number: a margin of 1/n would never be felt.
MOST_CELLS = 10_000


class CatCmaSampler(BaseSampler):
    """Searches reals, whole numbers and choices at once, with one value. Bounds are not looked at.

    A generation is over once as many of its trials as it has candidates are complete, the first by number. Failed and
    stopped trials do not count, nor do trials whose parameters were given: more are then proposed from the same
    distribution. A search that has converged starts again.

    Args:
        box: the distribution of every parameter.
        population: candidates a generation; None: 4 + 3 ln(parameters).
    """

    def __init__(self, box: Mapping[str, BaseDistribution], population: int | None = None) -> None:
        box = {name: distribution for name, distribution in box.items() if not distribution.single()}
        self._box = box
        self._population = population
        self._rng = np.random.default_rng()
        self._random = RandomSampler()
        self._choices = [name for name, distribution in box.items() if _is_choice(distribution)]
        numbers = [name for name in box if name not in self._choices]
        self._reals = [name for name in numbers if (cells(box[name]) or MOST_CELLS + 1) > MOST_CELLS]
        self._wholes = [name for name in numbers if name not in self._reals]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole box."""
        return dict(self._box)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A draw from the present generation's distribution."""
        if not self._box:
            return {}
        optimizer, generation = self._present(study)
        optimizer.reseed_rng(int(self._rng.integers(2**32)))
        with np.errstate(all="ignore"):
            solution = optimizer.ask()
        point = {
            "generation": generation,
            "numbers": [] if solution._v_raw is None else [float(number) for number in solution._v_raw],
            "choices": [] if solution.c is None else [int(row.argmax()) for row in solution.c],
        }
        set_attributes(study, trial, {CATCMA: point})
        return self._parameters(point)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform value, for a parameter that is not in the box."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _present(self, study: optuna.Study) -> tuple[Any, int]:
        """The optimizer after all generations that are over, and the number of the one that is not."""
        sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
        members: dict[int, list[FrozenTrial]] = {}
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            point = trial.user_attrs.get(CATCMA)
            # An enqueued trial was asked for as well, and has other parameters than those proposed.
            if point is not None and self._parameters(point).items() <= trial.params.items():
                members.setdefault(point["generation"], []).append(trial)
        optimizer, generation = self._start(), 0
        while len(members.get(generation, ())) >= optimizer.population_size:
            chosen = list(islice(members[generation], optimizer.population_size))
            # Ranks in place of losses: the method looks at their order alone, but for its penalty outside the box,
            # which losses that are equal or infinite would make NaN.
            chosen.sort(key=lambda trial: (sign * trial.values[0], trial.number))
            with np.errstate(all="ignore"):
                optimizer.tell([(self._solution(trial), float(rank)) for rank, trial in enumerate(chosen)])
                if (self._reals or self._wholes) and optimizer.should_stop():
                    optimizer = self._start()
            generation += 1
        return optimizer, generation

    def _start(self) -> Any:
        from cmaes import CatCMAwM  # imports scipy.stats, a second

        return CatCMAwM(
            x_space=[[0.0, 1.0]] * len(self._reals) or None,
            z_space=[_middles(count) for count in self._counts(self._wholes)] or None,
            c_space=self._counts(self._choices) or None,
            population_size=self._population,
        )

    def _solution(self, trial: FrozenTrial) -> Any:
        """The trial's point as cmaes has it."""
        from cmaes import CatCMAwM

        point = trial.user_attrs[CATCMA]
        counts = self._counts(self._choices)
        one_hot: NDArray[np.bool_] | None = None
        if counts:
            one_hot = np.zeros((len(counts), max(counts)), dtype=bool)
            one_hot[np.arange(len(counts)), point["choices"]] = True
        numbers = np.array(point["numbers"]) if point["numbers"] else None
        return CatCMAwM.Solution(c=one_hot, _v_raw=numbers)

    def _counts(self, names: Sequence[str]) -> list[int]:
        counts = (cells(self._box[name]) for name in names)
        return [count for count in counts if count is not None]

    def _parameters(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a point: numbers put into [0, 1], the whole ones on the nearest value."""
        shares = dict(zip([*self._reals, *self._wholes], point["numbers"], strict=True))
        shares |= {
            name: _middles(count)[index]
            for name, count, index in zip(self._choices, self._counts(self._choices), point["choices"], strict=True)
        }
        clipped = {name: min(max(share, 0.0), 1.0) for name, share in shares.items()}
        return {name: value_at(distribution, clipped[name]) for name, distribution in self._box.items()}


def _is_choice(distribution: BaseDistribution) -> bool:
    """Of two values cmaes wants a choice, not whole numbers."""
    return isinstance(distribution, CategoricalDistribution) or cells(distribution) == 2


def _middles(count: int) -> list[float]:
    """The middles of ``count`` equal cells of [0, 1]."""
    return [(cell + 0.5) / count for cell in range(count)]
