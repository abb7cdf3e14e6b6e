"""What plots must know of a study's model, as SQL keeps it: a report needs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autodiffusion_opt.space import ModelInfo

# Times at which the log-SNR is kept; between them it is interpolated.
POINTS = 65


def numbers_for_plots(info: ModelInfo) -> dict[str, Any]:
    """JSON values: ``train_steps``, ``layers``, and ``times`` ascending with their ``log_snr``."""
    times = np.linspace(info.lowest, info.highest, POINTS)
    log_snr = info.log_snr(times.tolist())
    return {
        "train_steps": info.train_steps,
        "layers": info.layers,
        "times": [round(float(time), 3) for time in times],
        "log_snr": [round(float(level), 4) for level in log_snr],
    }


def log_snr_of(times: Sequence[float], numbers: Mapping[str, Any]) -> list[float] | None:
    """The log-SNR at times; None for a study that an earlier version began, which does not know it."""
    if not numbers.get("times"):
        return None
    return [float(level) for level in np.interp(times, numbers["times"], numbers["log_snr"])]
