"""Evaluations that fail in a row are no accident: they stop a run, which says what they have in common."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.trials.attributes import ERROR

MOST_IN_A_ROW = 5


class Failures:
    """The positions that failed since the last trial that did not, with their reasons."""

    def __init__(self) -> None:
        self._reasons: dict[int, str] = {}

    def count(self, position: int, trial: FrozenTrial) -> None:
        """Take note of a trial that ended; of those that are tried again, each position counts once.

        Raises:
            UserError: where it is the last of too many failures in a row.
        """
        if trial.state != TrialState.FAIL:
            self._reasons.clear()
            return
        self._reasons[position] = trial.user_attrs.get(ERROR, "no reason is known")
        if len(self._reasons) == MOST_IN_A_ROW:
            raise UserError(in_common(list(self._reasons.values())))


def in_common(reasons: Sequence[str]) -> str:
    """A sentence on evaluations that failed in a row: their common reason, or its kind, or each."""
    several = f"{len(reasons)} candidates in a row failed"
    kinds = {reason.rsplit(": ", 1)[0] for reason in reasons}
    if len(set(reasons)) == 1:
        what = f", all with: {reasons[0]}"
    elif len(kinds) == 1:
        what = f", all with {kinds.pop()}; the last: {reasons[-1]}"
    else:
        what = "; their reasons: " + "; ".join(dict.fromkeys(reasons))
    return f"{several}{what}. Put it right and run the study again"
