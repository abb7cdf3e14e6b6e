"""The table of all studies in a storage."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import FrozenTrial
from rich.table import Table

from autodiffusion_opt.report.tables import last_stage, states
from autodiffusion_opt.trials.storage import Storage
from autodiffusion_opt.study.run import DEFINITION, WANTED, baseline_trials
from autodiffusion_opt.trials.history import completed, value_of


def status_rows(storage: Storage) -> list[dict[str, Any]]:
    """One row a study, as ``status --json`` prints it."""
    names = sorted(optuna.get_all_study_names(storage))
    return [_row(optuna.load_study(study_name=name, storage=storage)) for name in names]


def _row(study: optuna.Study) -> dict[str, Any]:
    trials = study.get_trials(deepcopy=False)
    ranked = completed(trials)
    baselines = {name: value_of(trial) for name, trial in baseline_trials(trials).items()}
    best_name = min(baselines, key=lambda name: baselines[name] or 0.0, default=None)
    attributes = study.user_attrs
    return {
        "study": study.study_name,
        "wanted": attributes.get(WANTED),
        "trials": states(trials),
        "best": value_of(ranked[0]) if ranked else None,
        "best_baseline": None if best_name is None else {"name": best_name, "value": baselines[best_name]},
        "optimizer": attributes.get(DEFINITION, {}).get("optimizer", {}).get("kind"),
        "stage": last_stage(trials),
        "last_activity": _last_activity(trials),
    }


def _last_activity(trials: list[FrozenTrial]) -> str | None:
    times = [time for trial in trials for time in (trial.datetime_start, trial.datetime_complete) if time]
    return max(times).isoformat(timespec="seconds") if times else None


def status_table(rows: list[dict[str, Any]]) -> Table:
    """The same for a person."""
    table = Table("study", "complete", "other", "best", "best baseline", "optimizer", "stage", "last activity")
    for row in rows:
        counts = dict(row["trials"])
        complete = f"{counts.pop('complete')}/{row['wanted'] or '?'}"
        other = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        best = "" if row["best"] is None else f"{row['best']:.4g}"
        baseline = row["best_baseline"]
        text = "" if baseline is None else f"{baseline['name']} {baseline['value']:.4g}"
        last = (row["last_activity"] or "").replace("T", " ")
        table.add_row(row["study"], complete, other, best, text, row["optimizer"] or "", row["stage"] or "", last)
    return table
