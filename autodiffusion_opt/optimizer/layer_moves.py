"""Which layers a pattern search tries to remove or to return next: those that promise most by what was measured.

Around one centre every layer of every step would be a trial. But an effect changes little while a search moves on, so
each layer is measured once, and again only where little was lost (lazy greedy; Minoux, 1978). Where the least important
layers of a step proved to be needed, those that matter more are not tried there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.optimizer.stage import Stage
from autodiffusion_opt.space import Layered, Toggle
from autodiffusion_opt.trials.history import Observation

# An effect is a relative change of the loss: a layer is needed where its removal has a greater one.
NEEDED = 0.05
# So many needed layers of a step, one after another in the order of importance, and the rest is left alone.
PATIENCE = 3
# What lost least is measured again at a new centre: so many, none that lost more than AGAIN.
REPEATED = 5
AGAIN = 0.02
# How many removals may pay for one return.
PAYMENTS = 4


@dataclass(frozen=True)
class Change:
    """A layer that is removed at a step, or returned to it."""

    index: int
    layer: int
    is_removal: bool

    @classmethod
    def of(cls, toggle: Toggle, candidate: Candidate) -> Change:
        """What a toggle of a candidate does."""
        index, layer = toggle
        return cls(index, layer, layer not in candidate.removed[index])

    @property
    def inverse(self) -> Change:
        """What undoes it."""
        return replace(self, is_removal=not self.is_removal)

    def __str__(self) -> str:
        return f"layer {self.layer} {'removed' if self.is_removal else 'returned'} at step {self.index + 1}"


def layer_moves(
    space: Layered, centre: Candidate, observations: Sequence[Observation], repeated: int = REPEATED
) -> Iterator[tuple[Candidate, str]]:
    """Neighbours of a centre with other layers, the most promising first, each with the name of the move.

    First the changes that were better at an earlier centre, then those that were never measured, then the few that lost
    least. What a return costs beyond the budget is paid for by removals, the cheapest first.

    Args:
        space: says which changes there are, and which candidates keep to the budget.
        centre: a candidate in the space.
        observations: of this descent; the base of a layer move's stage is the position of the centre it was made of.
        repeated: how many of those that lost least are measured again.
    """
    effects = _effects(observations, len(centre.steps))
    possible = [Change.of(toggle, centre) for toggle in space.toggles(centre)]
    measured = sorted((change for change in possible if change in effects), key=effects.__getitem__)
    better = [change for change in measured if effects[change] < 0]
    again = [change for change in measured if 0 <= effects[change] <= AGAIN][:repeated]
    payments = sorted(
        (change for change in possible if change.is_removal), key=lambda change: effects.get(change, AGAIN)
    )
    for change in (*better, *_unmeasured(possible, effects), *again):
        if not change.is_removal and effects.get(change.inverse, 0) < 0:
            continue  # its removal was better
        toggles = [(change.index, change.layer)]
        neighbour = space.toggled(centre, toggles)
        for payment in () if change.is_removal else payments[:PAYMENTS]:
            if neighbour is None:
                toggles.append((payment.index, payment.layer))
                neighbour = space.toggled(centre, toggles)
        if neighbour is not None:
            yield neighbour, ", ".join(str(Change.of(toggle, centre)) for toggle in toggles)


def _unmeasured(possible: Sequence[Change], effects: Mapping[Change, float]) -> Iterator[Change]:
    """Changes never measured, in their order; none of a step after several that are needed there."""
    needed: dict[tuple[int, bool], int] = {}  # step, and whether removed -> how many in a row
    for change in possible:
        kind = change.index, change.is_removal
        if change in effects:
            needed[kind] = needed.get(kind, 0) + 1 if effects[change] > NEEDED else 0
        elif needed.get(kind, 0) < PATIENCE:
            yield change


def _effects(observations: Sequence[Observation], steps: int) -> dict[Change, float]:
    """The relative change of the loss by each change that was measured, the last time that it was.

    Infinite for a candidate that was stopped before its centre was. A return that removals paid for counts as the
    return.
    """
    at = {observation.position: observation for observation in observations}
    effects = {}
    for observation in observations:
        stage = Stage.parsed(observation.stage)
        base = None if stage is None or stage.base is None else at.get(stage.base)
        if base is None or len(base.candidate.steps) != steps:
            continue
        pairs = zip(base.candidate.removed, observation.candidate.removed, strict=True)
        changes = [
            Change.of((index, layer), base.candidate)
            for index, (before, after) in enumerate(pairs)
            for layer in {*before} ^ {*after}
        ]
        effect = _effect(observation, base)
        if changes and effect is not None:
            effects[min(changes, key=lambda change: change.is_removal)] = effect
    return effects


def _effect(observation: Observation, base: Observation) -> float | None:
    """None where it is not measured, or the base has another number of images and says nothing."""
    if observation.losses is not None and base.losses is not None:
        before, after = base.losses[0], observation.losses[0]
    elif observation.stopped is not None and base.losses is not None:
        return math.inf
    elif observation.stopped is not None and base.stopped is not None and observation.stopped[0] == base.stopped[0]:
        before, after = base.stopped[1], observation.stopped[1]
    else:
        return None
    return (after - before) / abs(before) if before else after - before
