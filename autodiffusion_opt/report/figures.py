"""Plots of a study as plotly figures: for the report, the dashboard and notebooks. They need no model, only SQL.

plotly is an extra, imported when a figure is made. Plotly reads some HTML in texts, so all of them are escaped.
"""

from __future__ import annotations

import html
import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.study import StudyDirection

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.report.tables import number
from autodiffusion_opt.space.baselines import OWN
from autodiffusion_opt.study.curves import curve_of
from autodiffusion_opt.study.model_numbers import log_snr_of
from autodiffusion_opt.study.results import Result, StoredStudy
from autodiffusion_opt.text import visible
from autodiffusion_opt.trials.attributes import MODEL

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Okabe and Ito's colours, which colour-blind people tell apart, on white and on black; grey is for baselines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#808080"
# How many of the best candidates the paper's Figure 5 counts times of.
BEST = 15
# Values that span more than this factor are drawn on a log axis.
WIDE = 5.0
# Trials drawn as dots; beyond, every n-th.
MOST_DOTS = 3000
BINS = 25


def require_plotly() -> None:
    """Raises UserError where plotly is not installed."""
    if importlib.util.find_spec("plotly") is None:
        raise UserError("plots need plotly: pip install 'autodiffusion-opt[report]'")


def shown(text: str) -> str:
    """A text from anywhere, as plotly shows it: as it is."""
    return html.escape(visible(text))


def convergence(studies: Sequence[StoredStudy]) -> Figure:
    """The best value so far against images generated, with the baselines as lines; of one study with all its trials.

    Args:
        studies: of one value each.

    Raises:
        UserError: for a study of several values, which have no best.
    """
    figure = _figure(x="images generated", y=_value_name(studies))
    drawn: list[float] = []
    for index, stored in enumerate(studies):
        if stored.has_front:
            raise UserError(f"{stored.name!r} has several values: its front is what converges; plot that")
        colour, curve = COLOURS[index % len(COLOURS)], curve_of(stored)
        points = [(spent, best) for spent, best in zip(curve.spent["images"], curve.best, strict=True) if best == best]
        name = shown(stored.name) if len(studies) > 1 else "best so far"
        if len(studies) == 1:
            dots = _trial_dots(stored)
            drawn += [value for _, value, _ in dots]
            figure.add_scatter(
                x=[spent for spent, _, _ in dots],
                y=[value for _, value, _ in dots],
                text=[text for _, _, text in dots],
                mode="markers",
                name="trials",
                marker={"color": GREY, "size": 5, "opacity": 0.5},
            )
        drawn += [best for _, best in points]
        figure.add_scatter(
            x=[spent for spent, _ in points],
            y=[best for _, best in points],
            mode="lines",
            name=name,
            line={"color": colour, "shape": "hv", "width": 2.5},
        )
    end = max((curve_of(stored).total("images") for stored in studies), default=0)
    for name, result in studies[0].baselines().items() if studies else ():
        is_own = name == OWN
        drawn.append(_first(result))
        label = f"{shown(result.label)} {number(_first(result))}"
        figure.add_scatter(
            x=[0, end],
            y=[_first(result)] * 2,
            mode="lines+text",
            text=["", label if is_own else ""],
            textposition="top left",
            hovertext=label,
            hoverinfo="text",
            name=shown(result.label),
            line={"color": GREY, "dash": "dash" if is_own else "dot", "width": 1.5 if is_own else 0.8},
            showlegend=False,
        )
    _use_log_axis_where_wide(figure, drawn)
    return figure


def _trial_dots(stored: StoredStudy) -> list[tuple[float, float, str]]:
    """Images generated until then, value, and what is shown of it, of each complete trial."""
    images, dots = 0.0, []
    for result in sorted(stored.complete(), key=lambda result: result.trial):
        images += float(result.costs["images"] or 0)
        if math.isfinite(_first(result)):
            dots.append((images, _first(result), f"trial {result.trial}: {shown(str(result.candidate))}"))
    return dots[:: 1 + len(dots) // MOST_DOTS]


def schedule(stored: StoredStudy, results: Mapping[str, Result] | None = None) -> Figure:
    """When the best candidates sample, above when the baselines do: a mark a step, on an axis of log-SNR.

    A number below a mark says how many layers are not run at that step; an open mark is a step with a cache.

    Args:
        stored: the study. Of one that an earlier version began, the axis is time.
        results: label -> what is drawn; None: the best (or up to five of the front), and the baselines.
    """
    numbers = stored.study.user_attrs.get(MODEL, {})
    if results is None:
        results = {result.label: result for result in reversed(stored.baselines().values())}
        results |= dict(reversed(list(stored.labelled(5 if stored.has_front else 3).items())))
    axis = "log-SNR, ln(α/σ): noise left, image right" if numbers.get("times") else "time step: noise left, image right"
    figure = _figure(x=axis, height=90 + 42 * len(results), left=110)
    for label, result in results.items():
        steps, times = result.candidate.steps, result.candidate.times
        colour = GREY if result.baseline is not None else COLOURS[1]
        removed = [f"−{len(step.removed)}" if step.removed else "" for step in steps]
        told = [f"{shown(label)}: step {index}, time {step.time:g}" for index, step in enumerate(steps, 1)]
        partial = [step.branch is not None for step in steps]
        row = shown(f"{label}  {number(_first(result))}")
        figure.add_scatter(
            x=log_snr_of(times, numbers) or list(times),
            y=[row] * len(steps),
            mode="lines+markers+text",
            text=removed,
            hovertext=[f"{text}, layers {list(step.removed)} removed" for text, step in zip(told, steps, strict=True)],
            hoverinfo="text",
            textposition="bottom center",
            textfont={"size": 10},
            marker={
                "symbol": ["circle-open" if cached else "circle" for cached in partial],
                "size": 12,
                "color": colour,
                "line": {"width": 2, "color": colour},
            },
            line={"color": colour, "width": 1},
            showlegend=False,
        )
    if not numbers.get("times"):
        figure.update_xaxes(autorange="reversed")
    figure.update_yaxes(type="category")
    return figure


def times(stored: StoredStudy) -> Figure:
    """How often each time is in the 15 best candidates (L. Li et al., AutoDiffusion, Figure 5)."""
    top = _best(stored)
    highest = stored.study.user_attrs.get(MODEL, {}).get("train_steps")
    highest = highest or max(time for result in top for time in result.candidate.times) + 1
    width = highest / BINS
    counts = [0] * BINS
    for time in (time for result in top for time in result.candidate.times):
        counts[min(int(time / width), BINS - 1)] += 1
    figure = _figure(x="time step", y=f"steps of the {len(top)} best")
    centres = [(index + 0.5) * width for index in range(BINS)]
    figure.add_bar(x=centres, y=counts, width=width * 0.9, marker={"color": COLOURS[0]}, name="steps")
    return figure


def layers(stored: StoredStudy) -> Figure:
    """Which layers are not run at which step: the share of the 15 best candidates that remove each.

    Raises:
        UserError: where none of them removes a layer.
    """
    top = _best(stored)
    steps = max(len(result.candidate.steps) for result in top)
    removed = [layer for result in top for step in result.candidate.steps for layer in step.removed]
    if not removed:
        raise UserError(f"none of the best candidates of {stored.name!r} removes a layer")
    count = max(stored.study.user_attrs.get(MODEL, {}).get("layers", 0), max(removed) + 1)
    share = [[0.0] * steps for _ in range(count)]
    for result in top:
        for index, step in enumerate(result.candidate.steps):
            for layer in step.removed:
                share[layer][index] += 1 / len(top)
    figure = _figure(x="step, noise to image", y="layer, in the order of running", height=min(240 + 9 * count, 720))
    figure.add_heatmap(
        z=share,
        x=list(range(1, steps + 1)),
        y=list(range(count)),
        zmin=0,
        zmax=1,
        colorscale=[[0, "rgba(128,128,128,0.12)"], [1, COLOURS[1]]],
        colorbar={"title": {"text": "removed by"}, "tickformat": ".0%"},
        hovertemplate="step %{x}, layer %{y}: removed by %{z:.0%}<extra></extra>",
        xgap=2,
        ygap=1,
    )
    best = top[0].candidate
    cells = [(index, layer) for index, step in enumerate(best.steps, 1) for layer in step.removed]
    figure.add_scatter(
        x=[index for index, _ in cells],
        y=[layer for _, layer in cells],
        mode="markers",
        marker={"symbol": "x", "size": 7, "color": COLOURS[0]},
        name="removed by the best",
        showlegend=True,
    )
    figure.update_xaxes(dtick=1)
    return figure


def front(stored: StoredStudy) -> Figure:
    """Of several values the trials and the front (Optuna's plot); of one value, the value against FLOPs or NFE."""
    names = stored.value_names
    if len(names) in (2, 3):
        from optuna.visualization import plot_pareto_front

        drawn = plot_pareto_front(stored.study, target_names=list(map(shown, names)))
        figure = _figure(x=shown(names[0]), y=shown(names[1]))
        figure.add_traces(drawn.data)
        if len(names) == 3:
            figure.update_layout(scene=drawn.layout.scene)
        figure.update_traces(marker={"showscale": False})
        _add_baselines(figure, stored, lambda result: tuple(result.values.values()))
        return figure
    cost = next((name for name in ("flops", "nfe") if any(result.costs[name] for result in stored.complete())), "nfe")
    figure = _figure(x=cost.upper() if cost == "nfe" else "FLOPs an image", y=_value_name([stored]))
    trials = [result for result in stored.complete() if result.baseline is None and result.costs[cost]]
    trials = trials[:: 1 + len(trials) // MOST_DOTS]
    figure.add_scatter(
        x=[result.costs[cost] for result in trials],
        y=[_first(result) for result in trials],
        text=[f"trial {result.trial}: {shown(str(result.candidate))}" for result in trials],
        mode="markers",
        name="trials",
        marker={"color": COLOURS[0], "size": 6, "opacity": 0.6},
    )
    _add_baselines(figure, stored, lambda result: (float(result.costs[cost] or 0), _first(result)))
    values = [_first(result) for result in stored.complete() if math.isfinite(_first(result))]
    _use_log_axis_where_wide(figure, values)
    return figure


def _add_baselines(figure: Figure, stored: StoredStudy, place: Callable[[Result], tuple[float, ...]]) -> None:
    baselines = list(stored.baselines().values())
    if not baselines or len(place(baselines[0])) != 2:
        return
    figure.add_scatter(
        x=[place(result)[0] for result in baselines],
        y=[place(result)[1] for result in baselines],
        text=[shown(result.label) for result in baselines],
        mode="markers",
        name="baselines",
        marker={"color": COLOURS[1], "size": 9, "symbol": "diamond"},
    )


def importances(stored: StoredStudy) -> Figure:
    """How much of what a candidate consists of decides its first value (PED-ANOVA, as Optuna computes it).

    They are of the candidates, not of the parameters that an optimizer chose: what decoding ignores (times beyond the
    number of steps, say) has no importance.

    Raises:
        UserError: where fewer than four candidates differ, or they differ in nothing.
    """
    import optuna
    from optuna.importance import get_param_importances

    results = [result for result in stored.complete() if math.isfinite(_first(result))]
    rows = _features([result for result in results if result.baseline is None])
    values = [_first(result) for result in results if result.baseline is None]
    varying = [name for name in (rows[0] if rows else {}) if len({row[name] for row in rows}) > 1]
    if len(rows) < 4 or not varying:
        raise UserError(
            f"importances need four trials that differ beside the baselines; {stored.name!r} has {len(rows)}"
        )
    ends = {name: (min(row[name] for row in rows), max(row[name] for row in rows)) for name in varying}
    distributions: dict[str, BaseDistribution] = {name: FloatDistribution(*ends[name]) for name in varying}
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a study in memory is no news
    copied = optuna.create_study(direction=stored.study.directions[0])
    optuna.logging.set_verbosity(level)
    copied.add_trials(
        [
            optuna.create_trial(params={name: row[name] for name in varying}, distributions=distributions, value=value)
            for row, value in zip(rows, values, strict=True)
        ]
    )
    shares = sorted(get_param_importances(copied).items(), key=lambda item: item[1])  # the greatest above
    figure = _figure(x="share", height=120 + 26 * len(varying), left=140)
    figure.add_bar(
        x=[share for _, share in shares],
        y=[name for name, _ in shares],
        text=[f"{share:.2f}" for _, share in shares],
        orientation="h",
        marker={"color": COLOURS[0]},
    )
    return figure


def _features(results: Sequence[Result]) -> list[dict[str, float]]:
    """Numbers that every one of the candidates has."""
    candidates = [result.candidate for result in results]
    same_length = len({len(candidate.steps) for candidate in candidates}) == 1
    rows = []
    for candidate in candidates:
        row = {"number of steps": float(len(candidate.steps))}
        if same_length:
            row |= {f"time of step {index}": time for index, time in enumerate(candidate.times, 1)}
            row |= {f"layers off at step {index}": float(len(off)) for index, off in enumerate(candidate.removed, 1)}
        else:
            row |= {"first time": candidate.times[0], "last time": candidate.times[-1]}
            row |= {"middle time": candidate.times[len(candidate.times) // 2]}
            row |= {"layers off": float(sum(map(len, candidate.removed)))}
        if candidate.guidance_scale is not None:
            row["guidance scale"] = candidate.guidance_scale
        if candidate.end_time is not None:
            row["end time"] = candidate.end_time
        rows.append(row)
    shared = set.intersection(*map(set, rows)) if rows else set()
    return [{name: value for name, value in row.items() if name in shared} for row in rows]


def figures(stored: StoredStudy) -> dict[str, Figure]:
    """Every plot that says something of the study, by name: those that do not apply are left out."""
    makers: Iterable[tuple[str, Callable[[], Figure]]] = (
        ("convergence", lambda: convergence([stored])),
        ("schedule", lambda: schedule(stored)),
        ("times", lambda: times(stored)),
        ("layers", lambda: layers(stored)),
        ("front", lambda: front(stored)),
        ("importances", lambda: importances(stored)),
    )
    made = {}
    for name, make in makers:
        try:
            made[name] = make()
        except UserError:  # it has none
            continue
    return made


def _figure(*, x: str, y: str = "", height: int = 380, left: int = 60) -> Figure:
    """An empty figure in the report's style, which takes the page's colours."""
    require_plotly()
    from plotly.graph_objects import Figure

    grid = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.4)"}
    figure = Figure()
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": "#555"},
        height=height,
        margin={"l": left, "r": 16, "t": 40, "b": 56},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"namelength": -1},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY},
    )
    figure.update_xaxes(title={"text": x}, automargin=True, **grid)
    figure.update_yaxes(title={"text": y}, automargin=True, **grid)
    return figure


def _use_log_axis_where_wide(figure: Figure, values: Sequence[float]) -> None:
    """A log axis of y for positive values that span much, with whole numbers at its ticks: plotly writes one digit."""
    if not values or min(values) <= 0 or max(values) / min(values) <= WIDE:
        return
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in ((1, 2, 5) if len(decades) < 5 else (1,))]
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def _best(stored: StoredStudy) -> list[Result]:
    return stored.top(BEST)


def _first(result: Result) -> float:
    return next(iter(result.values.values()))


def _value_name(studies: Sequence[StoredStudy]) -> str:
    if not studies:
        return ""
    maximised = studies[0].study.directions[0] == StudyDirection.MAXIMIZE
    return f"{shown(studies[0].value_names[0])} ({'more' if maximised else 'less'} is better)"
