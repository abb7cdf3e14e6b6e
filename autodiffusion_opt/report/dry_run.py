"""What a run would do, for a person: a line for each thing that is known of it."""

from __future__ import annotations

from autodiffusion_opt.report.text_table import TextTable
from autodiffusion_opt.study.dry_run import DryRun, Range
from autodiffusion_opt.study.progress_bar import duration, speed


def dry_run_table(planned: DryRun) -> TextTable:
    """The numbers of a :class:`DryRun`, with their units."""
    table = TextTable("", "", show_header=False)
    stored = ", ".join(f"{count} {state}" for state, count in planned.stored.items() if count) or "no trial yet"
    table.add_cells("study", f"{planned.study}, of {planned.model}, by {planned.optimizer}")
    table.add_cells("storage", f"{planned.storage}: {stored}")
    if planned.changes:
        table.add_cells("refused", "the definition there is another: " + "; ".join(planned.changes))
    table.add_cells("trials", f"{planned.trials_to_run:,} to run, {planned.trials:,} in all")
    table.add_cells("space", _space(planned))
    table.add_cells("baselines", ", ".join(planned.baselines))
    if planned.start_from:
        table.add_cells("warm starts", ", ".join(planned.start_from))
    table.add_cells("an image", _cost(planned))
    rungs = " and ".join(f"{count:,}" for count in planned.rungs)
    table.add_cells("a trial", f"{rungs} images{', stopped early where it is worse' if planned.is_stopped else ''}")
    table.add_cells("images", f"{_range(planned.images)} in the trials")
    for each in planned.preparations:
        calls = f"{each.images:,} images of {each.nfe:,} calls, unless kept from an earlier run"
        table.add_cells("before", f"{each.name}: {calls}")
    parts = ", ".join(f"{part} {speed(1, seconds)}" for part, seconds in planned.seconds_of.items() if seconds > 0)
    table.add_cells("speed", f"{parts} ({planned.machine})")
    table.add_cells("time", f"about {_times(planned.seconds)} for one worker")
    return table


def _space(planned: DryRun) -> str:
    points = "without number"
    if planned.log10_points is not None:
        small = planned.log10_points < 6
        points = f"{round(10**planned.log10_points):,}" if small else f"about 10^{planned.log10_points:.1f}"
    each = "" if planned.is_parametric else ", each of which stands for many choices of layers"
    return f"{planned.parameters} parameters, points: {points}{each}"


def _cost(planned: DryRun) -> str:
    parts = [f"{_range(planned.nfe)} NFE"]
    if planned.layer_runs is not None:
        parts.append(f"{_range(planned.layer_runs)} layer runs")
    if planned.flops is not None and planned.networks is not None:
        size, unit = (1e6, "MFLOP") if planned.flops[1] < 1e9 else (1e9, "GFLOP")
        low, high = (flops / size for flops in planned.flops)
        parts.append(f"{_range((low, high), '.4g')} {unit}")
        parts.append(f"{_range(planned.networks, '.3g')} whole networks")
    return ", ".join(parts)


def _range(span: Range, form: str = ",.0f") -> str:
    low, high = (format(number, form) for number in span)
    return low if low == high else f"{low} to {high}"


def _times(seconds: Range) -> str:
    low, high = map(duration, seconds)
    return low if low == high else f"{low} to {high}"
