"""Whether a study's proposals follow from what was known when they were made: proposed again, and compared."""

from __future__ import annotations

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.optimizer import CandidateSampler
from autodiffusion_opt.optimizer.base import kind_of
from autodiffusion_opt.study.run import Study
from autodiffusion_opt.study.sampler import sampler_of
from autodiffusion_opt.trials.attributes import OPTIMIZER, UNMEASURED, candidate_of
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.studies import need_study


def replay(study: Study) -> tuple[int, list[int]]:
    """Propose each candidate of a study again, from the positions before it as they were then.

    With one worker all positions before are measured; with several, each trial says which were not.

    Returns:
        How many candidates were proposed again, and the positions at which another came out. Those that other
        optimizers proposed, or were given, are left out.

    Raises:
        UserError: for a study that is not there, or whose optimizer does not propose whole candidates by itself.
    """
    optuna_study = need_study(study.storage, study.config.name)
    history = History(optuna_study).refresh()
    sampler = sampler_of(study.config, study.config.optimizer, study.problem, history)
    if not isinstance(sampler, CandidateSampler):
        raise UserError(f"replay is for local, evolution and random; got {kind_of(study.config.optimizer)}")
    kind, count, different = kind_of(study.config.optimizer), 0, []
    for number in sorted(history.trials):
        trial, position = history.trials[number], history.position(number)
        candidate = candidate_of(trial)
        if candidate is None or trial.user_attrs.get(OPTIMIZER) != kind or history.at(position)[0] is not trial:
            continue
        past = history.observations.before(position).as_it_was(trial.user_attrs.get(UNMEASURED, {}))
        count += 1
        if sampler.propose_from(past).candidate != candidate:
            different.append(position)
    return count, different
