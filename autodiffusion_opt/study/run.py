"""The study: opens its problem, runs trials, keeps them in SQL, resumes."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from autodiffusion_opt import signals
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.optimizer import DEFAULT
from autodiffusion_opt.optimizer.base import kind_of
from autodiffusion_opt.space import OWN, ModelInfo
from autodiffusion_opt.study import results
from autodiffusion_opt.study.callback import Callback
from autodiffusion_opt.study.complete import is_complete, note_files, warn_of_others
from autodiffusion_opt.study.config import (
    StudyConfig,
    changes_since,
    check_version,
    differences,
    load_study_config,
)
from autodiffusion_opt.study.failures import MOST_IN_A_ROW, Failures
from autodiffusion_opt.study.from_python import python_study_config
from autodiffusion_opt.study.model_numbers import numbers_for_plots
from autodiffusion_opt.study.problem import Problem, load_problem
from autodiffusion_opt.study.progress_bar import shown
from autodiffusion_opt.study.provenance import versions
from autodiffusion_opt.study.sampler import named_optimizer, pruner_of, sampler_of
from autodiffusion_opt.study.trial import run_trial
from autodiffusion_opt.study.verify import Rescored, rescore
from autodiffusion_opt.study.warm_starts import warm_starts
from autodiffusion_opt.trials.attributes import (
    DEFINITION,
    FINGERPRINT,
    MODEL,
    RANKING,
    SPENT,
    START,
    VERSIONS,
)
from autodiffusion_opt.trials.claims import Claims
from autodiffusion_opt.trials.database import storage_url, without_password
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.storage import Storage
from autodiffusion_opt.trials.studies import create_study, find_study, set_value_names

if TYPE_CHECKING:
    import pandas

DIRECTIONS = {"minimize": StudyDirection.MINIMIZE, "maximize": StudyDirection.MAXIMIZE}
# Seconds for which a database that is gone is waited for, once the study is open.
PATIENCE = 600.0
# Seconds between two looks at what other workers do.
POLL_SECONDS = 1.0


class Study:
    """A search: pipeline, space, objective, optimizer, and its trials in SQL.

    Args:
        name: of the study in SQL.
        pipeline: a diffusers pipeline or an object that behaves like one; the name of a model; a table
            (``{"model": ..., "micro_batch": 64}``, where ``model`` may also be a pipeline). None for an objective that
            needs none.
        space: a name in ``spaces/``, a table, or a :class:`~autodiffusion_opt.space.Space`.
        objective: a name in ``objectives/``, a table, an :class:`~autodiffusion_opt.ImageMetric`, a
            :class:`~autodiffusion_opt.CandidateMetric`, or an object with ``directions``, ``identity``, ``measure``.
        optimizer: the name of a kind, a table, or an Optuna sampler.
        trials: how many are wanted, baselines included.
        storage: an SQLAlchemy URL; None: ``$AUTODIFFUSION_STORAGE``, else SQLite below the working folder.
        seed: of the optimizer.
        model_info: the model's numbers, where there is no pipeline to read them from.

    Raises:
        UserError: all that is wrong with the parts, at once.
    """

    def __init__(
        self,
        name: str,
        *,
        pipeline: Any = None,
        space: Any,
        objective: Any,
        optimizer: Any = DEFAULT,
        trials: int = 100,
        storage: str | None = None,
        seed: int = 0,
        model_info: ModelInfo | None = None,
    ) -> None:
        self.config = python_study_config(
            name,
            pipeline=pipeline,
            space=space,
            objective=objective,
            optimizer=optimizer,
            trials=trials,
            seed=seed,
            model_info=model_info,
        )
        self.url = storage_url(storage)
        self._callback = Callback()
        self._optimizer = self.config.optimizer  # of the present run
        self._patience = 0.0

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        storage: str | None = None,
        seed: int | None = None,
        device: str | None = None,
        overrides: tuple[str, ...] = (),
    ) -> Study:
        """The study of a catalogue name or a TOML file.

        Args:
            name: a name in ``studies/``, or a path.
            storage: an SQLAlchemy URL.
            seed: another seed than the file's; the study is then called ``NAME-seedN``.
            device: another device than the file's.
            overrides: ``"space.steps=6"``: other values than the file's.

        Raises:
            UserError: all that is wrong with the files, at once.
        """
        config = load_study_config(str(name), overrides)
        config = config if seed is None else config.with_seed(seed)
        return cls.from_config(config.on_device(device), storage)

    @classmethod
    def several(
        cls, name: str | Path, optimizers: Sequence[str], repeats: int, *, seed: int | None = None, **where: Any
    ) -> list[Study]:
        """A study for each of several optimizers and seeds, which differ in nothing else: to be compared.

        Args:
            name: a name in ``studies/``, or a path.
            optimizers: names of kinds, or of TOML files; none: the study's own.
            repeats: how many seeds of each, from ``seed`` on.
            seed: the first; None: the study's own.
            where: ``storage``, ``device`` and ``overrides``, as for :meth:`load`.

        Raises:
            UserError: all that is wrong with the files, at once.
        """
        overrides = tuple(where.pop("overrides", ()))
        first = cls.load(name, seed=seed, overrides=overrides, **where).config.seed
        changes = [[f"optimizer={optimizer.strip()}"] for optimizer in optimizers] or [[]]
        return [
            cls.load(name, seed=first + repeat, overrides=(*overrides, *change), **where)
            for change in changes
            for repeat in range(repeats)
        ]

    @classmethod
    def from_config(cls, config: StudyConfig, storage: str | None = None) -> Study:
        """The study of a resolved configuration."""
        study = object.__new__(cls)
        study.config, study.url, study._callback = config, storage_url(storage), Callback()
        study._optimizer, study._patience = config.optimizer, 0.0
        return study

    def __repr__(self) -> str:
        space, objective, optimizer = (
            getattr(part, "kind", type(part).__name__)
            for part in (self.config.space, self.config.objective, self.config.optimizer)
        )
        model = "no pipeline" if self.config.pipeline is None else self.config.pipeline.model
        where = without_password(self.url)
        return (
            f"Study({self.config.name!r}: {model}, space {space}, objective {objective}, optimizer {optimizer}, "
            f"{self.config.trials} trials in {where})"
        )

    @cached_property
    def storage(self) -> Storage:
        """The database, opened (and created where it is SQLite)."""
        return open_storage(self.url, patience=self._patience)

    def connect(self, patience: float | None = None) -> Storage:
        """The database, opened.

        Args:
            patience: seconds for which it is waited for where it is gone; None: ten minutes, but not at the start.
        """
        self._patience = patience or 0.0
        self.storage.patience = PATIENCE if patience is None else patience
        return self.storage

    @cached_property
    def problem(self) -> Problem:
        """The model loaded, the space and the objective made for it."""
        study = find_study(self.storage, self.config.name)
        ranking = None if study is None else study.user_attrs.get(RANKING)
        return load_problem(self.config, ranking, self._callback.progress)

    def run(
        self,
        trials: int | None = None,
        timeout: float | None = None,
        progress: bool | Callback | None = None,
        optimizer: str | Mapping[str, Any] | BaseSampler | None = None,
        wait: bool = False,
        patience: float | None = None,
    ) -> list[results.Result]:
        """Run until the study has ``trials`` finished ones, and return the complete ones, best first.

        Safe to call again: it continues, or returns at once when the study is complete. An interrupted trial is
        marked as failed and retried first by the next run. A trial whose evaluation raises an error is tried once
        more, then it stays failed, and the study goes on. Several processes may run a study at once.

        Args:
            trials: the total wanted; None: what the study says.
            timeout: seconds after which no further trial is started.
            progress: whether a bar is shown; None: in a terminal or a notebook. Or a :class:`Callback` that is told.
            optimizer: another than the study's to go on with: it knows all trials before, and each trial says who
                proposed it. The name of a kind, a table, or an Optuna sampler.
            wait: whether to wait for other workers' trials where none is left to begin, and to take over those whose
                worker dies; else a warning says how many there are.
            patience: seconds for which a database that is gone is waited for; None: ten minutes, but not at the start.

        Raises:
            UserError: for a definition or model that differs from that in SQL, a device that is not there, evaluations
                that fail again and again, or a database that stays away.
        """
        wanted = self.config.trials if trials is None else trials
        self._optimizer = self.config.optimizer if optimizer is None else named_optimizer(optimizer, self.config.path)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with signals.handled() as signals_before, shown(progress) as self._callback, closing(self.connect(patience)):
            complete = self._complete(wanted)
            if complete is not None:
                self._callback.started(self.config, complete, wanted)
                return results.complete(complete.study, complete.trials.values())
            study = self._open()
            history = History(study).refresh()
            study.sampler = sampler_of(self.config, self._optimizer, self.problem, history)
            study.pruner = pruner_of(self.config, study.sampler, self.problem.objective)
            claims = Claims(history, self.problem.parameters)
            claims.recover(wanted)
            claims.retry_failures_in_a_row(MOST_IN_A_ROW)
            claims.enqueue(self.problem.baselines, labels={OWN: self.problem.own_label})
            self._enqueue_starts(claims, history)
            self._callback.started(self.config, history, wanted)
            failures = Failures()
            with claims.released_on_error(wanted):
                while time.monotonic() < deadline:
                    claim = claims.take(wanted)
                    if claim is None:
                        if not wait or not claims.others_at_work(wanted):
                            break
                        time.sleep(POLL_SECONDS)
                        continue
                    trial = run_trial(kind_of(self._optimizer), self.problem, claim, history, self._callback)
                    signals.raise_since(signals_before)
                    self._callback.finished(trial, history)
                    failures.count(claim.position, trial)
            warn_of_others(claims.others_at_work(wanted))
            return results.complete(study, history.trials.values())

    def _complete(self, wanted: int) -> History | None:
        """The history of a study that has all its trials; its model, which may be gone, is not loaded.

        Raises:
            UserError: where it has measured something under another definition.
        """
        study = find_study(self.storage, self.config.name)
        if study is None or DEFINITION not in study.user_attrs or self.config.pipeline_object is not None:
            return None
        changes = changes_since(study.user_attrs[DEFINITION], self.config)
        history = History(study).refresh()
        if changes and history.is_measured:
            self._refuse(changes)
        if changes or not is_complete(history, wanted, MOST_IN_A_ROW):
            return None
        note_files(study, self.config)
        return history

    def _open(self) -> optuna.Study:
        """The Optuna study, created on first use. Raises UserError where its definition differs."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # its log is not ours
        stored = find_study(self.storage, self.config.name)
        if stored is not None and DEFINITION in stored.user_attrs:  # before a model is loaded in vain
            check_version(self.config.path, stored.user_attrs[DEFINITION])
        # An optimizer that cannot search the space leaves no study behind.
        sampler_of(self.config, self._optimizer, self.problem)
        directions = {name: DIRECTIONS[way] for name, way in self.problem.objective.directions.items()}
        study = create_study(self.storage, self.config.name, directions)
        definition = self.config.definition() | {FINGERPRINT: self.problem.fingerprint}
        known = study.user_attrs.get(DEFINITION)
        if known is None:
            set_value_names(study, list(directions))
            study.set_user_attr(VERSIONS, versions())
            study.set_user_attr(MODEL, numbers_for_plots(self.problem.info))
            study.set_user_attr(RANKING, [list(third) for third in self.problem.info.ranking])
            study.set_user_attr(DEFINITION, definition)
        elif changes := differences(known, definition):
            self._start_over(study, changes)
            return self._open()
        note_files(study, self.config)
        return study

    def _start_over(self, study: optuna.Study, changes: Sequence[str]) -> None:
        """Forget a study that has measured nothing yet: its file was put right. Raises UserError where it has."""
        history = History(study).refresh()
        if history.is_measured or Claims(history, self.problem.parameters).others_at_work(sys.maxsize):
            self._refuse(changes)
        optuna.delete_study(study_name=self.config.name, storage=self.storage)
        del self.problem  # its ranking may have come from there

    def _refuse(self, changes: Sequence[str]) -> NoReturn:
        lines = "\n".join(f"  {line}" for line in changes)
        raise UserError(
            f"{self.config.path}: the study {self.config.name!r} in {without_password(self.url)} was started with "
            f"another definition:\n"
            f"{lines}\n"
            "Its trials would not be comparable. Put the definition back, give the study another name (copy its "
            "file), or use another storage. To go on with another optimizer alone: run --optimizer NAME."
        )

    def _enqueue_starts(self, claims: Claims, history: History) -> None:
        """The optimizer's warm starts that are not in SQL yet, and what they cost."""
        known = history.given_names(START)
        starts = warm_starts(self.config, self._optimizer, self.problem, self.storage, known, self._callback.progress)
        spent = {str(start.spent["name"]): start.spent for start in starts.values() if start.spent is not None}
        if spent:  # by name, since a run that ended here computes them again
            before = {entry["name"]: entry for entry in history.study.user_attrs.get(SPENT, ())}
            history.study.set_user_attr(SPENT, list((before | spent).values()))
        claims.enqueue({name: start.candidate for name, start in starts.items()}, kind=START)

    def trials(self) -> list[FrozenTrial]:
        """All trials in SQL, in the order of their numbers; none where the study was never run."""
        study = find_study(self.storage, self.config.name)
        return [] if study is None else study.get_trials(deepcopy=False)

    def best(self) -> results.Result:
        """The best candidate with its values; of several values, the best by the first. Raises UserError for none."""
        return self.top(1)[0]

    def top(self, count: int | None = None) -> list[results.Result]:
        """The best different candidates, best first; of several values, the front: those that no other dominates.

        Args:
            count: how many at most; None: five, or the whole front.

        Raises:
            UserError: where no trial is complete, or none keeps to its bounds.
        """
        return results.stored_study(self.config.name, self.storage).top(count)

    def dataframe(self) -> pandas.DataFrame:
        """A row a trial: number, state, origin, values, costs, the candidate. Needs pandas."""
        return results.dataframe(results.stored_study(self.config.name, self.storage))

    def verify(self, images: int = 5000, repeats: int = 3, progress: bool | None = None) -> dict[str, Rescored]:
        """The best candidate (``"best"``) and the baselines, measured again on fresh seeds.

        Of several values the whole front (``"front 1"``, ``"front 2"`` ...), those too that are dominated now.

        Raises:
            UserError: where no trial is complete.
        """
        labelled = results.stored_study(self.config.name, self.storage).labelled()
        with shown(progress) as self._callback:
            candidates = self.problem.baselines | {label: result.candidate for label, result in labelled.items()}
            return rescore(self.problem, candidates, images=images, repeats=repeats, progress=self._callback.progress)

    def export(self, folder: str | Path, pick: int = 1) -> list[Path]:
        """Write the best candidate to a folder: JSON, numbers, a script, plain lists; the files written.

        Args:
            folder: created if need be.
            pick: the rank of another than the best, among the best or in the front, from 1.

        Raises:
            UserError: where no trial is complete or there are not so many, or the folder cannot be written.
        """
        from autodiffusion_opt.study.export import export_study

        stored = results.stored_study(self.config.name, self.storage)
        return export_study(stored, self.config, self.problem.sampler, Path(folder), pick)
