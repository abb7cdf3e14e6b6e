"""Pattern search: from the best candidate known to the nearest better one, one coordinate at a time.

The coordinates are the space's (:class:`~autodiffusion_opt.space.Walkable`): λ = ln(α/σ) of each time. From a centre,
each coordinate is tried a step up and a step down, in an order drawn at random; the first that is better is the new
centre. Where none is better the step is halved (compass search; Kolda, Lewis and Torczon, 2003, section 1.3), and where
the step is too small to matter another descent begins near the best candidate. In a space of layers
(:class:`~autodiffusion_opt.space.Layered`) their changes come before the step is halved, and after these descents from
other numbers of steps (the discrete neighbours of Audet and Dennis, 2001, section 2). Where one change alone costs too
much (:class:`~autodiffusion_opt.space.Exchanging`), two at once are tried among the coordinates at the first step.
Where partial steps led to the best (:class:`~autodiffusion_opt.space.Caching`), one more in each of the widest gaps
comes before the times: what they gain adds up, for next to no FLOPs.

All candidates share their noise, so the objective is smooth enough for this, and its start matters most: see
:mod:`autodiffusion_opt.space.local_errors`. Where the objective has rungs of images, a candidate that is worse than the
best one after equally many is stopped. Nothing is kept but what SQL holds: the centre and the step follow from the
trials before a position and the stage in which each was proposed; several workers measure one sweep together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.optimizer.base import TRIES, CandidateSampler, OptimizerConfig, Proposal
from autodiffusion_opt.optimizer.layer_moves import REPEATED, layer_moves
from autodiffusion_opt.optimizer.stage import BEGINNING, RESTRUCTURED, Stage
from autodiffusion_opt.space import Caching, Compared, Exchanging, Layered, Space, Walkable
from autodiffusion_opt.space.baselines import UNIFORM
from autodiffusion_opt.trials.attributes import COST_EXCESS, EXCESS, STAGE, candidate_of, excess_of
from autodiffusion_opt.trials.history import Observation, Past, best_first


class LocalSearchConfig(OptimizerConfig):
    """``kind = "local"``: pattern search from warm starts; the default.

    Attributes:
        step: the first step, in units of λ.
        least_step: a descent ends where its step is below this.
        beginnings: candidates from which each further descent may go, the best of which it does.
        spread: standard deviation of their distance to the best candidate in each coordinate.
        tolerance: where the objective has rungs: by which share of the best one's value after equally many images a
            candidate may be worse, and is measured on.
        layer_tolerance: the same for a candidate with other layers, which few images tell less surely.
    """

    kind: Literal["local"] = "local"
    proposes_candidates: ClassVar[bool] = True
    start_from: tuple[str, ...] = ("dp",)
    step: float = Field(default=0.4, gt=0)
    least_step: float = Field(default=0.02, gt=0)
    beginnings: int = Field(default=4, ge=1)
    spread: float = Field(default=0.4, gt=0)
    tolerance: float = Field(default=0.005, ge=0)
    layer_tolerance: float = Field(default=0.05, ge=0)

    def sampler(self, space: Space, seed: int) -> LocalSearch:
        """The Optuna sampler. Raises UserError for a space that has no coordinates."""
        if not isinstance(space, Walkable):
            raise UserError(
                f"optimizer {self.kind} needs a space with the methods coordinates and moved; "
                f"{type(space).__name__} does not have both: use an optimizer of parameters, optuna:tpe say"
            )
        return LocalSearch(space, seed, self)


# A descent of another number of steps is left where its beginnings are worse than the best by this share.
NEAR = 0.5
# By the number of the descent.
Descents = dict[int, list[Observation]]


class LocalSearch(CandidateSampler):
    """The pattern search of one space."""

    def __init__(self, space: Walkable, seed: int, settings: LocalSearchConfig) -> None:
        super().__init__(space, seed)
        self.walkable = space
        self.settings = settings
        self.is_layered = isinstance(space, Layered)
        self._inside: dict[Candidate, bool] = {}

    def pruner(self) -> BasePruner:
        """What stops a candidate where the objective has rungs and names no pruner of its own."""
        return WorseThanBest(self.settings.tolerance, self.settings.layer_tolerance, self.is_reachable)

    def is_reachable(self, candidate: Candidate) -> bool:
        """Whether a search in the space may come to a candidate, so that others are held against it.

        Not what a study is compared with and lies outside: there may be nothing as good in the space.
        """
        if not isinstance(self.walkable, Compared):
            return True  # a baseline beside the grid of times is as good as its neighbour on it
        if candidate not in self._inside:
            self._inside[candidate] = self.walkable.nearest(candidate) == candidate
        return self._inside[candidate]

    def propose(self, past: Past, rng: np.random.Generator) -> Proposal:
        """The first neighbour of the centre that is new, at the greatest step that has one."""
        descents = _descents(each for each in past if self.is_reachable(each.candidate))
        outside = _best([each for each in past if not self.is_reachable(each.candidate)])
        if outside is not None and (near := self.walkable.nearest(outside.candidate)) not in past:
            return Proposal(near, "nearest", str(Stage(max(descents, default=1), None)))
        latest = max(descents, default=1)
        centre = _best(descents.get(latest, ()))
        if centre is None and latest == 1:
            return self._first(past, rng)
        if centre is None or (latest > 1 and not self._has_begun(descents[latest])):
            return self._beginning(latest, descents, past, rng)
        # Where the number of steps is free, what a smaller step gains comes after what other numbers of steps gain.
        least = self.settings.step if self.is_layered else self.settings.least_step
        best = _best([each for all_of in descents.values() for each in all_of])
        best_descent = next(number for number, all_of in descents.items() if best in all_of)
        return (
            self._partial_step_more(latest + 1, best, past)
            or (self._neighbour(latest, descents, past, least) if self._is_near(centre, best) else None)
            or (self._restructured(latest + 1, descents, past) if best_descent == latest else None)
            or self._neighbour(best_descent, descents, past, self.settings.least_step)
            or self._beginning(latest + 1, descents, past, rng)
        )

    def _is_near(self, centre: Observation, best: Observation | None) -> bool:
        """Whether a descent's best is near enough to the best of all to go on from, where both are measured in full."""
        if best is None or best.losses is None or centre.losses is None or not self.is_layered:
            return True
        return centre.losses[0] - best.losses[0] <= NEAR * abs(best.losses[0])

    def _first(self, past: Past, rng: np.random.Generator) -> Proposal:
        """While nothing is measured: the uniform candidate, then others near it."""
        uniform = self.walkable.baselines()[UNIFORM]
        if uniform not in past:
            return Proposal(uniform, UNIFORM)
        return Proposal(self._near(uniform, past, rng), BEGINNING, str(Stage(1, None)))

    def _neighbour(self, descent: int, descents: Descents, past: Past, least: float) -> Proposal | None:
        """The first new neighbour of a descent's best at a step of ``least`` or more.

        Where a change of layers led to the best, those go first; else the times at the same step.
        """
        centre = _best(descents[descent])
        assert centre is not None
        stage = Stage.parsed(centre.stage) or Stage(descent, None)
        step = self.settings.step if stage.step is None else stage.step
        candidate = self.walkable.nearest(centre.candidate)  # own may be outside
        layers = None
        if isinstance(self.walkable, Layered):
            again = REPEATED if least == self.settings.least_step else 0
            moves = layer_moves(self.walkable, candidate, descents[descent], again)
            layers = _first_new(moves, past, Stage(descent, step, centre.position))
        if layers is not None and stage.base is not None:
            return layers
        while step >= least:
            # The order is the centre's own, so that it stays while one sweep lasts.
            sweep = self._sweep(candidate, step, np.random.default_rng([self.seed, centre.position]))
            proposal = _first_new(sweep, past, Stage(descent, step)) or layers
            if proposal is not None:
                return proposal
            step /= 2
        return None

    def _sweep(self, candidate: Candidate, step: float, order: np.random.Generator) -> Iterator[tuple[Candidate, str]]:
        """Each coordinate a step up and a step down, and at the first step the exchanges, in any order, with the name
        of the move."""
        coordinates = self.walkable.coordinates(candidate)
        moves = [(index, sign) for index in range(len(coordinates)) for sign in (1, -1)]
        exchanges: list[tuple[str, Candidate]] = []
        if isinstance(self.walkable, Exchanging) and step == self.settings.step:
            exchanges += self.walkable.exchanges(candidate).items()
        for chosen in order.permutation(len(moves) + len(exchanges)):
            if chosen >= len(moves):
                name, exchanged = exchanges[int(chosen) - len(moves)]
                yield exchanged, name
                continue
            index, sign = moves[int(chosen)]
            moved = list(coordinates)
            moved[index] += sign * step
            yield self.walkable.moved(candidate, moved), f"coordinate {index + 1} {sign * step:+g}"

    def _has_begun(self, observations: Sequence[Observation]) -> bool:
        """Whether a descent has all candidates from which it may go."""
        stages = (Stage.parsed(observation.stage) for observation in observations)
        return sum(stage is not None and stage.step is None for stage in stages) >= self.settings.beginnings

    def _beginning(self, descent: int, descents: Descents, past: Past, rng: np.random.Generator) -> Proposal:
        """A candidate from which a further descent may go, of the same kind as its others."""
        stages = [Stage.parsed(observation.stage) for observation in descents.get(descent, ())]
        if any(stage is not None and stage.is_restructured for stage in stages):
            proposal = self._restructured(descent, descents, past)
            if proposal is not None:
                return proposal
        best = _best([each for all_of in descents.values() for each in all_of])
        centre = self.walkable.baselines()[UNIFORM] if best is None else self.walkable.nearest(best.candidate)
        return Proposal(self._near(centre, past, rng), BEGINNING, str(Stage(descent, None)))

    def _restructured(self, descent: int, descents: Descents, past: Past) -> Proposal | None:
        """The best candidate of the descents before with another number of steps; None where none is new."""
        best = _best([each for before, all_of in descents.items() if before < descent for each in all_of])
        if best is None or not isinstance(self.walkable, Layered):
            return None
        restructured = self.walkable.restructured(self.walkable.nearest(best.candidate))
        moves = ((made, move) for move, made in restructured.items())
        return _first_new(moves, past, Stage(descent, None, is_restructured=True))

    def _partial_step_more(self, descent: int, best: Observation | None, past: Past) -> Proposal | None:
        """The best candidate with a partial step more in one of its widest gaps; None where it has none yet, or is a
        neighbour, or all are tried."""
        if best is None or not isinstance(self.walkable, Caching):
            return None
        stage = Stage.parsed(best.stage)
        if (stage is not None and stage.step is not None) or all(branch is None for branch in best.candidate.branches):
            return None
        more = self.walkable.partial_steps_more(best.candidate)
        moves = ((made, move) for move, made in islice(more.items(), 2 * self.settings.beginnings))
        return _first_new(moves, past, Stage(descent, None, is_restructured=True))

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


def _first_new(moves: Iterable[tuple[Candidate, str]], past: Past, stage: Stage) -> Proposal | None:
    """The first of the candidates that was never proposed."""
    return next((Proposal(made, move, str(stage)) for made, move in moves if made not in past), None)


def _descents(past: Iterable[Observation]) -> Descents:
    """The observations of each descent; what other optimizers proposed, and baselines, count to the present one."""
    present, descents = 1, Descents()
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


@dataclass(frozen=True)
class WorseThanBest(BasePruner):
    """Stops a candidate that after a rung is worse than the best candidate was after equally many images.

    One that is nearer to its bounds than that goes on: its value may be worse. One that costs too much does not, where
    that does not.
    A descent that began with another number of steps has a best of its own: what it goes from is measured in full.

    Attributes:
        tolerance: by which share of the best one's value a candidate may be worse.
        layer_tolerance: the same for a candidate with other layers.
        counts: whether others are held against a candidate.
    """

    tolerance: float = 0.0
    layer_tolerance: float = 0.0
    counts: Callable[[Candidate], bool] = lambda candidate: True

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial is hopeless."""
        stage, images = Stage.parsed(trial.user_attrs.get(STAGE)), trial.last_step
        if images is None or (stage is not None and stage.is_restructured):
            return False
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        measured = [
            earlier
            for earlier in complete
            if images in earlier.intermediate_values
            and ((candidate := candidate_of(earlier)) is None or self.counts(candidate))
        ]
        same = [] if stage is None else [earlier for earlier in measured if _descent_of(earlier) == stage.descent]
        if any(RESTRUCTURED in earlier.user_attrs[STAGE] for earlier in same):
            measured = same
        ranked = best_first(measured, (study.direction,))
        if not ranked or trial.user_attrs.get(EXCESS, 0.0) < excess_of(ranked[0]):
            return False
        if trial.user_attrs.get(COST_EXCESS, 0.0) > excess_of(ranked[0]):
            return True  # seconds are not among these costs: they vary
        limit = ranked[0].intermediate_values[images]
        worse_by = trial.intermediate_values[images] - limit
        tolerance = self.tolerance if stage is None or stage.base is None else self.layer_tolerance
        return (worse_by if study.direction == StudyDirection.MINIMIZE else -worse_by) > tolerance * abs(limit)


def _descent_of(trial: FrozenTrial) -> int | None:
    stage = Stage.parsed(trial.user_attrs.get(STAGE))
    return None if stage is None else stage.descent
