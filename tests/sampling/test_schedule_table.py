"""The table in docs/schedulers.md is what `python tests/peers/scheduler_table.py` prints, and what it says holds."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
from peers import scheduler_table
from peers.scheduler_table import COLUMNS, FLOAT32, HEADER, ROUNDING, Row

from autodiffusion_opt.sampling.schedule import accepted

pytestmark = pytest.mark.slow  # all schedulers against their formulas: some 15 s
PAGE = Path(__file__).parent.parent.parent / "docs" / "schedulers.md"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own
        return list(scheduler_table.rows())


@pytest.fixture(scope="module")
def written() -> list[list[str]]:
    """The cells of the page's table, without its head."""
    text = PAGE.read_text(encoding="utf-8").split("<!-- table -->\n")[1].split("<!-- end of table -->")[0]
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.strip().splitlines()]
    assert tuple(lines[0]) == HEADER
    return lines[2:]


def test_the_page_has_exactly_the_rows_that_are_computed(rows: list[Row], written: list[list[str]]) -> None:
    """The texts, and which schedulers take which times; the numbers are another test's."""
    for row, cells in zip(rows, written, strict=True):
        assert (cells[0], cells[1], cells[-1]) == (row.cells[0], row.cells[1], row.cells[-1])
        assert [bool(cell) for cell in cells] == [bool(cell) for cell in row.cells]


def test_the_numbers_on_the_page_are_of_the_order_of_those_computed(rows: list[Row], written: list[list[str]]) -> None:
    """Rounding differs from machine to machine."""
    for row, cells in zip(rows, written, strict=True):
        for cell, value in zip(cells[2:-1], row.values.values(), strict=True):
            if value is not None:
                read = float(cell.removeprefix("< "))
                assert abs(math.log10(max(read, ROUNDING) / max(value, ROUNDING))) <= 1, (row.scheduler, cell, value)


def test_every_scheduler_computes_its_formula(rows: list[Row]) -> None:
    equal = [row for row in rows if not row.why]
    assert {f"{row.scheduler.split()[0]}Scheduler" for row in equal} == set(accepted())
    for row in equal:
        values = [row.values[column] for column in COLUMNS]
        assert max(value for value in values if value is not None) <= 1e-5, row
        assert row.values[FLOAT32] is not None
        # SA-Solver's coefficients are differences of large numbers
        assert row.values[FLOAT32] <= (2e-3 if row.scheduler.startswith("SASolver") else 3e-5), row


def test_a_row_that_differs_says_why_and_does(rows: list[Row]) -> None:
    """So that no reason outlives its difference."""
    different = [row for row in rows if row.why]
    assert {row.scheduler.split()[0] for row in different} == {
        "DEISMultistep",
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
        "EulerDiscrete",
    }
    for row in different:
        assert max(row.values[column] or 0.0 for column in COLUMNS) > 1e-5, row
