"""What SQL holds of a study: its trials as a sequence of positions, who works at them, and how they are taken.

A **position** is a trial's place in its study's sequence of candidates: its number less the retries before it. A trial
whose worker died is retried by a new trial at the same position. What an optimizer proposes depends on the position and
on what is known of the positions before it, so an interrupted study, resumed, proposes what an uninterrupted one does.

Below the optimizers, which read it: this room knows candidates and Optuna, and no space, model or objective.
"""

from __future__ import annotations

from autodiffusion_opt.trials.attributes import candidate_of, values_of
from autodiffusion_opt.trials.history import History, Observation, Observations, Past, best_first

__all__ = ["History", "Observation", "Observations", "Past", "best_first", "candidate_of", "values_of"]
