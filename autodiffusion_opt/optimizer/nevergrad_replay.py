"""An optimizer of Nevergrad's, brought to where a study is by repeating what it was asked and told.

Its state cannot be kept in SQL, and telling it a study's points as somebody else's loses most of what it knew. But with
the same seed, budget and number of workers, the same asks and tells in the same order lead to the same state. So every
trial that it was asked for keeps a :class:`Record`.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.errors import UserError, named_reason_of
from autodiffusion_opt.optimizer.nevergrad_names import PREFIX

# First steps: Nevergrad asks for bounds that are at least 3 of them apart.
SIGMA = 1 / 3
# Points this close are the same: other processors may round the last digits otherwise.
CLOSE = 1e-9
# A position and the loss that was told of it.
Told = tuple[int, float]


@dataclass(frozen=True)
class Record:
    """What one trial's ask was.

    Attributes:
        kind: of the optimizer that was asked: a study may go on with another.
        turn: orders the asks of a study; of equal ones, the trial's number.
        told: positions and losses, told just before the ask, in this order.
        assumed: the same of positions that have no finite loss: failed, stopped early, or infinite. Told after these.
        point: that was asked, in the unit cube.
        versions: of the packages that the point depends on.
    """

    kind: str
    turn: int
    told: Sequence[Told]
    assumed: Sequence[Told]
    point: Sequence[float]
    versions: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def record_of(stored: Mapping[str, Any] | None, kind: str) -> Record | None:
    """The record in a trial's attribute; None where the trial has not asked yet, or asked another optimizer."""
    return None if stored is None or "point" not in stored or stored["kind"] != kind else Record(**stored)


class Replay:
    """A live optimizer, and what it was asked and told.

    Args:
        name: in Nevergrad's registry.
        dimension: of the unit cube.
        seed: of its random numbers.
        budget: how many points it is to plan for.
        num_workers: how many points it is to have open at once.

    Attributes:
        told: the positions that it was told, each with whether the loss was the position's own.
        worst: the greatest finite loss that it was told.
    """

    def __init__(self, name: str, dimension: int, seed: int, budget: int, num_workers: int) -> None:
        self.name = name
        self.told: dict[int, bool] = {}
        self.worst = -np.inf
        self._settings = {"budget": budget, "num_workers": num_workers}
        self._dimension = dimension
        self._seed = seed
        self._asked: dict[int, Any] = {}  # position -> Nevergrad's own candidate, until it is told
        self._repeated: set[int] = set()  # numbers of trials whose asks are in here
        self._differs = False
        self._start(seed)

    def _start(self, seed: int) -> None:
        import nevergrad

        with self._calls():
            start = nevergrad.p.Array(init=np.full(self._dimension, 0.5)).set_mutation(sigma=SIGMA)
            self._box = start.set_bounds(0.0, 1.0)
            self._box.random_state = np.random.RandomState(seed % 2**32)
            self._optimizer = nevergrad.optimizers.registry[self.name](self._box, **self._settings)

    def repeat(self, number: int, position: int, record: Record, points: Mapping[int, Sequence[float]]) -> None:
        """Ask and tell what a trial's record says; nothing where that was done.

        Args:
            number: of the trial.
            position: of the trial.
            record: of its ask.
            points: position -> point in the unit cube, of what was told and was not asked for here.
        """
        if number in self._repeated:
            return
        self.tell(record.told, points, assumed=False)
        self.tell(record.assumed, points, assumed=True)
        point = self.ask(number, position)
        if not np.allclose(point, record.point, rtol=0, atol=CLOSE):
            self._asked[position] = self._foreign(record.point)
            self._warn(number, record)

    def ask(self, number: int, position: int) -> NDArray[np.float64]:
        """The next point, for a trial. A set of points that are drawn at once is followed by another of its size."""
        sets, drawn = divmod(len(self._repeated), self._settings["budget"])
        if self._optimizer.one_shot and sets > 0 and drawn == 0:
            still_open = {each: candidate.value for each, candidate in self._asked.items()}
            self._start(self._seed + sets)
            self._asked = {each: self._foreign(point) for each, point in still_open.items()}
        with self._calls():
            candidate = self._optimizer.ask()
        self._asked[position] = candidate
        self._repeated.add(number)
        return np.asarray(candidate.value, dtype=np.float64)

    def tell(self, losses: Sequence[Told], points: Mapping[int, Sequence[float]], *, assumed: bool) -> None:
        """Tell losses, in their order; of points that were not asked for here too."""
        for position, loss in losses:
            asked = self._asked.pop(position, None)
            candidate = self._foreign(points[position]) if asked is None else asked
            with self._calls():
                self._optimizer.tell(candidate, loss)
            self.told[position] = not assumed
            self.worst = self.worst if assumed else max(self.worst, loss)

    def _foreign(self, point: Sequence[float]) -> Any:
        return self._box.spawn_child(new_value=np.asarray(point, dtype=np.float64))

    def _warn(self, number: int, record: Record) -> None:
        if not self._differs:
            warnings.warn(
                f"{PREFIX}{self.name} proposes another point than it did for trial {number}, with "
                f"{_text(record.versions)}; here: {_text(versions())}. No value is lost: it is told such points as "
                "points that it did not ask for. But it knows less of the search so far; with the former versions it "
                "goes on as it began",
                stacklevel=1,
            )
        self._differs = True

    @contextlib.contextmanager
    def _calls(self) -> Iterator[None]:
        """Nevergrad's warnings, of its own settings, are not the user's, and what it prints belongs on stderr."""
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            try:
                yield
            except Exception as error:
                raise UserError(
                    f"{PREFIX}{self.name} failed inside Nevergrad, with {_text(versions())}: "
                    f"{named_reason_of(error)}. Use another optimizer, in a study of another name"
                ) from error


def registered_names() -> list[str]:
    """Nevergrad's optimizers. Takes seconds, for the import. Raises ImportError."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        import nevergrad
    return sorted(nevergrad.optimizers.registry)


def versions() -> dict[str, str]:
    """Of the packages that a point depends on."""
    import nevergrad

    return {"nevergrad": str(nevergrad.__version__), "numpy": np.__version__}


def _text(of_packages: Mapping[str, str]) -> str:
    return " and ".join(f"{package} {version}" for package, version in sorted(of_packages.items()))
