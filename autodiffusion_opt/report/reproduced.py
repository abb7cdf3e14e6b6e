"""What ``reproduce`` prints: published beside measured."""

from __future__ import annotations

from collections.abc import Sequence

from autodiffusion_opt.report.tables import number
from autodiffusion_opt.report.text_table import TextTable
from autodiffusion_opt.study.reproduce import Reproduced


def reproduced_table(rows: Sequence[Reproduced]) -> TextTable:
    """A row of the paper's table each, and what was measured of it."""
    table = TextTable("", "published", "measured", "std", "time steps")
    for row in rows:
        published = "" if row.published.fid is None else f"{row.published.fid:.2f}"
        scored = row.scored
        table.add_cells(row.published.label, published, number(scored.mean), number(scored.std), str(scored.candidate))
    return table
