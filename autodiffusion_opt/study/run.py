"""The study: binds space, objective and optimizer, runs trials, keeps them in SQL, resumes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import optuna
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.study.problem import Problem, bind
from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError, unknown
from autodiffusion_opt.study.config import StudyConfig, differences, load_study_config
from autodiffusion_opt.trials.storage import (
    Storage,
    fail,
    heartbeat,
    is_live,
    open_storage,
    recover,
    retry_open,
    storage_url,
    without_password,
)
from autodiffusion_opt.trials.storage import this_worker as worker_name
from autodiffusion_opt.trials.history import (
    BASELINE,
    CANDIDATE,
    RETRY_OF,
    REUSED_FROM,
    SCORE,
    WORKER,
    candidate_of,
    completed,
    positions,
    value_of,
)

# User attributes of a study.
DEFINITION = "definition"
FINGERPRINT = "fingerprint"  # in the definition: of the model, the conditions, the reference
RANKING = "ranking"
WANTED = "trials"
FILE = "file"  # the study's: relative paths in its definitions start from there


class Watch:
    """What is told while a study runs; every method may be overridden. An exception from it stops the run."""

    def preparing(self, what: str, done: int, of: int) -> None:
        """The model is loaded, the reference measured, the layers ranked; ``of`` 0: nobody knows of how much."""

    def started(self, plan: StudyConfig, trials: list[FrozenTrial], wanted: int) -> None:
        """The study is open; ``trials`` are those in SQL."""

    def proposed(self, number: int, candidate: Candidate) -> None:
        """A trial begins."""

    def images(self, done: int, of: int) -> None:
        """Images of the current trial."""

    def finished(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> None:
        """A trial is complete, in SQL; ``trials`` are all there now, other workers' too."""


class Study:
    """A search: what its file says, and its trials in SQL.

    Args:
        plan: the resolved definitions.
        url: the database; None: ``$AUTODIFFUSION_STORAGE``, else SQLite below the working folder.
    """

    def __init__(self, plan: StudyConfig, url: str | None = None) -> None:
        self.plan = plan
        self.url = storage_url(url)
        self._watch = Watch()

    @classmethod
    def load(
        cls, name: str | Path, *, storage: str | None = None, seed: int | None = None, device: str | None = None
    ) -> Study:
        """The study of a catalogue name or a TOML file.

        Args:
            name: a name in ``studies/``, or a path.
            storage: an SQLAlchemy URL.
            seed: another seed than the file's; the study is then called ``NAME-seedN``.
            device: another device than the file's.

        Raises:
            UserError: all that is wrong with the files, at once.
        """
        plan = load_study_config(str(name))
        plan = plan if seed is None else plan.with_seed(seed)
        return cls(plan if device is None else plan.on_device(device), storage)

    @cached_property
    def storage(self) -> Storage:
        """The database, opened (and created where it is SQLite)."""
        return open_storage(self.url)

    @cached_property
    def problem(self) -> Problem:
        """The model loaded, the space and the objective problem to it."""
        return bind(self.plan, self._stored(RANKING), self._watch.preparing)

    def _stored(self, key: str) -> Any:
        found = find_study(self.storage, self.plan.name)
        return None if found is None else found.user_attrs.get(key)

    def run(
        self, trials: int | None = None, timeout: float | None = None, watch: Watch | None = None
    ) -> list[FrozenTrial]:
        """Run until the study has ``trials`` complete ones, and return them, best first.

        Safe to call again: it continues, or returns at once when the study is complete. An interrupted trial is
        marked as failed and retried first by the next run.

        Args:
            trials: the total wanted; None: what the file says.
            timeout: seconds after which no further trial is started.
            watch: is told of every step.

        Raises:
            UserError: for a definition or model that differs from the one in SQL, a device that is not there ...
        """
        wanted = trials or self.plan.trials
        watch = self._watch = watch or Watch()
        study = self._open()
        self._recover(study, wanted)
        self._enqueue_baselines(study)
        watch.started(self.plan, study.get_trials(deepcopy=False), wanted)
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while len(self._claimed(study)) < wanted and (deadline is None or time.monotonic() < deadline):
                self._recover(study, wanted)  # another worker may have died meanwhile
                finished = self._one_trial(study, watch, wanted)
                if finished is not None:
                    watch.finished(finished, study.get_trials(deepcopy=False))
        except BaseException as error:
            self._let_go(study, error, wanted)
            raise
        return completed(study.get_trials(deepcopy=False))

    def _open(self) -> optuna.Study:
        """The Optuna study, created on first use, with this plan's sampler. Raises UserError where it differs."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # its log is not ours
        sampler = self.plan.optimizer.sampler_of(self.problem.space, self.plan.seed)
        study = create_study(self.storage, self.plan.name)
        study.sampler = sampler
        definition = self.plan.definition() | {FINGERPRINT: self.problem.fingerprint}
        stored = study.user_attrs.get(DEFINITION)
        if stored is None:
            ranking = [list(third) for third in self.problem.info.ranking]
            study.set_user_attr(RANKING, ranking)
            study.set_user_attr(DEFINITION, definition)
        elif stored != definition:
            self._start_over(study, stored, definition)
            return self._open()
        study.set_user_attr(WANTED, self.plan.trials)
        study.set_user_attr(FILE, str(self.plan.path.resolve()))
        return study

    def _start_over(self, study: optuna.Study, stored: Mapping[str, Any], definition: Mapping[str, Any]) -> None:
        """Forget a study that has measured nothing yet: its file was put right. Raises UserError where it has."""
        trials = study.get_trials(deepcopy=False)
        if completed(trials) or any(is_live(study, self.storage, trial) for trial in trials):
            self._refuse(stored, definition)
        optuna.delete_study(study_name=self.plan.name, storage=self.storage)
        del self.problem  # its ranking may have come from there

    def _refuse(self, stored: Mapping[str, Any], definition: Mapping[str, Any]) -> NoReturn:
        lines = "\n".join(f"  {line}" for line in differences(stored, definition))
        raise UserError(
            f"{self.plan.path}: the study {self.plan.name!r} in {without_password(self.url)} was started with another "
            f"definition:\n"
            f"{lines}\n"
            "Its trials would not be comparable. Put the definition back, copy the file to another name, or use "
            "another --storage."
        )

    def _enqueue_baselines(self, study: optuna.Study) -> None:
        """The usual schedules come first, so that every study carries its own comparison."""
        known = {trial.user_attrs.get(BASELINE) for trial in study.get_trials(deepcopy=False)}
        for name, candidate in self.problem.space.baselines().items():
            if name not in known:
                attributes = {BASELINE: name, CANDIDATE: candidate.to_json(), "origin": "baseline"}
                study.enqueue_trial(self.problem.space.encode(candidate), user_attrs=attributes)
        self._drop_doubles(study)

    def _drop_doubles(self, study: optuna.Study) -> None:
        """Of baselines that several workers enqueued, since each saw an empty study, only the first is run."""
        first: set[str] = set()
        for trial in study.get_trials(deepcopy=False):
            name = None if RETRY_OF in trial.user_attrs else trial.user_attrs.get(BASELINE)
            if name in first and trial.state == TrialState.WAITING:
                fail(study, trial._trial_id, "another worker enqueued it first")
            if name is not None:
                first.add(name)

    def _recover(self, study: optuna.Study, wanted: int) -> None:
        recover(study, self.storage, self.problem.space.encode, wanted)

    def _claimed(self, study: optuna.Study) -> set[int]:
        """Positions that are complete, or at which a live worker works."""
        trials = study.get_trials(deepcopy=False)
        placed = positions(trials)
        done = (TrialState.COMPLETE, TrialState.PRUNED)
        return {placed[t.number] for t in trials if t.state in done or is_live(study, self.storage, t)}

    def _is_surplus(self, study: optuna.Study, number: int, wanted: int) -> bool:
        """Whether other workers began all that is wanted while this trial was asked for."""
        mine = positions(study.get_trials(deepcopy=False))[number]
        return sum(position < mine for position in self._claimed(study)) >= wanted

    def _one_trial(self, study: optuna.Study, watch: Watch, wanted: int) -> FrozenTrial | None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            trial = study.ask(fixed_distributions=self.problem.space.distributions())
        if self._is_surplus(study, trial.number, wanted):
            fail(study, trial._trial_id, "not wanted: other workers began the last trials")
            return None
        with heartbeat(self.storage, trial._trial_id):
            candidate = self._candidate(trial)
            watch.proposed(trial.number, candidate)
            value = self._value(study, trial, candidate, watch)
            return study.tell(trial, value, skip_if_finished=True)

    def _candidate(self, trial: optuna.Trial) -> Candidate:
        """The published candidate; for an optimizer of parameters, the one that they decode to, now published."""
        text = trial.user_attrs.get(CANDIDATE)
        if text is not None:
            return Candidate.from_json(text)
        candidate = self.problem.space.decode(trial.params)
        trial.set_user_attr(CANDIDATE, candidate.to_json())
        return candidate

    def _value(self, study: optuna.Study, trial: optuna.Trial, candidate: Candidate, watch: Watch) -> float:
        """Measured, or taken over from an earlier trial with an equal candidate."""
        earlier = self._earlier(study, trial.number, candidate)
        if earlier is not None:
            trial.set_user_attr(REUSED_FROM, earlier.number)
            trial.set_user_attr(SCORE, earlier.user_attrs.get(SCORE, {}))
            return _value(earlier)
        images = self.problem.objective.definition.images
        score = self.problem.objective.score(candidate, progress=lambda done: watch.images(done, images))
        trial.set_user_attr(SCORE, score.parts())
        return score.value

    def _earlier(self, study: optuna.Study, number: int, candidate: Candidate) -> FrozenTrial | None:
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if trial.number != number and candidate_of(trial) == candidate:
                return trial
        return None

    def _let_go(self, study: optuna.Study, error: BaseException, wanted: int) -> None:
        """Whatever stopped the run: no trial of this worker stays running, and each is retried first next time."""
        self.storage.engine.dispose()
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get(WORKER) == worker_name():
                fail(study, trial._trial_id, f"{type(error).__name__}: {error}"[:500])
        retry_open(study, self.problem.space.encode, wanted)

    def trials(self) -> list[FrozenTrial]:
        """All trials in SQL, in the order of their numbers; none where the study was never run."""
        found = find_study(self.storage, self.plan.name)
        return [] if found is None else found.get_trials(deepcopy=False)

    def best(self, count: int = 1) -> list[tuple[Candidate, float]]:
        """The best ``count`` different candidates and their values, best first. Raises UserError if none."""
        return [(_must(trial), _value(trial)) for trial in best_trials(self.trials(), self.plan.name, count)]


def create_study(storage: Storage, name: str) -> optuna.Study:
    """The Optuna study of a name, created if need be; several processes may do so at once."""
    for attempt in range(10):
        try:
            return optuna.create_study(storage=storage, study_name=name, direction="minimize", load_if_exists=True)
        except (optuna.exceptions.StorageInternalError, optuna.exceptions.DuplicatedStudyError):
            if attempt == 9:
                raise
            time.sleep(0.1)
    raise AssertionError("not reached")


def find_study(storage: Storage, name: str) -> optuna.Study | None:
    """The Optuna study of a name, if it is there."""
    if name not in optuna.get_all_study_names(storage):
        return None
    return optuna.load_study(study_name=name, storage=storage)


def need_study(storage: Storage, name: str, url: str) -> optuna.Study:
    """The Optuna study of a name. Raises UserError, listing those there are."""
    found = find_study(storage, name)
    if found is None:
        raise UserError(
            f"{unknown(f'a study in {without_password(url)}', name, optuna.get_all_study_names(storage))} Run it first."
        )
    return found


def best_trials(trials: list[FrozenTrial], name: str, count: int = 1) -> list[FrozenTrial]:
    """The best ``count`` complete trials of different candidates, best first. Raises UserError where there is none."""
    chosen: dict[Candidate, FrozenTrial] = {}
    for trial in completed(trials):
        chosen.setdefault(_must(trial), trial)
    if not chosen:
        raise UserError(f"the study {name!r} has no complete trial yet; run it first: autodiffusion-opt run {name}")
    return list(chosen.values())[:count]


def baseline_trials(trials: list[FrozenTrial]) -> dict[str, FrozenTrial]:
    """The complete baselines, by name, in the order in which they were run."""
    return {
        trial.user_attrs[BASELINE]: trial
        for trial in sorted(trials, key=lambda trial: trial.number)
        if BASELINE in trial.user_attrs and value_of(trial) is not None
    }


def _must(trial: FrozenTrial) -> Candidate:
    candidate = candidate_of(trial)
    if candidate is None:
        raise UserError(f"trial {trial.number} has no candidate: was it made by another program?")
    return candidate


def _value(trial: FrozenTrial) -> float:
    value = value_of(trial)
    return float("inf") if value is None else value
