"""Turns: what workers do one after another while each starts a trial, such as asking an optimizer that has a state.

Lamport's bakery (1974), on a database. A running trial without a candidate is about to take a number; it takes the next
after those that it sees, writes it down, and then waits for all that had not taken theirs when it looked, and for all
with smaller ones.
"""

from __future__ import annotations

import time

from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.trials.attributes import CANDIDATE, FIXED_PARAMETERS
from autodiffusion_opt.trials.claims import fail_if_dead
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.studies import set_attributes

TURN = "turn"
# Seconds between two looks, for each worker that is waited for: whose turn is next looks often.
POLL_SECONDS = 0.01
# How often the workers that are waited for are asked whether they live.
ALIVE_SECONDS = 1.0


def wait_for_turn(history: History, number: int, attribute: str) -> int:
    """The turn of a running trial, once it has come. Trials whose worker died are failed, so that they lose theirs.

    Args:
        history: of the study; is refreshed here.
        number: of the trial.
        attribute: of trials, a table with the key ``turn``. The turn is over once it has more keys.
    """
    trial = history.refresh(proposing=True).trials[number]
    turns = (each.user_attrs.get(attribute, {}).get(TURN, 0) for each in history.trials.values())
    turn = 1 + max(turns, default=0)
    set_attributes(history.study, trial, {attribute: {TURN: turn}})
    next_look = time.monotonic() + ALIVE_SECONDS
    while waited_for := _before(history.refresh(proposing=True), turn, number, attribute):
        if time.monotonic() >= next_look:
            for each in waited_for:
                fail_if_dead(history.study, each)
            next_look = time.monotonic() + ALIVE_SECONDS
        time.sleep(POLL_SECONDS * len(waited_for))
    return turn


def _before(history: History, turn: int, number: int, attribute: str) -> list[FrozenTrial]:
    """The running trials whose turn comes first, or that have not taken theirs."""
    waited_for = []
    for trial in history.unfinished(TrialState.RUNNING):
        has_its_own = CANDIDATE in trial.user_attrs or trial.system_attrs.get(FIXED_PARAMETERS)
        stored = trial.user_attrs.get(attribute, {TURN: 0})
        is_over = len(stored) > 1
        if trial.number != number and not has_its_own and not is_over and (stored[TURN], trial.number) < (turn, number):
            waited_for.append(trial)
    return waited_for
