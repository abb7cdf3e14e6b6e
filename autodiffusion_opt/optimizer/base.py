"""The base of optimizers that propose whole candidates: an Optuna sampler behind one method, ``propose``.

It keeps no state: what it proposes follows from the seed, the position in the study's sequence, and what SQL holds of
the positions before. The candidate is published in one attribute of the trial before its parameters, which arrive one
commit at a time; so other workers see it at once.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.config import Config
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import Evolvable, Space
from autodiffusion_opt.trials.attributes import CANDIDATE, FIXED_PARAMETERS, ORIGIN, STAGE, UNMEASURED, candidate_of
from autodiffusion_opt.trials.history import History, Past
from autodiffusion_opt.trials.studies import set_attributes

# Draws before a maker of candidates is held to be exhausted: all that it makes was proposed before.
TRIES = 100
# Seconds for which a worker waits for those that are being asked for earlier positions, and of each of them between two
# looks: whose turn is next looks often, and a hundred workers are no burden for the database.
PROPOSING_SECONDS, TURN_SECONDS = 2.0, 0.02


class OptimizerConfig(Config):
    """The table ``[optimizer]`` of a study.

    Attributes:
        start_from: candidates that are measured after the baselines, for the optimizer to go on from: ``dp`` (dynamic
            programming on the teacher's trajectory), the name of another study in the same storage (its best), or the
            path of a candidate's JSON file. Times of another number of steps are respaced.
    """

    kind: str
    start_from: tuple[str, ...] = ()
    # Whether it proposes whole candidates; an optimizer that proposes parameters searches fully parametric spaces only.
    proposes_candidates: ClassVar[bool] = False

    @abstractmethod
    def sampler(self, space: Space, seed: int) -> BaseSampler:
        """The Optuna sampler that searches ``space``. Raises UserError for a space that it cannot search."""


def kind_of(optimizer: OptimizerConfig | BaseSampler) -> str:
    """What an optimizer is called: its kind, or the class of a sampler made in Python."""
    return optimizer.kind if isinstance(optimizer, OptimizerConfig) else type(optimizer).__name__


def require_fully_parametric(space: Space, name: str) -> None:
    """Raises UserError where an optimizer of parameters is asked to search what parameters do not say."""
    if not space.fully_parametric:
        raise UserError(
            f'optimizer {name} chooses parameters, and those of a space with layers = "any" do not say which layers '
            'are removed: use layers = "ranked" in the space, or one of the optimizers evolution, random'
        )


def require_evolvable(space: Space, name: str) -> Evolvable:
    """The space, if it can draw, mutate and cross candidates. Raises UserError where it cannot."""
    if not isinstance(space, Evolvable):
        raise UserError(
            f"optimizer {name} needs a space with the methods nearest, random, mutate, crossover and with_layer_share; "
            f"{type(space).__name__} does not have them all: use an optimizer of parameters, optuna:tpe say"
        )
    return space


@dataclass(frozen=True)
class Proposal:
    """A candidate, how it was made, and the stage of the search, where it has stages."""

    candidate: Candidate
    origin: str
    stage: str | None = None


class CandidateSampler(BaseSampler):
    """An Optuna sampler that proposes whole candidates of a space.

    Attributes:
        history: of the study that asks; read on first use where nobody sets it.
        several_values: whether it searches with several values at once.
        keeps_bounds: whether it looks at the bounds of values.
    """

    several_values: ClassVar[bool] = False
    keeps_bounds: ClassVar[bool] = True

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self.seed = seed
        self.history: History | None = None
        self._candidate: Candidate | None = None  # of the trial that is being asked for

    def pruner(self) -> BasePruner | None:
        """What stops candidates where the objective has rungs and names no pruner; None: nothing does."""
        return None

    @abstractmethod
    def propose(self, past: Past, rng: np.random.Generator) -> Proposal:
        """The candidate for ``past.position``, given what is known of the positions before it."""

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Choose and publish the trial's candidate, unless it came with its own (a baseline, a retry, enqueued)."""
        if self.history is None or self.history.study.study_name != study.study_name:
            self.history = History(study)
        history = self.history.refresh()
        self._candidate = candidate_of(history.trials[trial.number])
        # Somebody enqueued parameters: these are what is to be tried.
        if self._candidate is not None or history.trials[trial.number].system_attrs.get(FIXED_PARAMETERS):
            return
        past = _past_once_proposed(history, history.position(trial.number))
        proposal = self.propose_from(past)
        self._candidate = proposal.candidate
        stage = {} if proposal.stage is None else {STAGE: proposal.stage}
        unmeasured = {UNMEASURED: positions} if (positions := past.unmeasured()) else {}
        published = {ORIGIN: proposal.origin, **stage, **unmeasured, CANDIDATE: proposal.candidate.to_json()}
        set_attributes(study, trial, published)

    def propose_from(self, past: Past) -> Proposal:
        """The candidate for ``past.position``: it depends on the positions before, and on the seed, alone."""
        return self.propose(past, np.random.default_rng([self.seed, past.position]))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole box of the space."""
        return self.space.distributions()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the published candidate; of the nearest in the space where it is outside."""
        return {} if self._candidate is None else self.space.encode(self.space.nearest(self._candidate))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform value, for a parameter that is not the space's."""
        seed = int(np.random.default_rng([self.seed, trial.number]).integers(2**31))
        sampler = optuna.samplers.RandomSampler(seed=seed)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def _past_once_proposed(history: History, position: int) -> Past:
    """What is known before a position, once the workers that are being asked for earlier ones have their candidates.

    Else two workers that ask at the same moment would be given the same. One that died meanwhile is not waited for
    longer than ``PROPOSING_SECONDS``.
    """
    deadline = time.monotonic() + PROPOSING_SECONDS
    while time.monotonic() < deadline:
        proposing = (each for each in history.unfinished(TrialState.RUNNING) if CANDIDATE not in each.user_attrs)
        ahead = sum(history.position(trial.number) < position for trial in proposing)
        if not ahead:
            break
        time.sleep(TURN_SECONDS * ahead)
        history.refresh()
    return history.observations.before(position)


def first_new(makers: Sequence[Callable[[], Proposal]], past: Past) -> Proposal:
    """The first proposal that is new, trying each maker in turn; the last one made where all are exhausted."""
    for make in makers:
        for _ in range(TRIES):
            proposal = make()
            if proposal.candidate not in past:
                return proposal
    return proposal
