"""Prints the table in docs/schedulers.md: every accepted scheduler beside its formula.

    python tests/peers/scheduler_table.py

A number is the greatest difference as a share of the greatest value, over schedules of 4, 6 and 10 uneven steps. Where
the scheduler computes its formula, both run on a made-up model that is harsh on purpose; where it computes something
else than a paper, on the exact model of a mixture of Gaussians, which is smooth as a trained one is.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file

from peers.scheduler_cases import CASES
from peers.scheduler_runs import curved, difference, formula, mixture, sample_with, start
from peers.schedulers import Case, Paper

from autodiffusion_opt.sampling import schedule as schedules

Schedule = tuple[tuple[float, ...], float | None]  # the times, the end

# All begin below T - 1 and end above 0, but those of ZERO.
INTEGER: tuple[tuple[float, ...], ...] = (
    (926, 690, 424, 153),
    (961, 900, 551, 260, 30, 7),
    (971, 930, 870, 660, 640, 420, 250, 131, 46, 9),
)
BETWEEN = tuple(tuple(time + (0.25, 0.5, 0.75)[k % 3] for k, time in enumerate(times)) for times in INTEGER)
COLUMNS: dict[str, tuple[Schedule, ...]] = {
    "integer times": tuple((times, None) for times in INTEGER),
    "between integers": tuple((times, None) for times in BETWEEN),
    "last time 0": tuple(((*times[:-1], 0.0), None) for times in INTEGER),
    "end time": ((INTEGER[0], 60.0), (BETWEEN[1], 3.25), (INTEGER[2], 4.0)),
}
FLOAT32 = "float32"
HEADER = ("scheduler", "formula", *COLUMNS, FLOAT32, "differs because")
ROUNDING = 1e-12


@dataclass(frozen=True)
class Row:
    """A scheduler beside a formula; None where it takes no such times."""

    scheduler: str
    formula: str
    values: dict[str, float | None]
    why: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.scheduler, self.formula, *map(printed, self.values.values()), self.why)


def printed(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0e}" if value > ROUNDING else f"< {ROUNDING:.0e}"


def applies(case: Case, column: str) -> bool:
    """LCM and TCD take integer times, they and LCM on a flow no end; a flow and Wuerstchen have no time 0."""
    if column == "end time" and not case.stops:
        return False
    return not ((case.flow or "Wuerstchen" in case.name) and column == "last time 0") and (
        case.continuous or column in ("integer times", "last time 0")
    )


def measured(case: Case, column: str, paper: Paper | None = None, double: bool = True) -> float | None:
    """The greatest difference over the schedules of a column."""
    if not applies(case, column):
        return None
    x, kind, worst = start() if double else start().float(), case.kinds[0], 0.0
    for times, end in COLUMNS[column]:
        scheduler = case.make(kind, double=double)
        schedules.install_schedule(scheduler, times, end_time=end, **case.install)
        model = mixture(*case.levels(scheduler, times, end)) if paper else curved
        got = sample_with(scheduler, case, model, x, kind)[-1]
        options = {} if paper is None else {"of": paper.formula, "options": paper.options, "between": paper.between}
        expected = formula(case, scheduler, x, times, end, model=model, **options)
        worst = max(worst, difference(got, expected))
    return worst


def rows() -> Iterator[Row]:
    for case in CASES:
        name = f"{case.name.removesuffix('Scheduler')} {case.settings}".strip()
        values = {column: measured(case, column) for column in COLUMNS}
        single = [measured(case, column, double=False) for column in COLUMNS]
        values[FLOAT32] = max(value for value in single if value is not None)
        yield Row(name, cited(case.formula), values)
        for paper in case.papers:
            values = {column: measured(case, column, paper) for column in COLUMNS}
            yield Row(name, cited(paper.formula), {**values, FLOAT32: None}, paper.why)


def cited(function: object) -> str:
    """What a formula's docstring begins with: a name and where it is from."""
    return (function.__doc__ or "").strip().splitlines()[0].partition(":")[0].removesuffix(".")


def markdown() -> str:
    lines = [HEADER, ("---",) * len(HEADER), *(row.cells for row in rows())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # diffusers' own, of NumPy 2 and its future
    print(markdown())
