"""Pattern search: from the best candidate known to the nearest better one, one coordinate at a time.

The coordinates are the space's (:class:`~autodiffusion_opt.space.Walkable`): λ = ln(α/σ) of each time. From a centre,
each coordinate is tried a step up and a step down, in an order drawn at random; the first that is better is the new
centre. Where none is better the step is halved (compass search; Kolda, Lewis and Torczon, 2003, section 1.3), and where
the step is too small to matter another descent begins near the best candidate.

All candidates share their noise, so the objective is smooth enough for this, and its start matters most: see
:mod:`autodiffusion_opt.space.local_errors`. Where the objective has rungs of images, a candidate that is worse than the
best one after equally many is stopped. Nothing is kept but what SQL holds: the centre and the step follow from the
trials before a position and the stage in which each was proposed; several workers measure one sweep together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from pydantic import Field

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.optimizer.base import TRIES, CandidateSampler, OptimizerConfig, Proposal
from autodiffusion_opt.space import Space, Walkable
from autodiffusion_opt.space.baselines import UNIFORM
from autodiffusion_opt.trials.history import Observation, Past

BEGINNING = "beginning"


class LocalSearchConfig(OptimizerConfig):
    """``kind = "local"``: pattern search from warm starts; the default.

    Attributes:
        step: the first step, in units of λ.
        least_step: a descent ends where its step is below this.
        beginnings: candidates from which each further descent may go, the best of which it does.
        spread: standard deviation of their distance to the best candidate in each coordinate.
    """

    kind: Literal["local"] = "local"
    proposes_candidates: ClassVar[bool] = True
    start_from: tuple[str, ...] = ("dp",)
    step: float = Field(default=0.4, gt=0)
    least_step: float = Field(default=0.02, gt=0)
    beginnings: int = Field(default=4, ge=1)
    spread: float = Field(default=0.4, gt=0)

    def sampler(self, space: Space, seed: int) -> LocalSearch:
        """The Optuna sampler. Raises UserError for a space that has no coordinates."""
        if not isinstance(space, Walkable):
            raise UserError(
                f"optimizer {self.kind} needs a space with the methods coordinates and moved; "
                f"{type(space).__name__} does not have both: use an optimizer of parameters, optuna:tpe say"
            )
        return LocalSearch(space, seed, self)


@dataclass(frozen=True)
class Stage:
    """Where a search was when it proposed a candidate; its text is the trial's stage in SQL.

    Attributes:
        descent: counted from 1.
        step: of the sweep; None for a candidate from which a descent may go.
    """

    descent: int
    step: float | None

    def __str__(self) -> str:
        return f"descent {self.descent}, {BEGINNING if self.step is None else f'step {self.step:g}'}"

    @classmethod
    def parsed(cls, text: str | None) -> Stage | None:
        """The stage of a text; None for what another optimizer wrote."""
        words = (text or "").replace(",", "").split()
        if len(words) < 3 or words[0] != "descent":
            return None
        return cls(int(words[1]), float(words[3]) if words[2] == "step" else None)


class LocalSearch(CandidateSampler):
    """The pattern search of one space."""

    def __init__(self, space: Walkable, seed: int, settings: LocalSearchConfig) -> None:
        super().__init__(space, seed)
        self.walkable = space
        self.settings = settings

    def pruner(self) -> BasePruner:
        """What stops a candidate where the objective has rungs and names no pruner of its own."""
        return WorseThanBest()

    def propose(self, past: Past, rng: np.random.Generator) -> Proposal:
        """The first neighbour of the centre that is new, at the greatest step that has one."""
        descents = _descents(past)
        descent = max(descents, default=1)
        centre = _best(descents.get(descent, ()))
        if centre is None and descent == 1:
            return self._first(past, rng)
        if centre is not None and (descent == 1 or self._has_begun(descents[descent])):
            proposal = self._neighbour(centre, descent, past)
            if proposal is not None:
                return proposal
            descent += 1
        return self._beginning(descent, past, rng)

    def _first(self, past: Past, rng: np.random.Generator) -> Proposal:
        """While nothing is measured: the uniform candidate, then others near it."""
        uniform = self.walkable.baselines()[UNIFORM]
        if uniform not in past:
            return Proposal(uniform, UNIFORM)
        return Proposal(self._near(uniform, past, rng), BEGINNING, str(Stage(1, None)))

    def _neighbour(self, centre: Observation, descent: int, past: Past) -> Proposal | None:
        stage = Stage.parsed(centre.stage)
        step = self.settings.step if stage is None or stage.step is None else stage.step
        # The order is the centre's own, so that it stays while one sweep lasts.
        order = np.random.default_rng([self.seed, centre.position])
        candidate = self.walkable.nearest(centre.candidate)  # own may be outside
        while step >= self.settings.least_step:
            for neighbour, move in self._sweep(candidate, step, order):
                if neighbour not in past:
                    return Proposal(neighbour, move, str(Stage(descent, step)))
            step /= 2
        return None

    def _sweep(self, candidate: Candidate, step: float, order: np.random.Generator) -> Iterator[tuple[Candidate, str]]:
        """Each coordinate a step up and a step down, in any order, with the name of the move."""
        coordinates = self.walkable.coordinates(candidate)
        moves = [(index, sign) for index in range(len(coordinates)) for sign in (1, -1)]
        for chosen in order.permutation(len(moves)):
            index, sign = moves[int(chosen)]
            moved = list(coordinates)
            moved[index] += sign * step
            yield self.walkable.moved(candidate, moved), f"coordinate {index + 1} {sign * step:+g}"

    def _has_begun(self, observations: Sequence[Observation]) -> bool:
        """Whether a descent has all candidates from which it may go."""
        stages = (Stage.parsed(observation.stage) for observation in observations)
        return sum(stage is not None and stage.step is None for stage in stages) >= self.settings.beginnings

    def _beginning(self, descent: int, past: Past, rng: np.random.Generator) -> Proposal:
        """A candidate near the best one, from which a further descent may go."""
        best = past.best(1)
        centre = best[0].candidate if best else self.walkable.baselines()[UNIFORM]
        near = self._near(self.walkable.nearest(centre), past, rng)
        return Proposal(near, BEGINNING, str(Stage(descent, None)))

    def _near(self, candidate: Candidate, past: Past, rng: np.random.Generator) -> Candidate:
        """A new candidate whose coordinates are normally distributed around those of another; wider where none is."""
        coordinates = np.array(self.walkable.coordinates(candidate))
        spread = self.settings.spread
        for _ in range(TRIES):
            near = self.walkable.moved(candidate, (coordinates + rng.normal(0, spread, len(coordinates))).tolist())
            if near not in past:
                break
            spread *= 1.1
        return near


def _descents(past: Past) -> dict[int, list[Observation]]:
    """The observations of each descent; what other optimizers proposed, and baselines, count to the present one."""
    present, descents = 1, dict[int, list[Observation]]()
    for observation in past:
        stage = Stage.parsed(observation.stage)
        present = present if stage is None else max(present, stage.descent)
        descents.setdefault(present if stage is None else stage.descent, []).append(observation)
    return descents


def _best(observations: Sequence[Observation]) -> Observation | None:
    """The best by the values of most images; of equal ones the first. None where none is measured."""
    ranked = [(rank, observation) for observation in observations if (rank := _rank(observation)) is not None]
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def _rank(observation: Observation) -> tuple[float, ...] | None:
    """The smaller, the better: kept bounds, then more images, then the loss, then the earlier."""
    if observation.losses is not None:
        images, loss = np.inf, observation.losses[0]
    elif observation.stopped is not None:
        images, loss = observation.stopped
    else:
        return None
    return (observation.excess, -images, loss, observation.position) if np.isfinite(loss) else None


class WorseThanBest(BasePruner):
    """Stops a candidate that after a rung is worse than the best candidate was after equally many images."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial is hopeless."""
        try:
            best = study.best_trial
        except ValueError:  # none is complete
            return False
        step = trial.last_step
        if step is None or step not in best.intermediate_values:
            return False
        worse_by = trial.intermediate_values[step] - best.intermediate_values[step]
        return (worse_by if study.direction == StudyDirection.MINIMIZE else -worse_by) > 0
