"""The base of optimizers that choose whole candidates: an Optuna sampler behind one method, ``propose``.

It keeps no state: what it proposes follows from the seed, the position in the study's sequence, and what SQL holds of
the positions before. The candidate is published in one attribute of the trial before its parameters, which arrive one
commit at a time; so other workers see it at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.config import Config
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import Space
from autodiffusion_opt.trials.history import CANDIDATE, ORIGIN, STAGE, Observation, candidate_of, history, positions

# Draws before a maker of candidates is held to be exhausted: all that it makes has been seen.
TRIES = 100


class OptimizerConfig(Config):
    """The table ``[optimizer]`` of a study."""

    kind: str
    # Whether it chooses whole candidates; one that chooses parameters searches fully_parametric spaces only.
    proposes_candidates: ClassVar[bool] = False

    def sampler_of(self, space: Space, seed: int) -> BaseSampler:
        """:meth:`sampler`, refusing with a UserError a space that this optimizer cannot search."""
        if not self.proposes_candidates:
            require_parametric(space, self.kind)
        return self.sampler(space, seed)

    @abstractmethod
    def sampler(self, space: Space, seed: int) -> BaseSampler:
        """The Optuna sampler that searches ``space``. Raises UserError for a space that it cannot search."""


def require_parametric(space: Space, name: str) -> None:
    """Raises UserError where an optimizer of parameters is asked to search what parameters do not say."""
    if not space.fully_parametric:
        raise UserError(
            f'optimizer {name} chooses parameters, and those of a space with layers = "any" do not say which layers '
            'are removed: use layers = "ranked" in the space, or one of the optimizers evolution, random'
        )


@dataclass(frozen=True)
class Proposal:
    """A candidate, how it was made, and the stage of the search, where it has stages."""

    candidate: Candidate
    origin: str
    stage: str | None = None


class CandidateSampler(BaseSampler):
    """An Optuna sampler that proposes whole candidates of a space."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self.seed = seed

    @abstractmethod
    def propose(self, seen: Sequence[Observation], position: int, rng: np.random.Generator) -> Proposal:
        """The candidate for ``position``, given what is known of the positions before it."""

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Choose and publish the trial's candidate, unless it came with one (a baseline, a retry)."""
        storage = study._storage
        trials = storage.get_all_trials(study._study_id, deepcopy=False)
        now = trials[trial.number]
        if candidate_of(now) is not None:
            return
        position = positions(trials)[trial.number]
        rng = np.random.default_rng([self.seed, position])
        proposal = self.propose(history(trials, position), position, rng)
        storage.set_trial_user_attr(trial._trial_id, ORIGIN, proposal.origin)
        if proposal.stage is not None:
            storage.set_trial_user_attr(trial._trial_id, STAGE, proposal.stage)
        storage.set_trial_user_attr(trial._trial_id, CANDIDATE, proposal.candidate.to_json())

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole box of the space."""
        return self.space.distributions()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the published candidate."""
        candidate = candidate_of(study._storage.get_trial(trial._trial_id))
        return {} if candidate is None else self.space.encode(candidate)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform value, for a parameter that is not the space's."""
        seed = int(np.random.default_rng([self.seed, trial.number]).integers(2**31))
        sampler = optuna.samplers.RandomSampler(seed=seed)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def unseen(makers: Sequence[Callable[[], Proposal]], known: set[Candidate]) -> Proposal:
    """The first proposal not known yet, trying each maker in turn; the last one made where all are exhausted."""
    for make in makers:
        for _ in range(TRIES):
            proposal = make()
            if proposal.candidate not in known:
                return proposal
    return proposal
