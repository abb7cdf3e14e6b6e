"""Nevergrad's optimizers by name, ``kind = "nevergrad:CMA"``: they search the unit cube, decoded here.

Asks are made one after another over all workers, and each is kept with its trial, so that any process can repeat them
(:mod:`~autodiffusion_opt.optimizer.nevergrad_replay`): a resumed study proposes what an uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import optuna
from optuna.trial import FrozenTrial
from pydantic import Field, model_validator

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.optimizer import unit_box
from autodiffusion_opt.optimizer.base import CandidateSampler, OptimizerConfig, Proposal, require_fully_parametric
from autodiffusion_opt.optimizer.nevergrad_names import PREFIX, check_not_refused, unknown_name
from autodiffusion_opt.optimizer.nevergrad_replay import Record, Replay, Told, record_of, registered_names, versions
from autodiffusion_opt.space import Space
from autodiffusion_opt.trials.attributes import NEVERGRAD, candidate_of, values_of
from autodiffusion_opt.trials.history import History, Past, losses_of
from autodiffusion_opt.trials.studies import set_attributes
from autodiffusion_opt.trials.turns import wait_for_turn


class NevergradConfig(OptimizerConfig):
    """``kind = "nevergrad:NAME"``: an optimizer of Nevergrad's registry.

    Attributes:
        budget: how many candidates it plans for; give it the study's number of trials.
        num_workers: how many candidates it expects to be measured at once.
    """

    budget: int = Field(default=500, ge=1)
    num_workers: int = Field(default=2, ge=2)

    @model_validator(mode="after")
    def _is_known(self) -> NevergradConfig:
        name = self.kind.removeprefix(PREFIX)
        check_not_refused(name)
        try:
            registered = registered_names()
        except ImportError as error:
            raise ValueError(
                f"{self.kind} needs the package nevergrad: pip install nevergrad ({reason_of(error)})"
            ) from None
        if name not in registered:
            raise ValueError(unknown_name(name, registered))
        return self

    def sampler(self, space: Space, seed: int) -> NevergradSampler:
        """The sampler. Raises UserError for a space whose parameters do not determine the candidate."""
        require_fully_parametric(space, self.kind)
        return NevergradSampler(space, seed, self)


class NevergradSampler(CandidateSampler):
    """One of Nevergrad's optimizers, kept alive in this process and brought up to date at each ask.

    Args:
        space: fully parametric.
        seed: the study's.
        settings: which optimizer.
    """

    keeps_bounds: ClassVar[bool] = False

    def __init__(self, space: Space, seed: int, settings: NevergradConfig) -> None:
        super().__init__(space, seed)
        self.settings = settings
        # A parameter of a single value is none.
        self._box = {name: each for name, each in space.distributions().items() if not each.single()}
        self._single = {name: each for name, each in space.distributions().items() if each.single()}
        if not self._box:
            raise UserError(f"optimizer {settings.kind} needs a space in which there is something to choose")
        self._replay: Replay | None = None
        self._trial: FrozenTrial | None = None

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Choose and publish the trial's candidate, unless it came with its own."""
        self._trial = trial
        if self.history is not None and self.history.study.study_name != study.study_name:
            self._replay = None
        super().before_trial(study, trial)

    def propose(self, past: Past, rng: np.random.Generator) -> Proposal:
        """What the optimizer is asked; of a trial that died after its ask, the point that it was given."""
        assert self.history is not None
        kept = (
            record_of(trial.user_attrs.get(NEVERGRAD), self.settings.kind) for trial in self.history.at(past.position)
        )
        record = next((each for each in kept if each is not None), None) or self._ask(self.history, past.position)
        parameters = unit_box.decode(self._box, record.point)
        parameters |= {name: unit_box.value_at(each, 0.0) for name, each in self._single.items()}
        return Proposal(self.space.decode(parameters), self.settings.kind)

    def _ask(self, history: History, position: int) -> Record:
        """Ask in turn, and publish what was told and asked. Raises UserError where Nevergrad fails."""
        trial = self._trial
        assert trial is not None  # before_trial sets it
        turn = wait_for_turn(history, trial.number, NEVERGRAD)
        replay, self._replay = self._replay, None  # an error on the way leaves it half told: it is made anew
        replay = self._up_to_date(replay, history)
        told, assumed = self._news(replay, history)
        points = self._points(history, (told_position for told_position, _ in (*told, *assumed)))
        replay.tell(told, points, assumed=False)
        replay.tell(assumed, points, assumed=True)
        point = replay.ask(trial.number, position)
        record = Record(self.settings.kind, turn, told, assumed, [float(share) for share in point], versions())
        set_attributes(history.study, trial, {NEVERGRAD: record.to_dict()})
        self._replay = replay
        return record

    def _up_to_date(self, replay: Replay | None, history: History) -> Replay:
        """The optimizer after every ask that SQL holds."""
        if replay is None:
            name = self.settings.kind.removeprefix(PREFIX)
            replay = Replay(name, len(self._box), self.seed, self.settings.budget, self.settings.num_workers)
        records = []
        for trial in history.trials.values():
            record = record_of(trial.user_attrs.get(NEVERGRAD), self.settings.kind)
            if record is not None:
                records.append((record.turn, trial.number, record))
        for _, number, record in sorted(records, key=lambda entry: entry[:2]):
            points = self._points(history, (position for position, _ in (*record.told, *record.assumed)))
            replay.repeat(number, history.position(number), record, points)
        return replay

    def _news(self, replay: Replay, history: History) -> tuple[list[Told], list[Told]]:
        """What is settled and was not told: losses, and stand-ins where there is no finite loss.

        A candidate that failed, was stopped after a few images, or has an infinite value is told the worst loss known:
        a loss of fewer images is not comparable, but some optimizers propose nothing new until each of their
        candidates was told. It is told again should it be measured after all.
        """
        told: list[Told] = []
        without: list[int] = []
        for position in sorted(history.settled):
            if replay.told.get(position):
                continue
            loss = _loss(history, position)
            if loss is not None:
                told.append((position, loss))
            elif position not in replay.told:
                without.append(position)
        worst = max([replay.worst, *(loss for _, loss in told)])
        return told, [(position, worst) for position in without if math.isfinite(worst)]

    def _points(self, history: History, positions: Iterable[int]) -> Mapping[int, list[float]]:
        """Where in the unit cube the candidates of positions are; of one outside the space, the nearest."""
        points = {}
        for position in positions:
            candidates = (candidate_of(trial) for trial in history.sequence(position, position + 1))
            for candidate in candidates:
                if candidate is not None:
                    parameters = self.space.encode(self.space.nearest(candidate))
                    points[position] = unit_box.encode(self._box, parameters)
        return points


def _loss(history: History, position: int) -> float | None:
    """The finite loss of a position, if it has one."""
    trials: Iterable[Any] = history.sequence(position, position + 1)
    for trial in trials:
        values = values_of(trial)
        if values is not None:
            (loss,) = losses_of(values, history.directions)
            return loss if math.isfinite(loss) else None
    return None
