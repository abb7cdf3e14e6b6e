"""Pictures of studies side by side, drawn with matplotlib; and a page that holds one with its tables.

matplotlib is an extra, imported when a picture is drawn. Figures are made without pyplot, so nothing global is changed.
"""

from __future__ import annotations

import html
import importlib.util
import io
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.files import check_output, write_whole
from autodiffusion_opt.report.comparison import Comparison, Sheet, sheets
from autodiffusion_opt.study.comparison import ComparedStudy, OptimizerComparison, baseline_of
from autodiffusion_opt.study.curves import Band
from autodiffusion_opt.study.steps_front import StepsComparison, unit_of
from autodiffusion_opt.text import CELL, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".html")
# Okabe and Ito's colours, which colour-blind people tell apart; without yellow, too pale for lines, and black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Beyond so many lines, colours come again with another dash.
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)))
GREY = "#666666"
DPI = 160
WIDTH, HEIGHT = 8.0, 4.6  # inches
# Numbers that span more than this factor are drawn on a log axis.
WIDE = 5.0
# Between labels beside the axes, as a share of the axes' height.
LABEL_GAP = 0.062


def check_picture(path: Path) -> None:
    """Raises UserError, before anything is measured, for a picture that could not be written."""
    if path.suffix not in ENDINGS:
        raise UserError(f"-o must end in {', '.join(ENDINGS)}; got {path}")
    check_output(path)
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("a picture needs matplotlib: pip install 'autodiffusion-opt[plots]'")


def save_picture(comparison: Comparison, path: Path) -> None:
    """Write a comparison as ``.png``, ``.svg``, or an ``.html`` page with its tables.

    Raises:
        UserError: for another ending, a folder that is not there, without matplotlib, or where it cannot be written.
    """
    check_picture(path)
    figure = draw(comparison)
    if path.suffix == ".html":
        content = page(comparison, _rendered(figure, "svg").decode()).encode()
    else:
        content = _rendered(figure, path.suffix[1:])
    try:
        write_whole(path, content)
    except OSError as error:
        raise UserError(f"-o: {path} cannot be written: {reason_of(error)}") from None


def draw(comparison: Comparison) -> Figure:
    """The picture of a comparison: medians with their bands over seeds; or the front."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.6, which="major")
    axes.set_axisbelow(True)
    if isinstance(comparison, StepsComparison):
        _draw_front(axes, comparison)
    else:
        _draw_curves(axes, comparison)
    return figure


def _rendered(figure: Figure, kind: str) -> bytes:
    """The same bytes for the same figure: without a date, and with ids that depend on nothing else."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "autodiffusion-opt"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a name in any script
        figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


def _draw_curves(axes: Axes, comparison: OptimizerComparison) -> None:
    """A step curve an optimizer, the median over seeds of the best so far; the band is the range."""
    labels = []
    drawn = []
    end = max(study.curve.total(comparison.axis) for study in comparison.studies)
    for index, summary in reversed(list(enumerate(comparison.optimizers))):  # the best above the others
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]
        band = _until(summary.bands[comparison.axis], end)
        axes.plot(band.at, _finite(band.median), drawstyle="steps-post", color=colour, linestyle=dash, linewidth=1.8)
        if len(summary.studies) > 1:
            low, high = _finite(band.low), _finite(band.high)
            axes.fill_between(band.at, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
            drawn += low + high
        drawn += _finite(band.median)
        if math.isfinite(band.median[-1]):
            labels.append((band.median[-1], summary.name, colour))
    own = baseline_of(comparison.studies)
    if own is not None:
        axes.axhline(own.value, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        labels.append((own.value, str(own.baseline), GREY))
        drawn.append(own.value)
    start = _start([summary.bands[comparison.axis] for summary in comparison.optimizers])
    if 0 < start < end:
        axes.set_xscale("log" if end / start > WIDE else "linear")
        axes.set_xlim(left=start)
    _finish(axes, drawn, comparison.value_name, comparison.direction)
    axes.set_xlim(right=end)
    several = any(len(summary.studies) > 1 for summary in comparison.optimizers)
    axes.set_title(
        f"Best {_cut(comparison.value_name)} so far" + (": median over seeds, and range" if several else ""),
        **_TITLE,
    )
    axes.set_xlabel("images generated" if comparison.axis == "images" else "trials finished")
    _label_beside(axes, labels)


def _start(bands: Sequence[Band]) -> float:
    """The last place up to which all bands are the same, baselines say; else the first place of all."""
    rows = [list(zip(band.at, band.median, band.low, band.high, strict=True)) for band in bands]
    start = min(band.at[0] for band in bands)
    if len(bands) > 1:
        for places in zip(*rows, strict=False):
            if len(set(places)) > 1:
                break
            start = places[0][0]
    return start


def _until(band: Band, end: float) -> Band:
    """The band with its last numbers held to the end of the longest study."""
    if band.at[-1] >= end:
        return band
    return Band((*band.at, end), *((*row, row[-1]) for row in (band.median, band.low, band.high)))


def _draw_front(axes: Axes, comparison: StepsComparison) -> None:
    """A point a study, the front joined by steps; beside it what the pipeline's own schedules reach."""
    cost = comparison.cost
    scale, unit = unit_of(cost, max(study.cost(cost) for study in comparison.studies))
    front = [(study.cost(cost) / scale, study.value) for study in comparison.front]
    own = {(study.own_cost(cost) / scale, study.own_value) for study in comparison.studies if study.own is not None}
    baseline = baseline_of(comparison.studies)
    axes.margins(0.08, 0.12)
    labels = []
    for points, name, colour, style in (
        (front, "front", COLOURS[0], {"drawstyle": "steps-post"}),
        (
            sorted(own),
            "" if baseline is None else str(baseline.baseline),
            GREY,
            {"linestyle": (0, (4, 3)), "marker": "s", "markersize": 4},
        ),
    ):
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.5, **style)
            labels.append((points[-1][1], name, colour))
    for study in comparison.studies:
        if math.isfinite(study.value):
            _draw_point(axes, study, study.cost(cost) / scale, comparison)
    values = [value for _, value in own] + [study.value for study in comparison.studies]
    _finish(axes, values, comparison.value_name, comparison.direction)
    again = comparison.rescoring
    measured = (
        "values of the search" if again is None else f"mean and std of {again.repeats} × {again.images:,} fresh images"
    )
    axes.set_title(f"{_cut(comparison.value_name)} against cost: {measured}", **_TITLE)
    axes.set_xlabel(f"{unit} an image" if cost == "flops" else "calls of the denoiser an image (NFE)")
    if cost == "nfe":
        axes.set_xticks(sorted({place for place, _ in (*front, *own)}))
    _label_beside(axes, labels)


def _draw_point(axes: Axes, study: ComparedStudy, place: float, comparison: StepsComparison) -> None:
    """A study's winner with its spread and its name; hollow where another dominates it."""
    is_front = study in comparison.front
    colour = COLOURS[0] if is_front else GREY
    std = math.nan if study.rescored is None else study.rescored.std
    face = colour if is_front else "white"
    spread = None if math.isnan(std) else std
    axes.errorbar(place, study.value, spread, fmt="o", color=colour, markerfacecolor=face, markersize=6, capsize=3)
    is_below = is_front == (comparison.direction == "minimize")  # on the side where no other point can be
    text = axes.annotate(
        _cut(study.label),
        (place, study.value),
        (0, -7 if is_below else 7),
        textcoords="offset points",
        ha="center",
        va="top" if is_below else "bottom",
        fontsize=8,
        color=colour,
        parse_math=False,
    )
    text.set_in_layout(False)  # a long name does not make the axes narrow


_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 10, "parse_math": False}


def _finish(axes: Axes, drawn: Iterable[float], value_name: str, direction: str) -> None:
    """The axis of values: its name with the better side, and a log scale where values span a wide range."""
    values = [value for value in drawn if math.isfinite(value)]
    if values and min(values) > 0 and max(values) / min(values) > WIDE:
        axes.set_yscale("log")
    better = "less" if direction == "minimize" else "more"
    axes.set_ylabel(f"{_cut(value_name)} ({better} is better)", parse_math=False)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            _plain_ticks(axis)


def _plain_ticks(axis: Any) -> None:
    """1, 2, 5, 10, 20 ... in place of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _label_beside(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Names right of the axes, at the height of their values, moved apart where they would overlap."""
    to_share = axes.transData + axes.transAxes.inverted()
    left = axes.get_xlim()[0]
    heights = [(float(to_share.transform((left, value))[1]), name, colour) for value, name, colour in labels]
    previous = -math.inf
    placed = []
    for height, name, colour in sorted(heights):
        previous = max(height, previous + LABEL_GAP)
        placed.append((previous, name, colour))
    surplus = max(0.0, previous - 1.0)  # the topmost stays beside the axes
    for height, name, colour in placed:
        axes.annotate(
            _cut(name, 60),
            (1.01, height - surplus),
            xycoords="axes fraction",
            color=colour,
            fontsize=9,
            va="center",
            parse_math=False,
        )


def _finite(values: Iterable[float]) -> list[float]:
    """NaN, which is not drawn, in place of infinity."""
    return [value if math.isfinite(value) else math.nan for value in values]


def _cut(label: str, length: int = 28) -> str:
    label = visible(label, None)
    return label if len(label) <= length else f"{label[: length - 1]}…"


STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
svg { height: auto; max-width: 100%; }
div { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; color: #666; text-align: left; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3rem 0.7rem; text-align: left; white-space: nowrap; }
tr.bold { font-weight: 600; }"""


def page(comparison: Comparison, svg: str) -> str:
    """A page that needs nothing beside it.

    Args:
        comparison: its tables and sentences.
        svg: the picture, a whole SVG file.
    """
    title = _escaped(f"{comparison.value_name}: {len(comparison.studies)} studies compared")
    tables = "\n".join(map(_html_table, sheets(comparison)))
    sentences = "\n".join(f"<p>{_escaped(sentence)}</p>" for sentence in comparison.sentences)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>{title}</h1>\n{svg[svg.index('<svg') :]}\n{tables}\n"
        f"{sentences}\n</body>\n</html>\n"
    )


def _escaped(text: str) -> str:
    return html.escape(visible(text, CELL))


def _html_table(sheet: Sheet) -> str:
    head = "".join(f"<th>{_escaped(column)}</th>" for column in sheet.columns)
    rows = []
    for index, row in enumerate(sheet.rows):
        cells = "".join(f"<td>{_escaped(cell)}</td>" for cell in row)
        rows.append(f'<tr class="bold">{cells}</tr>' if index in sheet.bold else f"<tr>{cells}</tr>")
    caption = f"<caption>{_escaped(sheet.caption)}</caption>" if sheet.caption else ""
    return f"<div><table>{caption}\n<tr>{head}</tr>\n" + "\n".join(rows) + "\n</table></div>"
