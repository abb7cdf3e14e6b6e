"""Trials as positions and observations: read once, then only what is new."""

from __future__ import annotations

import math
import operator
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.trials.attributes import (
    BASELINE,
    CANDIDATE,
    ERROR,
    EVALUATION_FAILED,
    RETRY_OF,
    REUSED_FROM,
    SCORE,
    STAGE,
    WORKER_DIED,
    candidate_of,
    excess_of,
    given_name,
    values_of,
)
from autodiffusion_opt.trials.reading import collection_paused
from autodiffusion_opt.trials.storage import Storage

Directions = Sequence[StudyDirection]
MINIMIZE = (StudyDirection.MINIMIZE,)
MEASURED = {TrialState.COMPLETE, TrialState.PRUNED}
# A position is given up after so many evaluations that failed, or workers that died there (of memory, say).
MOST_FAILURES, MOST_DEATHS = 2, 10


def losses_of(values: Sequence[float], directions: Directions) -> tuple[float, ...]:
    """The values with their signs turned where more is better: the smaller, the better."""
    return tuple(
        -value if direction == StudyDirection.MAXIMIZE else value
        for value, direction in zip(values, directions, strict=True)
    )


def cost_of(trial: FrozenTrial) -> tuple[float, float]:
    """Images and seconds of a finished trial; of one that failed, what is known."""
    if REUSED_FROM in trial.user_attrs:
        return 0.0, 0.0
    score = trial.user_attrs.get(SCORE)
    if score is not None:
        return float(score["images"]), float(score["seconds"])
    # Values of rungs are reported at their numbers of images. How long a worker lived that died is not known.
    is_timed = trial.user_attrs.get(EVALUATION_FAILED) and trial.duration is not None
    seconds = trial.duration.total_seconds() if is_timed and trial.duration is not None else 0.0
    return float(max(trial.intermediate_values, default=0)), seconds


def best_first(trials: Iterable[FrozenTrial], directions: Directions = MINIMIZE) -> list[FrozenTrial]:
    """Complete trials, best first by the first value; of equal ones the earlier first.

    Those that keep to their bounds come before those that do not.
    """
    complete = [(values, trial) for trial in trials if (values := values_of(trial)) is not None]
    complete.sort(key=lambda pair: (excess_of(pair[1]), losses_of(pair[0], directions), pair[1].number))
    return [trial for _, trial in complete]


def front(trials: Iterable[FrozenTrial], directions: Directions) -> list[FrozenTrial]:
    """Complete trials that no other dominates, best first by the first value; of equal ones the first.

    All their values are finite and keep to their bounds. With one value these are the best trials.
    """
    ranked = best_first(trials, directions)
    kept = [trial for trial in ranked if not excess_of(trial) and all(map(math.isfinite, trial.values))]
    return [kept[index] for index in undominated([losses_of(trial.values, directions) for trial in kept])]


def undominated(losses: Sequence[Sequence[float]]) -> list[int]:
    """The indices of losses that no others dominate, of equal ones the first.

    Args:
        losses: finite, ascending by the first, then by the next ...: each is dominated by an earlier one or by none.
    """
    chosen: list[int] = []
    kept = np.empty((len(losses), len(losses[0]) if losses else 0))
    for index, loss in enumerate(losses):
        if not (kept[: len(chosen)] <= loss).all(axis=1).any():
            kept[len(chosen)] = loss
            chosen.append(index)
    return chosen


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether losses are nowhere greater than others, and somewhere less."""
    return all(map(operator.le, first, second)) and any(map(operator.lt, first, second))


@dataclass(frozen=True)
class Observation:
    """A position of the sequence: its candidate, and its losses (smaller is better) once it has been measured.

    Attributes:
        excess: by how much its values are beyond their bounds; 0 where they keep to them.
        stopped: of a candidate that was stopped early: the number of images, and its loss there.
        stage: of the search, as the optimizer that proposed it named it; None where it named none.
    """

    position: int
    candidate: Candidate
    losses: tuple[float, ...] | None = None
    excess: float = 0.0
    stopped: tuple[int, float] | None = None
    stage: str | None = None

    @property
    def is_measured(self) -> bool:
        """Whether it is known how good the candidate is, or that it is hopeless."""
        return self.losses is not None or self.stopped is not None

    def unmeasured(self) -> Observation:
        """The same while it was being measured."""
        return Observation(self.position, self.candidate, stage=self.stage)

    @property
    def loss(self) -> float | None:
        """The only loss. Raises ValueError for a study with several objectives."""
        if self.losses is None:
            return None
        (loss,) = self.losses
        return loss


class Observations:
    """All observations of a study, by position, with an index by candidate and one by loss."""

    def __init__(self, observations: Iterable[Observation] = ()) -> None:
        self._at: dict[int, Observation] = {}
        self._first_position: dict[Candidate, int] = {}
        # Ascending (excess, losses, position); finite losses only.
        self._ranked: list[tuple[float, tuple[float, ...], int]] = []
        self._unmeasured: set[int] = set()  # positions whose candidate is known
        self._absent: set[int] = set()  # positions below the next of which nothing is known
        self._next = 0
        for observation in observations:
            self.put(observation)

    def put(self, observation: Observation) -> None:
        """Add what is known of a position, or replace it by what is known now; a measured one stays as it is."""
        before = self._at.get(observation.position)
        if before is not None and before.losses is not None:
            return
        self._at[observation.position] = observation
        (self._unmeasured.discard if observation.is_measured else self._unmeasured.add)(observation.position)
        self._absent.update(range(self._next, observation.position))
        self._absent.discard(observation.position)
        self._next = max(self._next, observation.position + 1)
        first = self._first_position.get(observation.candidate, observation.position)
        self._first_position[observation.candidate] = min(first, observation.position)
        if observation.losses is not None and all(map(math.isfinite, observation.losses)):
            insort(self._ranked, (observation.excess, observation.losses, observation.position))

    def before(self, position: int) -> Past:
        """What an optimizer may know when it proposes for ``position``."""
        return Past(self, position)


@dataclass(frozen=True)
class Past:
    """The positions before one: all that a proposal for it may depend on.

    Attributes:
        position: the position that a candidate is wanted for.
    """

    _all: Observations
    position: int

    def __iter__(self) -> Iterator[Observation]:
        at = self._all._at
        return (at[position] for position in range(self.position) if position in at)

    def __contains__(self, candidate: object) -> bool:
        """Whether an equal candidate was proposed before."""
        first = self._all._first_position.get(candidate)  # type: ignore[call-overload]
        return first is not None and bool(first < self.position)

    def unmeasured(self) -> dict[str, list[int]]:
        """The positions without a value: those whose candidate is known (``measuring``), and others (``proposing``).

        Only those of the two that have any.
        """
        known = self._all
        absent = known._absent.union(range(known._next, self.position))
        listed = {
            state: sorted(position for position in positions if position < self.position)
            for state, positions in (("measuring", known._unmeasured), ("proposing", absent))
        }
        return {state: positions for state, positions in listed.items() if positions}

    def as_it_was(self, unmeasured: Mapping[str, Sequence[int]]) -> Past:
        """The same positions when those of :meth:`unmeasured` had no value yet."""
        measuring, proposing = set(unmeasured.get("measuring", ())), set(unmeasured.get("proposing", ()))
        known = (each for each in self if each.position not in proposing)
        return Observations(each.unmeasured() if each.position in measuring else each for each in known).before(
            self.position
        )

    def best(self, count: int, before: int | None = None) -> list[Observation]:
        """The ``count`` best different candidates with finite losses at positions below ``before``, best first.

        Those that keep to their bounds come before those that do not, these by how far they are beyond.
        """
        limit = self.position if before is None else min(before, self.position)
        chosen: dict[Candidate, Observation] = {}
        for _, _, position in self._all._ranked:
            if position < limit:
                observation = self._all._at[position]
                chosen.setdefault(observation.candidate, observation)
                if len(chosen) == count:
                    break
        return list(chosen.values())


def _stopped(trial: FrozenTrial, directions: Directions) -> tuple[int, float] | None:
    """The number of images at which a trial was stopped, and its loss there; None for all others."""
    if trial.state != TrialState.PRUNED or not trial.intermediate_values:
        return None
    images = max(trial.intermediate_values)
    (loss,) = losses_of([trial.intermediate_values[images]], directions)
    return images, loss


class History:
    """The trials of a study as SQL holds them; :meth:`refresh` reads what is new since the last time.

    Attributes:
        study: the Optuna study.
        directions: of its values.
        trials: all trials, by number.
        observations: what is known of each position.
    """

    def __init__(self, study: optuna.Study) -> None:
        self.study = study
        self.directions: Directions = study.directions
        self.trials: dict[int, FrozenTrial] = {}
        self.observations = Observations()
        self._position: dict[int, int] = {}  # trial number -> position
        self._numbers: dict[int, list[int]] = {}  # position -> the numbers of its trials
        self._given: dict[tuple[str, str], int] = {}  # a baseline or warm start -> position
        self._next_position = 0
        self._unfinished: dict[int, int] = {}  # trial id -> number
        self._last_id = -1
        self._complete: dict[Candidate, int] = {}  # candidate -> number of the first complete trial that has it
        self._pruned: dict[Candidate, int] = {}  # candidate -> number of the first trial stopped early that has it
        self._settled: set[int] = set()  # positions that need no further trial
        self._open: set[int] = set()  # positions whose every trial lost its worker

    def refresh(self, *, proposing: bool = False) -> History:
        """Read the trials that are new or were not finished; returns itself.

        Args:
            proposing: whether trials that have no candidate yet are read again too, for what they hold of turns.
        """
        with collection_paused():
            for trial in sorted(self._fresh(proposing), key=lambda trial: trial.number):
                self._take(trial)
        return self

    def _fresh(self, read_proposing: bool) -> list[FrozenTrial]:
        storage, study_id = self.study._storage, self.study._study_id
        if isinstance(storage, Storage):
            # Of a trial that runs there is nothing new, but for its turn, until it has a candidate, and then until it
            # has ended.
            running = {trial._trial_id: CANDIDATE in trial.user_attrs for trial in self.unfinished(TrialState.RUNNING)}
            measuring = {trial_id for trial_id, has_candidate in running.items() if has_candidate}
            proposing = set(running) - measuring
            changed = storage.changed(study_id, measuring, set() if read_proposing else proposing)
            changed |= proposing if read_proposing else set()
            return storage.new_trials(study_id, set(self._unfinished) - set(running) | changed, self._last_id)
        # Another program's, which one of our samplers serves.
        return storage.get_all_trials(study_id, deepcopy=False)

    def _take(self, trial: FrozenTrial) -> None:
        self.trials[trial.number] = trial
        self._last_id = max(self._last_id, trial._trial_id)
        if trial.state.is_finished():
            self._unfinished.pop(trial._trial_id, None)
        else:
            self._unfinished[trial._trial_id] = trial.number
        if trial.number not in self._position:
            self._place(trial)
        position, candidate = self._position[trial.number], candidate_of(trial)
        if candidate is not None:
            values = values_of(trial)
            losses = None if values is None else losses_of(values, self.directions)
            stopped, stage = _stopped(trial, self.directions), trial.user_attrs.get(STAGE)
            self.observations.put(Observation(position, candidate, losses, excess_of(trial), stopped, stage))
            if losses is not None:
                self._complete.setdefault(candidate, trial.number)
            elif trial.state == TrialState.PRUNED:
                self._pruned.setdefault(candidate, trial.number)
        trials = self.at(position)
        states = {each.state for each in trials}
        failures = sum(bool(each.user_attrs.get(EVALUATION_FAILED)) for each in trials)
        deaths = sum(each.user_attrs.get(ERROR) == WORKER_DIED for each in trials)
        # A retry that waits or runs takes the place of what failed before it.
        is_given_up = trials[-1].state == TrialState.FAIL and (failures >= MOST_FAILURES or deaths >= MOST_DEATHS)
        is_settled = bool(states & MEASURED) or is_given_up
        (self._settled.add if is_settled else self._settled.discard)(position)
        is_open = states == {TrialState.FAIL} and not is_settled
        (self._open.add if is_open else self._open.discard)(position)

    def _place(self, trial: FrozenTrial) -> None:
        """The position of a new trial: that of the trial it retries, or the next."""
        position = int(trial.user_attrs.get(RETRY_OF, self._next_position))
        self._next_position += position == self._next_position
        self._position[trial.number] = position
        self._numbers.setdefault(position, []).append(trial.number)
        name = given_name(trial)
        if name is not None:
            self._given.setdefault(name, position)

    def position(self, number: int) -> int:
        """The position of a trial."""
        return self._position[number]

    def at(self, position: int) -> list[FrozenTrial]:
        """The trials of a position, in the order of their numbers."""
        return [self.trials[number] for number in self._numbers.get(position, ())]

    @property
    def settled(self) -> set[int]:
        """Positions that were measured, stopped early, or whose evaluation failed: nothing is left to do there."""
        return self._settled

    @property
    def is_measured(self) -> bool:
        """Whether any trial is complete."""
        return bool(self._complete)

    @property
    def open_positions(self) -> list[int]:
        """Positions whose every trial lost its worker, ascending: to be retried."""
        return sorted(self._open)

    def failures_in_a_row(self, count: int) -> set[int]:
        """The positions at which the last trials to finish all failed to be measured; none where they are fewer."""
        positions: set[int] = set()
        finished = (trial for _, trial in sorted(self.trials.items(), reverse=True) if trial.state.is_finished())
        for trial in finished:
            if len(positions) == count or not trial.user_attrs.get(EVALUATION_FAILED):
                break
            positions.add(self._position[trial.number])
        return positions if len(positions) == count else set()

    def given_names(self, kind: str = BASELINE) -> set[str]:
        """The baselines, or the warm starts, that were ever enqueued."""
        return {name for of_kind, name in self._given if of_kind == kind}

    def baseline(self, name: str) -> FrozenTrial | None:
        """The complete trial of a baseline."""
        position = self._given.get((BASELINE, name))
        trials = [] if position is None else self.at(position)
        return next((trial for trial in trials if trial.state == TrialState.COMPLETE), None)

    def unfinished(self, state: TrialState) -> list[FrozenTrial]:
        """The trials that are ``RUNNING``, or ``WAITING``, in the order of their numbers."""
        unfinished = (self.trials[number] for number in sorted(self._unfinished.values()))
        return [trial for trial in unfinished if trial.state == state]

    def complete_with(self, candidate: Candidate) -> FrozenTrial | None:
        """The first complete trial with an equal candidate."""
        number = self._complete.get(candidate)
        return None if number is None else self.trials[number]

    def measured_with(self, candidate: Candidate) -> FrozenTrial | None:
        """The first complete trial with an equal candidate, else the first that was stopped early."""
        number = self._complete.get(candidate, self._pruned.get(candidate))
        return None if number is None else self.trials[number]

    def sequence(self, start: int, stop: int) -> Iterator[FrozenTrial]:
        """Of each position from ``start`` to below ``stop`` the trial that got furthest."""
        for position in range(start, stop):
            trials = self.at(position)
            measured = (trial for trial in trials if trial.state in MEASURED)
            furthest = next(measured, trials[-1] if trials else None)
            if furthest is not None:
                yield furthest
