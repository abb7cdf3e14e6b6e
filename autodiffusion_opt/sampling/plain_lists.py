"""A candidate's times as a plain list, for people who do not install this library."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.sampling.schedule import install_schedule


def plain_lists(scheduler: Any, candidate: Candidate) -> dict[str, list[float]]:
    """``timesteps`` or ``sigmas`` with which the untouched scheduler samples as the candidate says; empty for none.

    Only what was tried is given: the list, set on a copy of the untouched scheduler, must give the candidate's own
    time steps and noise levels. A candidate that removes layers, has partial steps or an engine's cache has none, nor
    has one that ends early on a scheduler whose noise levels are not in the list.
    """
    if (
        candidate.engine is not None
        or any(candidate.removed)
        or any(branch is not None for branch in candidate.branches)
    ):
        return {}
    wanted = copy.deepcopy(scheduler)
    install_schedule(wanted, candidate.times, end_time=candidate.end_time)
    wanted.set_timesteps(len(candidate.steps))
    if candidate.end_time is not None and not hasattr(wanted, "sigmas"):
        return {}
    for key, values in _guesses(scheduler, candidate).items():
        if _gives(copy.deepcopy(scheduler), key, values, wanted):
            return {key: values}
    return {}


def _guesses(scheduler: Any, candidate: Candidate) -> dict[str, list[float]]:
    taken = inspect.signature(scheduler.set_timesteps).parameters
    times = [int(time) if time.is_integer() else time for time in candidate.times]
    guesses: dict[str, list[float]] = {"timesteps": times} if "timesteps" in taken else {}
    if "sigmas" in taken:
        train = scheduler.config.num_train_timesteps
        shift = float(scheduler.config.get("shift") or 1.0)
        # Flow matching: the scheduler applies σ -> s·σ / (1 + (s - 1)·σ) to what it is given; this is its inverse.
        levels = [time / train for time in candidate.times]
        guesses["sigmas"] = [level / (shift - (shift - 1) * level) for level in levels]
    return guesses


def _gives(scheduler: Any, key: str, values: list[float], wanted: Any) -> bool:
    """Whether the untouched scheduler, given the list, has the wanted time steps and noise levels."""
    try:
        scheduler.set_timesteps(**{key: values})
    except (ValueError, TypeError, AssertionError, AttributeError, RuntimeError):
        return False  # it does not take such a list
    return all(_close(scheduler, wanted, name) for name in ("timesteps", "sigmas"))


def _close(scheduler: Any, wanted: Any, name: str) -> bool:
    has, needs = (np.asarray(getattr(each, name, np.zeros(0)), dtype=np.float64) for each in (scheduler, wanted))
    return has.shape == needs.shape and bool(np.allclose(has, needs, rtol=1e-5, atol=1e-5))
