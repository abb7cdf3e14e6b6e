"""What the terminal and a page show of studies side by side: rows of text."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.console import Group

from autodiffusion_opt.report.tables import number
from autodiffusion_opt.report.text_table import TextTable
from autodiffusion_opt.study.comparison import ComparedStudy, OptimizerComparison, OptimizerSummary, baseline_of
from autodiffusion_opt.study.curves import Axis, Reached, Spread
from autodiffusion_opt.study.steps_front import StepsComparison, unit_of

Comparison = OptimizerComparison | StepsComparison


@dataclass(frozen=True)
class Sheet:
    """A table as text.

    Attributes:
        columns: their headings.
        rows: as many cells each.
        bold: the indices of the rows that stand out.
        caption: below the table.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[int] = frozenset()
    caption: str = ""


def sheets(comparison: Comparison) -> list[Sheet]:
    """The tables of a comparison: optimizers, and their winners where they were measured again; or a front."""
    if isinstance(comparison, StepsComparison):
        return [_front_sheet(comparison)]
    rescored = [] if comparison.rescoring is None else [_winners_sheet(comparison)]
    return [_optimizers_sheet(comparison), *rescored]


def comparison_table(comparison: Comparison) -> Group:
    """The same for a terminal."""
    tables = []
    for sheet in sheets(comparison):
        table = TextTable(*sheet.columns, caption=sheet.caption)
        for index, row in enumerate(sheet.rows):
            table.add_cells(*row, style="bold" if index in sheet.bold else "")
        tables.append(table)
    return Group(*tables)


def _optimizers_sheet(comparison: OptimizerComparison) -> Sheet:
    """A row an optimizer, the soonest near the best value first; the last row is the baseline."""
    own = baseline_of(comparison.studies)
    percents = list(comparison.optimizers[0].within)
    columns = ("optimizer", "seeds", f"{comparison.value_name}, median", "range")
    of_own = () if own is None else (f"of {own.baseline}",)
    until = tuple(f"{comparison.axis} to within {percent:g} %" for percent in percents)
    spent = tuple(dict.fromkeys((comparison.axis, "trials")))

    def row(summary: OptimizerSummary) -> tuple[str, ...]:
        final = summary.final
        share = () if own is None else (_share(final.median, own.value),)
        near = (_reached_text(summary.within[percent], comparison.axis) for percent in percents)
        totals = (_spent_text(summary, axis) for axis in spent)
        low, high = (number(value) if math.isfinite(value) else "none" for value in (final.low, final.high))
        several = "" if len(summary.studies) == 1 else f"{low} to {high}"
        median = number(final.median) if math.isfinite(final.median) else "none"
        return (summary.name, str(len(summary.studies)), median, several, *share, *near, *totals)

    rows = [row(summary) for summary in comparison.optimizers]
    if own is not None:
        rest = ("",) * (len(until) + len(spent))
        rows.append((own.label, "", number(own.value), "", "1.000", *rest))
    return Sheet((*columns, *of_own, *until, *spent), tuple(rows), frozenset({0}))


def _reached_text(reached: Reached, axis: Axis) -> str:
    """``3,250 (1,000 to 4,000)``: the median over seeds, and the range; where some never came so near, how many did."""
    spread = reached.spent[axis]
    if reached.seeds == reached.of:
        return _spread_text(spread)
    if not reached.seeds:
        return "never"
    seeds = f"{reached.seeds} of {reached.of}, the first {spread.low:,.0f}"
    return f"{spread.median:,.0f}; {seeds}" if math.isfinite(spread.median) else seeds


def _spread_text(spread: Spread) -> str:
    span = "" if spread.low == spread.high else f" ({spread.low:,.0f} to {spread.high:,.0f})"
    return f"{spread.median:,.0f}{span}"


def _spent_text(summary: OptimizerSummary, axis: Axis) -> str:
    return _spread_text(Spread.of([study.curve.total(axis) for study in summary.studies]))


def _share(value: float, own: float) -> str:
    share = value / own if own else math.nan
    return f"{share:.3f}" if math.isfinite(share) else ""


def _winners_sheet(comparison: OptimizerComparison) -> Sheet:
    """A row a study: its winner measured again; the last row is the baseline."""
    rows = []
    for study in comparison.studies:
        if study.rescored is not None and study.winner is not None:
            values = (number(study.searched), number(study.rescored.mean), number(study.rescored.std))
            share = _share(study.value, study.own_value)
            rows.append((study.label, study.optimizer, str(study.seed), *values, share, str(study.winner.candidate)))
    own = baseline_of(comparison.studies)
    scored = next((study.own_rescored for study in comparison.studies if study.own_rescored is not None), None)
    if own is not None and scored is not None:
        values = (number(own.value), number(scored.mean), number(scored.std))
        rows.append((own.label, "", "", *values, "1.000", str(own.candidate)))
    share_of = "" if own is None else f"of {own.baseline}"
    values_of = (f"{comparison.value_name}, search", "fresh noise, mean", "std")
    return Sheet(
        ("study", "optimizer", "seed", *values_of, share_of, "time steps"), tuple(rows), caption=_caption(comparison)
    )


def _front_sheet(comparison: StepsComparison) -> Sheet:
    """A row a study, the cheapest first; those of the front stand out."""
    is_rescored, has_flops = comparison.rescoring is not None, comparison.cost == "flops"
    values_of = (f"{comparison.value_name}, mean", "std") if is_rescored else (comparison.value_name,)
    scale, unit = unit_of("flops", max(study.cost("flops") for study in comparison.studies))
    costs_of = ("NFE", unit) if has_flops else ("NFE",)
    labels = {study.name: study.label for study in comparison.studies}
    own = baseline_of(comparison.studies)
    of_own = ("", "") if own is None else (str(own.baseline), f"of {own.baseline}")
    columns = ("study", "optimizer", "seed", "steps", *costs_of, *values_of, *of_own, "", "time steps")

    def row(study: ComparedStudy) -> tuple[str, ...]:
        assert study.winner is not None  # a front is of studies that have one
        std = () if study.rescored is None else (number(study.rescored.std),)
        flops = (f"{study.cost('flops') / scale:.4g}",) if has_flops else ()
        by = comparison.dominated.get(study.name)
        place = "front" if study in comparison.front else "not measured" if by is None else f"dominated by {labels[by]}"
        return (
            *(study.label, study.optimizer, str(study.seed), str(len(study.winner.candidate.steps))),
            *(number(study.cost("nfe")), *flops, number(study.value), *std),
            *(number(study.own_value), _share(study.value, study.own_value)),
            *(place, str(study.winner.candidate)),
        )

    kept = frozenset(index for index, study in enumerate(comparison.studies) if study in comparison.front)
    return Sheet(columns, tuple(map(row, comparison.studies)), kept, _caption(comparison))


def _caption(comparison: Comparison) -> str:
    """What is left out of names, where something is."""
    name, label = comparison.studies[0].name, comparison.studies[0].label
    shared = [part for part in name.split("+") if part not in label.split("+")]
    return f"names are without what all share: {'+'.join(shared)}" if shared else ""
