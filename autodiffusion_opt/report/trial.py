"""A trial whole, for a person: a line for each thing that is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.text import CELL, visible


def trial_table(trial: Mapping[str, Any]) -> Table:
    """What :func:`~autodiffusion_opt.study.whole_trial.whole_trial` gives, without what is not known."""
    table = Table(show_header=False)
    for name, value in trial.items():
        text = _steps(value) if name == "candidate" and value else _text(value)
        if text:
            table.add_row(name.replace("_", " "), Text(text))
    return table


def _steps(candidate: Mapping[str, Any]) -> str:
    """A line for each step, with the layers that are not run there."""
    sampled = Candidate.from_dict(dict(candidate))
    lines = []
    for step in sampled.steps:
        removed = f"without layers {', '.join(map(str, step.removed))}" if step.removed else "all layers"
        lines.append(
            f"time {step.time:g}: {removed}{'' if step.branch is None else f', partial at branch {step.branch}'}"
        )
    if sampled.end_time is not None:
        lines.append(f"ends at time {sampled.end_time:g}")
    if sampled.guidance_scale is not None:
        lines.append(f"guidance scale {sampled.guidance_scale:g}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    """A value on one line, of a table a line for each entry that is known; no control character reaches a terminal."""
    if isinstance(value, Mapping):
        entries = ((str(key), _text(inner).replace("\n", ", ")) for key, inner in value.items())
        return "\n".join(f"{visible(key)} {text}" for key, text in entries if text)
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else visible(str(value), CELL)
