"""What the terminal shows of studies: tables on stdout."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial
from rich.console import Console

from autodiffusion_opt.report.text_table import TextTable
from autodiffusion_opt.space.baselines import OWN, UNIFORM, compared_with
from autodiffusion_opt.study.curves import images_of
from autodiffusion_opt.study.progress_bar import WIDE
from autodiffusion_opt.study.results import Result, StoredStudy, stored_studies, stored_study, study_name
from autodiffusion_opt.study.verify import Rescored, two_digits
from autodiffusion_opt.text import visible
from autodiffusion_opt.trials.attributes import BASELINE, DEFINITION, WANTED
from autodiffusion_opt.trials.storage import Storage

if TYPE_CHECKING:
    from autodiffusion_opt.sampling.layers import Layer


def out() -> Console:
    """The console of results; wide in a file or a pipe, where no table is folded unless COLUMNS says so."""
    is_told = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(file=sys.stdout, highlight=False, width=None if is_told else WIDE)


def run_summary(stored: StoredStudy) -> dict[str, Any]:
    """What ``run --json`` prints: the best, or of several values the front.

    ``factor`` is the best's first value divided by that of ``factor_of``, a baseline.
    """
    top, baselines, states = stored.top(), stored.baselines(), stored.queries.states()
    best, base = top[0], compared_with(baselines)
    described = {"front": best_rows(top)} if stored.has_front else {}
    return {
        "study": stored.name,
        "trials": states["complete"],
        "pruned": states["pruned"],
        "best": {**_values(best), "trial": best.trial, "candidate": best.candidate.to_dict()},
        **described,
        "baselines": {name: _first(result) for name, result in baselines.items()},
        "images": round(images_of(stored)),
        "factor": _first(best) / _first(base) if base is not None and _first(base) else None,
        "factor_of": None if base is None else base.baseline,
    }


def run_table(stored: StoredStudy) -> TextTable:
    """Baselines and the best (of several values, the front), each one's first value divided by that of ``own``."""
    baselines, top = stored.baselines(), stored.top()
    names = _names([*baselines.values(), *top])
    base = compared_with(baselines)
    table = TextTable("", *names, "" if base is None else f"of {base.baseline}", "NFE", "time steps")

    def add(label: str, result: Result, style: str = "") -> None:
        share = f"{_first(result) / _first(base):.3f}" if base is not None and _first(base) else ""
        nfe = result.costs["nfe"]
        values = (number(result.measured.get(name)) for name in names)
        label = f"{label}, beyond a bound" if result.excess else label
        table.add_cells(label, *values, share, "" if nfe is None else str(nfe), str(result.candidate), style=style)

    for result in baselines.values():
        add(result.label, result)
    for rank, result in enumerate(top if stored.has_front else top[:1], 1):
        add(f"front {rank}" if stored.has_front else "best", result, "bold")
    return table


def _names(results: Sequence[Result]) -> list[str]:
    """Of all their values, those that are optimised first."""
    return list(dict.fromkeys(name for result in results for name in (*result.values, *result.measured)))


def best_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """What ``best --json`` prints."""
    return [
        {"rank": rank, "trial": result.trial, **_values(result), "candidate": result.candidate.to_dict()}
        for rank, result in enumerate(results, 1)
    ]


def best_table(results: Sequence[Result]) -> TextTable:
    """Rank, values, origin and candidate."""
    names = _names(results)
    table = TextTable("rank", "trial", *names, "origin", "time steps")
    for rank, result in enumerate(results, 1):
        values = (number(result.measured.get(name)) for name in names)
        table.add_cells(str(rank), str(result.trial), *values, result.origin, str(result.candidate))
    return table


def rescored_table(rescored: Mapping[str, Rescored]) -> TextTable:
    """Mean and spread of each, its first mean divided by that of ``own``, and the means of further values."""
    base = compared_with(rescored)
    name_of_base = OWN if OWN in rescored else UNIFORM
    infinite = ["∞ images"] if any(scored.extrapolated is not None for scored in rescored.values()) else []
    first, *further = dict.fromkeys(name for scored in rescored.values() for name in scored.measured)
    columns = ("mean", "std") if not further else (f"{first}, mean", "std")
    table = TextTable("", *columns, "" if base is None else f"of {name_of_base}", *infinite, *further, "time steps")
    for label, scored in rescored.items():
        share = f"{scored.mean / base.mean:.3f}" if base is not None and base.mean else ""
        style = "bold" if label == "best" or label.startswith("front ") else ""
        more = [number(scored.extrapolated)] if infinite else []
        more += [_mean_and_interval(scored, name) if name in scored.measured else "" for name in further]
        table.add_cells(
            label, number(scored.mean), number(scored.std), share, *more, str(scored.candidate), style=style
        )
    return table


def _mean_and_interval(scored: Rescored, name: str) -> str:
    """The mean of a value; with its interval where the noise changes it."""
    width = scored.half_width_of(name)
    return number(scored.mean_of(name)) + (f" ± {two_digits(width)}" if width > 0 else "")


def status_rows(storage: Storage, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row a study, as ``status --json`` prints it.

    Args:
        storage: which holds them.
        names: of studies, or their files; empty: all.

    Raises:
        UserError: for a study that is not there.
    """
    chosen = [stored_study(study_name(name), storage) for name in dict.fromkeys(names)]
    return [_status_row(stored) for stored in chosen or stored_studies(storage)]


def _status_row(stored: StoredStudy) -> dict[str, Any]:
    queries, attributes = stored.queries, stored.study.user_attrs
    best, baselines, last = queries.best(1), queries.baselines(), queries.last_activity()
    best_baseline = baselines[0] if baselines else None
    return {
        "study": stored.name,
        "wanted": attributes.get(WANTED),
        "trials": queries.states(),
        "best": best[0].values[0] if best and not stored.has_front else None,
        "front": len(queries.front()) if best and stored.has_front else None,
        "best_baseline": None if best_baseline is None else _baseline_row(best_baseline),
        "optimizer": attributes.get(DEFINITION, {}).get("optimizer", {}).get("kind"),
        "proposed": queries.proposed_by(),
        "images": round(images_of(stored)),
        "stage": queries.last_stage(),
        "last_activity": None if last is None else last.isoformat(timespec="seconds"),
    }


def _baseline_row(trial: FrozenTrial) -> dict[str, Any]:
    return {"name": trial.user_attrs[BASELINE], "value": trial.values[0]}


def status_table(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    """The same for a person."""
    table = TextTable(
        "study", "done", "other", "images", "best", "best baseline", "optimizer", "stage", "last activity"
    )
    for row in rows:
        counts = dict(row["trials"])
        # What was stopped early is measured too, as far as was worth while.
        done = f"{counts.pop('complete') + counts['pruned']}/{row['wanted'] or '?'}"
        rest = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        baseline = row["best_baseline"]
        text = "" if baseline is None else f"{baseline['name']} {number(baseline['value'])}"
        last = (row["last_activity"] or "").replace("T", " ")
        optimizer, stage = row["optimizer"] or "", row["stage"] or ""
        if set(row["proposed"]) - {optimizer}:  # it went on with others
            optimizer = ", ".join(f"{kind} {count}" for kind, count in row["proposed"].items())
        best = number(row["best"]) if row["front"] is None else f"front of {row['front']}"
        table.add_cells(visible(row["study"]), done, rest, f"{row['images']:,}", best, text, optimizer, stage, last)
    return table


def layer_rows(layers: Sequence[Layer], total: int) -> list[dict[str, Any]]:
    """A row a layer, as ``layers --json`` prints it; ``share`` is of the FLOPs of the whole forward pass."""
    return [
        {
            "index": layer.index,
            "path": layer.path,
            "kind": layer.kind,
            "flops": layer.flops,
            "saved_flops": layer.saved_flops,
            "share": layer.flops / total,
            "parameters": layer.parameters,
            "removable": layer.removable,
        }
        for layer in layers
    ]


def layer_table(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    """The same for a person."""
    kinds: dict[str, int] = {}
    for row in rows:
        kinds[row["kind"]] = kinds.get(row["kind"], 0) + 1
    listed = " + ".join(f"{count} {kind}" for kind, count in kinds.items())
    share = sum(row["share"] for row in rows)
    caption = f"{len(rows)} layers ({listed}), {share:.1%} of the FLOPs of one forward pass of one image"
    table = TextTable("index", "path", "kind", "MFLOP", "share", "parameters", "removable", caption=caption)
    for row in rows:
        numbers = f"{row['flops'] / 1e6:,.3f}", f"{row['share']:.1%}", f"{row['parameters']:,}"
        table.add_cells(str(row["index"]), row["path"], row["kind"], *numbers, "yes" if row["removable"] else "no")
    return table


def _first(result: Result) -> float:
    """The first value: what tables compare."""
    return next(iter(result.values.values()))


def _values(result: Result) -> dict[str, Any]:
    return {"value": _first(result), "values": dict(result.values), "measured": dict(result.measured)}


def number(value: float | None) -> str:
    """Four digits; nothing for what is not known."""
    return "" if value is None or math.isnan(value) else f"{value:.4g}"
