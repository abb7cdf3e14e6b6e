"""What ``verify`` measured, kept with the study in SQL, so that its report shows it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from autodiffusion_opt.report.tables import number
from autodiffusion_opt.space.baselines import compared_with
from autodiffusion_opt.study.results import StoredStudy
from autodiffusion_opt.study.verify import Verified
from autodiffusion_opt.trials.attributes import VERIFIED


def keep_verified(stored: StoredStudy, verified: Verified) -> None:
    """Write the table to SQL, in the place of the last one."""
    stored.study.set_user_attr(VERIFIED, verified_table(verified))


def verified_table(verified: Verified) -> dict[str, Any]:
    """JSON values: ``images`` a repeat, ``repeats``, ``columns``, ``rows`` of texts, ``sentences``, ``when``."""
    names = list(dict.fromkeys(name for scored in verified.rescored.values() for name in scored.measured))
    base = compared_with(verified.rescored)
    rows = []
    for label, scored in verified.rescored.items():
        share = f"{scored.mean / base.mean:.3f}" if base is not None and base.mean else ""
        values = [f"{number(scored.mean_of(name))} ± {number(scored.std_of(name))}" for name in names]
        rows.append([label, *values, share, str(scored.candidate)])
    return {
        "images": verified.images,
        "repeats": verified.repeats,
        "columns": ["", *names, "of own", "time steps"],
        "rows": rows,
        "sentences": list(verified.sentences),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
