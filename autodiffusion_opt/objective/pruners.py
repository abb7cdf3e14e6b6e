"""Which candidate is stopped after a rung of images: Optuna's pruners, by name, comparing equal numbers of images.

A pruner's resource is the number of images. A table is ``pruner = "median"``, or ``pruner = {kind = "median",
n_startup_trials = 10}`` with the options of Optuna's class.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
    WilcoxonPruner,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from autodiffusion_opt.errors import UserError, reason_of, unknown_text

PRUNERS: dict[str, type[BasePruner]] = {
    "median": MedianPruner,
    "percentile": PercentilePruner,
    "successive-halving": SuccessiveHalvingPruner,
    "hyperband": HyperbandPruner,
    "threshold": ThresholdPruner,
    "wilcoxon": WilcoxonPruner,
}
# Others of Optuna's, and why not.
REFUSED = {
    "patient": "waits for a value to get no better with more images, and values of other numbers are not comparable",
    "nop": "stops nothing: leave pruner out",
}


NumbersOf = Callable[[FrozenTrial], Sequence[float]]


class AtEqualImages(BasePruner):
    """Hands a pruner of Optuna's the value at the present number of images alone.

    Those that compare with other trials' values at a step take a trial's best value over all its steps, and a value of
    fewer images is not comparable.
    """

    def __init__(self, pruner: BasePruner) -> None:
        self.pruner = pruner

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is hopeless."""
        step, only = trial.last_step, copy(trial)
        if step is not None:
            only.intermediate_values = {step: trial.intermediate_values[step]}
        return self.pruner.prune(study, only)


class AtEachImage(BasePruner):
    """Hands Optuna's Wilcoxon test the numbers of each image, the trial's and those of the best trial so far.

    The test is paired, so both are of the same images.

    Args:
        pruner: the test.
        numbers_of: the numbers of a trial's images, in the order of their indices; empty where there are none.
    """

    def __init__(self, pruner: WilcoxonPruner, numbers_of: NumbersOf) -> None:
        self.pruner = pruner
        self.numbers_of = numbers_of

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is hopeless."""
        try:
            best = study.best_trial
        except ValueError:  # none is complete
            return False
        numbers = self.numbers_of(trial)
        known = self.numbers_of(best)[: len(numbers)]
        view = _StudyOfBest(study.direction, _with_numbers(best, known))
        return bool(known) and self.pruner.prune(view, _with_numbers(trial, numbers))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _StudyOfBest:
    """What Optuna's Wilcoxon pruner asks of a study."""

    direction: StudyDirection
    best_trial: FrozenTrial


def _with_numbers(trial: FrozenTrial, numbers: Sequence[float]) -> FrozenTrial:
    shown = copy(trial)
    shown.intermediate_values = dict(enumerate(numbers))
    return shown


def needs_each_image(setting: str | Mapping[str, Any]) -> bool:
    """Whether a pruner compares a number for each image."""
    return _table(setting).get("kind") == "wilcoxon"


def check_pruner(setting: str | Mapping[str, Any]) -> None:
    """Raises UserError for a pruner that there is not, or an option that it does not have."""
    table = _table(setting)
    kind = str(table.get("kind"))
    if kind in REFUSED:
        raise UserError(f"pruner {kind!r} {REFUSED[kind]}; allowed are {', '.join(sorted(PRUNERS))}")
    if kind not in PRUNERS:
        raise UserError(unknown_text("pruner", kind, PRUNERS))
    allowed = _options(kind)
    wrong = [unknown_text(f"pruner {kind}: an option", key, allowed) for key in table if key not in ("kind", *allowed)]
    missing = [key for key, default in allowed.items() if default is inspect.Parameter.empty and key not in table]
    if missing:
        wrong.append(f"pruner {kind} needs {', '.join(missing)}")
    if wrong:
        raise UserError("; ".join(wrong))


def make_pruner(setting: str | Mapping[str, Any], rungs: Sequence[int], numbers_of: NumbersOf) -> BasePruner:
    """The pruner of a table.

    Args:
        setting: its kind, or the table.
        rungs: numbers of images, ascending.
        numbers_of: the numbers of a trial's images, for the pruner that compares these.

    Raises:
        UserError: for options that Optuna refuses.
    """
    check_pruner(setting)
    options = {key: value for key, value in _table(setting).items() if key != "kind"}
    kind = str(_table(setting)["kind"])
    if kind in ("successive-halving", "hyperband"):
        options.setdefault("min_resource", rungs[0])
    if kind == "hyperband":
        options.setdefault("max_resource", rungs[-1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # Wilcoxon's
            pruner = PRUNERS[kind](**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"pruner {kind}: {reason_of(error)}") from None
    if isinstance(pruner, WilcoxonPruner):
        return AtEachImage(pruner, numbers_of)
    return AtEqualImages(pruner) if isinstance(pruner, PercentilePruner) else pruner  # MedianPruner is one


def _table(setting: str | Mapping[str, Any]) -> Mapping[str, Any]:
    return {"kind": setting} if isinstance(setting, str) else setting


def _options(kind: str) -> dict[str, Any]:
    """Option -> its default."""
    parameters = inspect.signature(PRUNERS[kind].__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}
