"""Which layers a step leaves out: any subset, or the first of a ranking. One frozen value each, of the same methods.

Both are told how many layers may go; the budget over all steps is the joint space's affair.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space.model_info import third_of

Layers = tuple[int, ...]
# A mutation changes 1, 2, 3 ... layers of a step with chances 1/2, 1/4, 1/8 ...
STOP = 0.5
# Of a ranking, the layer that matters least is drawn e⁴ times as often as the one that matters most.
SKEW = 4.0


class LayerChoice(Protocol):
    """What may be left out at one step."""

    @property
    def removable(self) -> Layers:
        """The layers that may be left out, ascending."""
        ...

    @property
    def counted(self) -> bool:
        """Whether the number of layers says which: the set is a function of time and number."""
        ...

    def chosen(self, time: float, count: int) -> Layers:
        """``count`` layers, without chance."""
        ...

    def resized(self, time: float, removed: Collection[int], count: int, rng: np.random.Generator) -> Layers:
        """``count`` layers that share with ``removed`` what they can."""
        ...

    def changed(self, time: float, removed: Layers, most: int, rng: np.random.Generator) -> Layers:
        """Another set than ``removed``, of at most ``most`` layers; the same where there is no other."""
        ...

    def check(self, time: float, removed: Layers) -> None:
        """Raises UserError for a set that may not be left out at this time."""
        ...


@dataclass(frozen=True)
class AnyLayers:
    """``layers = "any"``: any subset of the removable layers, the space of the paper (section 3.3).

    Every subset can come up. Where there is a ranking, the layers that matter less are removed more often, and given
    back less often.

    Attributes:
        removable: the layers, ascending.
        ranking: three orders as of :class:`RankedLayers`; empty: every layer is equally likely.
        lowest: the end of the time range near the image.
        highest: the end near the noise.
    """

    removable: Layers
    ranking: tuple[Layers, ...] = ()
    lowest: float = 0.0
    highest: float = 0.0

    @property
    def counted(self) -> bool:
        """False."""
        return False

    def chosen(self, time: float, count: int) -> Layers:
        """Evenly spread over the removable layers: of n, those at (j + ½)·n / count, rounded down."""
        return tuple(self.removable[(2 * j + 1) * len(self.removable) // (2 * count)] for j in range(count))

    def resized(self, time: float, removed: Collection[int], count: int, rng: np.random.Generator) -> Layers:
        """Layers added or given back at random."""
        own, free = self._split(removed)
        if count <= len(own):
            return _draw(own, count, rng, self._weights(time, own))
        return tuple(sorted(own + list(_draw(free, count - len(own), rng, self._weights(time, free)))))

    def changed(self, time: float, removed: Layers, most: int, rng: np.random.Generator) -> Layers:
        """Some layers added, dropped, or exchanged for others: one of the three, of those that are possible."""
        own, free = self._split(removed)
        room = min(most - len(own), len(free))
        # (how many at most leave the set, how many at most come in)
        kinds = [(0, room), (len(own), 0), (min(len(own), len(free)),) * 2]
        possible = [kind for kind in kinds if max(kind) > 0]
        if not possible:
            return removed
        leave, enter = possible[int(rng.integers(len(possible)))]
        number = int(rng.geometric(STOP))
        stay = _draw(own, len(own) - min(leave, number), rng, self._weights(time, own))
        return tuple(sorted(stay + _draw(free, min(enter, number), rng, self._weights(time, free))))

    def check(self, time: float, removed: Layers) -> None:
        """Removable ones only."""
        wrong = sorted(set(removed) - set(self.removable))
        if wrong:
            raise UserError(f"only the layers {_listed(self.removable)} may be removed; got {_listed(wrong)}")

    def _weights(self, time: float, layers: Sequence[int]) -> NDArray[np.float64] | None:
        """Chances, up to a factor, of each of ``layers`` to be among those removed; None: all alike."""
        if not self.ranking or not layers:
            return None
        order = self.ranking[third_of(time, self.lowest, self.highest)]
        ranks = np.array([order.index(layer) for layer in layers]) / len(order)
        weights = np.exp(-SKEW * ranks)
        chances: NDArray[np.float64] = weights / weights.sum()
        return chances

    def _split(self, removed: Collection[int]) -> tuple[list[int], list[int]]:
        gone = set(removed)
        own = [layer for layer in self.removable if layer in gone]
        return own, [layer for layer in self.removable if layer not in gone]


@dataclass(frozen=True)
class RankedLayers:
    """``layers = "ranked"``: the first of a ranking, one ranking for each third of the time range, noise to image.

    Attributes:
        ranking: three orders of the removable layers, from the one whose removal changes the output least.
        lowest: the end of the time range near the image.
        highest: the end near the noise.
    """

    ranking: tuple[Layers, ...]
    lowest: float
    highest: float

    @property
    def removable(self) -> Layers:
        """The layers ranked."""
        return tuple(sorted(self.ranking[0]))

    @property
    def counted(self) -> bool:
        """True."""
        return True

    def chosen(self, time: float, count: int) -> Layers:
        """The first ``count`` of the third in which ``time`` lies, ascending."""
        return tuple(sorted(self.ranking[third_of(time, self.lowest, self.highest)][:count]))

    def resized(self, time: float, removed: Collection[int], count: int, rng: np.random.Generator) -> Layers:
        """The first ``count``; there is no choice."""
        return self.chosen(time, count)

    def changed(self, time: float, removed: Layers, most: int, rng: np.random.Generator) -> Layers:
        """Some layers more or fewer."""
        number, up = int(rng.geometric(STOP)), bool(rng.integers(2))
        if not removed or (up and len(removed) < most):
            return self.chosen(time, min(len(removed) + number, most))
        return self.chosen(time, max(len(removed) - number, 0))

    def check(self, time: float, removed: Layers) -> None:
        """Exactly the first of the ranking."""
        wanted = self.chosen(time, len(removed))
        if wanted != removed:
            raise UserError(
                f'layers = "ranked": at time {time:g} a step with {len(removed)} layers removed must remove '
                f"{_listed(wanted)}; got {_listed(removed)}"
            )


def _draw(
    layers: Sequence[int], count: int, rng: np.random.Generator, weights: NDArray[np.float64] | None = None
) -> Layers:
    """``count`` of ``layers``, ascending where these are; draws nothing from ``rng`` where there is no choice."""
    if count >= len(layers):
        return tuple(layers)
    if count <= 0:
        return ()
    return tuple(layers[int(i)] for i in sorted(rng.choice(len(layers), count, replace=False, p=weights)))


def _listed(layers: Sequence[int]) -> str:
    return "[" + ", ".join(str(layer) for layer in layers) + "]"
