"""Which layers a step leaves out: any subset, or the first of a ranking. A frozen value each, with the same methods.

Both are told how many layers may go; the budget over all steps is the joint space's part.
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
# Of a ranking, the layer that matters least is drawn about e⁴ times as often as the layer that matters most.
SKEW = 4.0


@dataclass(frozen=True)
class LayerRanking:
    """The removable layers by how little their removal changes the output, in an order for each third of the times.

    Attributes:
        orders: three orders of the same layers, noise to image, the least important layer first.
        lowest: the end of the time range near the image.
        highest: the end near the noise.
    """

    orders: tuple[Layers, ...]
    lowest: float
    highest: float

    def at(self, time: float) -> Layers:
        """The layers at a time, least important first."""
        return self.orders[third_of(time, self.lowest, self.highest)]


class LayerChoice(Protocol):
    """What may be left out at a step."""

    @property
    def removable(self) -> Layers:
        """The layers that may be left out, ascending."""
        ...

    @property
    def fully_parametric(self) -> bool:
        """Whether the set of layers is a function of the time and the number of layers."""
        ...

    def chosen(self, time: float, count: int) -> Layers:
        """``count`` layers, without chance, ascending."""
        ...

    def by_importance(self, time: float) -> Layers:
        """The layers that may be left out, the least important at this time first."""
        ...

    def toggles(self, time: float, removed: Layers) -> Layers:
        """The layers that may be removed or returned alone: those that run, the least important first, then those that
        are removed, the most important first."""
        ...

    def costliest(self, time: float, count: int, costs: Sequence[int]) -> Layers:
        """The ``count`` layers whose removal saves most, given what each saves; ascending."""
        ...

    def resized(self, time: float, removed: Collection[int], count: int, rng: np.random.Generator) -> Layers:
        """``count`` layers that have as many as possible in common with ``removed``."""
        ...

    def changed(self, time: float, removed: Layers, max_removed: int, rng: np.random.Generator) -> Layers:
        """Another set than ``removed``, of at most ``max_removed`` layers; the same where there is no other."""
        ...

    def check(self, time: float, removed: Layers) -> None:
        """Raises UserError for a set that may not be left out at this time."""
        ...


@dataclass(frozen=True)
class AnyLayers:
    """``layers = "any"``: any subset of the removable layers, the space of the paper (AutoDiffusion, section 3.3).

    Every subset can come up. Where there is a ranking, the layers that matter less are removed more often, and given
    back less often.

    Attributes:
        removable: the layers, ascending.
        ranking: how much each matters; None: every layer is equally likely.
    """

    removable: Layers
    ranking: LayerRanking | None = None

    @property
    def fully_parametric(self) -> bool:
        """False: of as many layers there are many sets."""
        return False

    def chosen(self, time: float, count: int) -> Layers:
        """Evenly spread over the removable layers: of n, those at (j + ½)·n / count, rounded down."""
        return tuple(self.removable[(2 * j + 1) * len(self.removable) // (2 * count)] for j in range(count))

    def by_importance(self, time: float) -> Layers:
        """As ranked; without a ranking as they are numbered."""
        return self.removable if self.ranking is None else self.ranking.at(time)

    def costliest(self, time: float, count: int, costs: Sequence[int]) -> Layers:
        """Of equally costly ones those of the lowest numbers."""
        return tuple(sorted(sorted(self.removable, key=lambda layer: -costs[layer])[:count]))

    def toggles(self, time: float, removed: Layers) -> Layers:
        """All."""
        order = self.by_importance(time)
        running = tuple(layer for layer in order if layer not in removed)
        return running + tuple(layer for layer in reversed(order) if layer in removed)

    def resized(self, time: float, removed: Collection[int], count: int, rng: np.random.Generator) -> Layers:
        """Layers added or given back at random."""
        gone, kept = self._split(removed)
        if count <= len(gone):
            return _draw(gone, count, rng, self._weights(time, gone))
        return tuple(sorted(gone + list(_draw(kept, count - len(gone), rng, self._weights(time, kept)))))

    def changed(self, time: float, removed: Layers, max_removed: int, rng: np.random.Generator) -> Layers:
        """Some layers added, given back, or exchanged: a uniform choice of those of the three that are possible."""
        gone, kept = self._split(removed)
        # How many layers can be given back at most, and how many added at most.
        add = (0, min(max_removed - len(gone), len(kept)))
        give_back = (len(gone), 0)
        exchange = (min(len(gone), len(kept)),) * 2
        possible = [limits for limits in (add, give_back, exchange) if max(limits) > 0]
        if not possible:
            return removed
        most_back, most_added = possible[int(rng.integers(len(possible)))]
        number = int(rng.geometric(STOP))
        # What stays removed is drawn, and so weighted as what is added: the layers that matter less.
        stay = _draw(gone, len(gone) - min(most_back, number), rng, self._weights(time, gone))
        return tuple(sorted(stay + _draw(kept, min(most_added, number), rng, self._weights(time, kept))))

    def check(self, time: float, removed: Layers) -> None:
        """Removable ones only."""
        wrong = sorted(set(removed) - set(self.removable))
        if wrong:
            raise UserError(f"only the layers {list(self.removable)} may be removed; got {wrong}")

    def _weights(self, time: float, layers: Sequence[int]) -> NDArray[np.float64] | None:
        """Relative chances exp(-4 · rank / n), summing to 1, of each of ``layers``; None: all equal."""
        if self.ranking is None or not layers:
            return None
        order = self.ranking.at(time)
        # ranks: shape (len(layers),), 0 for the least important layer to (n - 1) / n for the most important
        ranks = np.array([order.index(layer) for layer in layers]) / len(order)
        weights = np.exp(-SKEW * ranks)
        chances: NDArray[np.float64] = weights / weights.sum()
        return chances

    def _split(self, removed: Collection[int]) -> tuple[list[int], list[int]]:
        """The removable layers that are in ``removed``, and those that are not; both ascending."""
        gone = set(removed).intersection(self.removable)
        return sorted(gone), [layer for layer in self.removable if layer not in gone]


@dataclass(frozen=True)
class RankedLayers:
    """``layers = "ranked"``: the least important layers of a ranking, so that their number says which."""

    ranking: LayerRanking

    @property
    def removable(self) -> Layers:
        """The layers ranked."""
        return tuple(sorted(self.ranking.orders[0]))

    @property
    def fully_parametric(self) -> bool:
        """True."""
        return True

    def chosen(self, time: float, count: int) -> Layers:
        """The ``count`` least important ones at this time, ascending."""
        return tuple(sorted(self.ranking.at(time)[:count]))

    def by_importance(self, time: float) -> Layers:
        """As ranked."""
        return self.ranking.at(time)

    def costliest(self, time: float, count: int, costs: Sequence[int]) -> Layers:
        """The least important ones; there is no choice."""
        return self.chosen(time, count)

    def toggles(self, time: float, removed: Layers) -> Layers:
        """The next of the ranking, and the last that is removed."""
        order, count = self.ranking.at(time), len(removed)
        return order[count : count + 1] + order[max(count - 1, 0) : count]

    def resized(self, time: float, removed: Collection[int], count: int, rng: np.random.Generator) -> Layers:
        """The ``count`` least important ones; there is no choice."""
        return self.chosen(time, count)

    def changed(self, time: float, removed: Layers, max_removed: int, rng: np.random.Generator) -> Layers:
        """Some layers more or fewer, with equal chance; fewer where no more may go, more where none is removed."""
        # Both are drawn always, so that what follows in the generator does not depend on `removed`.
        number, up = int(rng.geometric(STOP)), bool(rng.integers(2))
        if not removed or (up and len(removed) < max_removed):
            return self.chosen(time, min(len(removed) + number, max_removed))
        return self.chosen(time, max(len(removed) - number, 0))

    def check(self, time: float, removed: Layers) -> None:
        """Exactly the least important ones."""
        wanted = self.chosen(time, len(removed))
        if wanted != removed:
            count = f"{len(removed)} layer{'' if len(removed) == 1 else 's'} removed"
            raise UserError(
                f'layers = "ranked": at time {time:g} a step with {count} must remove '
                f"{list(wanted)}; got {list(removed)}"
            )


def _draw(layers: Sequence[int], count: int, rng: np.random.Generator, weights: NDArray[np.float64] | None) -> Layers:
    """``count`` of ``layers``, ascending where these are; draws nothing from ``rng`` where there is no choice."""
    if count >= len(layers):
        return tuple(layers)
    if count <= 0:
        return ()
    return tuple(layers[int(i)] for i in sorted(rng.choice(len(layers), count, replace=False, p=weights)))
