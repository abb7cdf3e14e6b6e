"""What every optimizer must do, as checks that any project can run over its own.

    from autodiffusion_opt import testing

    testing.check_optimizer("my-kind")
    testing.check_optimizer({"kind": "my-kind", "population": 4})
    testing.check_optimizer(lambda: MySampler())  # an Optuna sampler: made anew for every study, as a process would

Each check runs small studies with a function in place of a model, in SQLite below the system's folder for temporary
files, and raises AssertionError saying what does not hold. None needs pytest.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import EvaluationError
from autodiffusion_opt.objective import Score
from autodiffusion_opt.optimizer import OPTIMIZERS
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.space import SPACES as KINDS
from autodiffusion_opt.space import ModelInfo
from autodiffusion_opt.study.run import Study
from autodiffusion_opt.trials.attributes import BASELINE, ERROR, WORKER, candidate_of
from autodiffusion_opt.trials.claims import NOT_WANTED, Claims
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.studies import need_study
from autodiffusion_opt.trials.workers import this_worker

# Of ten layers at a tenth of the network each; a partial step runs the outer two, or the outer four.
INFO = ModelInfo(
    1000,
    layers=10,
    removable=tuple(range(10)),
    ranking=(tuple(range(10)),) * 3,
    flops=100,
    layer_flops=(10,) * 10,
    branch_flops=(20, 40),
    branch_layers=((0, 9), (0, 1, 8, 9)),
)
# Spaces of each nature: parameters that are times; times and numbers of layers; which steps of a schedule are run;
# times and kinds of steps; settings of an engine's cache; and of those with layers, parameters that do not say it all.
SPACES: Mapping[str, Mapping[str, Any]] = {
    "time steps": {"kind": "time-steps", "steps": 3},
    "joint ranked": {"kind": "joint", "n_max": 40, "steps_min": 3, "steps_max": 5, "layers": "ranked"},
    "joint any": {"kind": "joint", "n_max": 40, "steps_min": 3, "steps_max": 5, "layers": "any"},
    "segments": {"kind": "segments", "steps": 24, "segments": 4},
    "cached steps": {"kind": "cached-steps", "max_flops": 3.6, "steps_min": 5, "steps_max": 5},
    "cached any": {"kind": "cached-steps", "max_flops": 3.6, "steps_min": 5, "steps_max": 5, "layers": "any"},
    "engine": {"kind": "engine", "engine": "taylorseer-cache", "steps": [4, 6]},
    "engine mask": {"kind": "engine", "engine": "mag-cache", "steps": 5},
}
# Of the candidates that are not baselines, the share that may be another's repeat: some optimizers make small steps on
# whole numbers.
MOST_REPEATS = 0.4

# The name of a kind, a table, or a function that makes an Optuna sampler.
Optimizer = str | Mapping[str, Any] | Callable[[], optuna.samplers.BaseSampler]


def check_optimizer(optimizer: Optimizer, trials: int = 16) -> None:
    """Every check, on every space that the optimizer claims to search. Raises AssertionError.

    Args:
        optimizer: the name of a kind, a table, or a function that makes an Optuna sampler.
        trials: of each study, baselines included; 16 are enough for most to leave their start behind.
    """
    for space in SPACES:
        if claims(optimizer, space):
            for check in CHECKS.values():
                check(optimizer, space, trials)


def claims(optimizer: Optimizer, space: str) -> bool:
    """Whether an optimizer claims to search one of :data:`SPACES`; one of parameters needs them to say it all."""
    table = SPACES[space]
    if KINDS.get_kind(str(table["kind"])).model_validate(dict(table)).space(INFO).fully_parametric:
        return True
    if callable(optimizer):
        return False
    kind = optimizer if isinstance(optimizer, str) else str(optimizer["kind"])
    return OPTIMIZERS.get_kind(kind).proposes_candidates


def check_candidates(optimizer: Optimizer, space: str, trials: int = 16) -> None:
    """The study ends; every candidate is in the space, its parameters are its own, and few are repeats."""
    with _database() as url:
        study = _study(optimizer, space, url, trials)
        study.run(progress=False)
        ran = study.trials()
        _must([trial.state for trial in ran] == [TrialState.COMPLETE] * trials, f"{trials} trials must complete", ran)
        searched = study.problem.space
        for trial in ran:
            candidate = _candidate(trial)
            if BASELINE in trial.user_attrs and searched.nearest(candidate) != candidate:
                continue  # what a study is compared with may lie outside its space
            searched.check(candidate)
            _must(set(trial.params) == set(searched.distributions()), "a trial must have every parameter", trial)
            if searched.fully_parametric:
                decoded = searched.decode(trial.params)
                _must(decoded == candidate, "the parameters must decode to the candidate", trial)
        _check_repeats(ran)


def check_resumed(optimizer: Optimizer, space: str, trials: int = 16) -> None:
    """A study run in parts, one of its workers dead in between, proposes at each position what a single run does."""
    with _database() as url:
        whole = _study(optimizer, space, url, trials)
        whole.run(progress=False)
        expected = _by_position(whole)
    with _database() as url:
        for wanted in (trials // 2, trials // 2 + 3, trials):
            parts = _study(optimizer, space, url, trials)
            parts.run(wanted, progress=False)
            if wanted < trials:
                _lose_a_trial(parts, trials)
        proposed = _by_position(parts)
    for position, candidate in expected.items():
        _must(proposed.get(position) == candidate, f"position {position} must be {candidate}", proposed.get(position))


def check_two_workers(optimizer: Optimizer, space: str, trials: int = 16) -> None:
    """Two workers at one study measure every position once, and propose different candidates."""
    with _database() as url:
        _study(optimizer, space, url, trials).run(1, progress=False)  # the database, so that both only work
        errors: list[BaseException] = []

        def work() -> None:
            try:
                _study(optimizer, space, url, trials).run(progress=False, wait=True)
            except BaseException as error:
                errors.append(error)

        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if errors:
            raise AssertionError(f"two workers must not disturb each other; got {errors[0]!r}") from errors[0]
        study = _study(optimizer, space, url, trials)
        # A worker that began a trial too many, since the last ones were begun meanwhile, gives it up unmeasured.
        ran = [trial for trial in study.trials() if trial.user_attrs.get(ERROR) != NOT_WANTED]
        states = [trial.state for trial in ran]
        _must(states == [TrialState.COMPLETE] * trials, "every trial must complete, and none be measured twice", states)
        _must(sorted(_by_position(study)) == list(range(trials)), "every position must be measured", states)
        _check_repeats(ran)


def check_failures(optimizer: Optimizer, space: str, trials: int = 16) -> None:
    """Evaluations that fail, and candidates that are stopped early, do not stop the study."""
    with _database() as url:
        study = _study(optimizer, space, url, trials, objective=Troubled())
        study.run(progress=False)
        settled = sorted(_history(study).settled)
        _must(settled == list(range(trials)), f"the study must end with {trials} positions settled", settled)
        states = {state: [trial.state for trial in study.trials()].count(state) for state in TrialState}
        # That the study was one with troubles at all.
        _must(states[TrialState.FAIL] > 0 and states[TrialState.COMPLETE] > 0, "some must fail, some complete", states)
        for trial in study.trials():
            if BASELINE not in trial.user_attrs:
                study.problem.space.check(_candidate(trial))


CHECKS: Mapping[str, Callable[[Optimizer, str, int], None]] = {
    "candidates": check_candidates,
    "resumed": check_resumed,
    "two workers": check_two_workers,
    "failures": check_failures,
}


def cost(candidate: Candidate) -> float:
    """What the checks minimise: how far the times are from those of a candidate that no usual schedule has."""
    wanted = np.interp(np.linspace(0, 1, len(candidate.times)), [0, 0.4, 1], [930.0, 420.0, 30.0])
    return 1.0 + float(np.abs(np.array(candidate.times) - wanted).mean())


class Troubled:
    """An objective that fails two evaluations of eight, so that a retry fails too, and stops what is worse than others.

    That is what is worse than the median, after the first of two images.
    """

    identity = "troubled-1"
    rungs = (1, 2)
    pruner: str | None = "median"

    def __init__(self) -> None:
        self.evaluations = 0

    @property
    def directions(self) -> Mapping[str, Any]:
        """One value, the less the better."""
        return {"cost": "minimize"}

    def measure(
        self, candidate: Candidate, *, seed: int | None = None, images: int | None = None, progress: Progress = silent
    ) -> Iterator[Score]:
        """The cost, after one image and after two. Raises EvaluationError twice in every eight times."""
        self.evaluations += 1
        if self.evaluations % 8 in (4, 5):
            raise EvaluationError("these two of eight evaluations fail")
        for rung in self.rungs:
            yield Score({"cost": cost(candidate)}, images=rung, seconds=0.0)


def _study(optimizer: Optimizer, space: str, url: str, trials: int, objective: Any = None) -> Study:
    """A study of one of the spaces, as a process of its own would make it."""
    from autodiffusion_opt.objective.custom import CandidateMetric

    return Study(
        "conformance",
        space=dict(SPACES[space]),
        objective=CandidateMetric(cost, identity="cost") if objective is None else objective,
        optimizer=optimizer() if callable(optimizer) else optimizer,
        trials=trials,
        storage=url,
        model_info=INFO,
    )


class _database:
    """The URL of an SQLite file that is gone after the block."""

    def __enter__(self) -> str:
        self._folder = tempfile.TemporaryDirectory(prefix="autodiffusion-testing-", ignore_cleanup_errors=True)
        return f"sqlite:///{Path(self._folder.name)}/studies.db"

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()


def _history(study: Study) -> History:
    return History(need_study(study.storage, study.config.name)).refresh()


def _by_position(study: Study) -> dict[int, Candidate]:
    """The candidate of each position that was measured."""
    history = _history(study)
    complete = [trial for trial in history.trials.values() if trial.state == TrialState.COMPLETE]
    return {history.position(trial.number): _candidate(trial) for trial in complete}


def _lose_a_trial(study: Study, trials: int) -> None:
    """A trial that a worker took, and then died."""
    lost = Claims(_history(study), study.problem.space.encode).take(trials)
    assert lost is not None  # fewer than the trials are done
    host, process, start = this_worker().rsplit(":", 2)
    study.storage.set_trial_user_attr(lost.trial_id, WORKER, f"{host}:{process}:not-{start}")


def _candidate(trial: FrozenTrial) -> Candidate:
    candidate = candidate_of(trial)
    _must(candidate is not None, "every trial must have a candidate", trial)
    assert candidate is not None
    return candidate


def _check_repeats(trials: list[FrozenTrial]) -> None:
    proposed = [_candidate(trial) for trial in trials if BASELINE not in trial.user_attrs]
    _must(bool(proposed), "the trials must be more than the baselines", len(trials))
    repeats = 1 - len(set(proposed)) / len(proposed)
    _must(repeats <= MOST_REPEATS, f"at most {MOST_REPEATS:.0%} of the candidates may be repeats", f"{repeats:.0%}")


def _must(holds: bool, what: str, came: object) -> None:
    if not holds:
        raise AssertionError(f"{what}; got {came}")
