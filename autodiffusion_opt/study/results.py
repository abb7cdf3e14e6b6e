"""What comes out of a study: its best candidates, as values, as files, and as images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.catalogue import entries, find_candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.paths import folder_of
from autodiffusion_opt.study.config import StudyConfig, load_study_config, made_in_python
from autodiffusion_opt.study.stored_config import stored_config
from autodiffusion_opt.trials.attributes import (
    BASELINE,
    DEFINITION,
    ERROR,
    FILE,
    FOLDERS,
    LABEL,
    ORIGIN,
    RANKING,
    SCORE,
    STAGE,
    WANTED,
    candidate_of,
    excess_of,
    values_of,
)
from autodiffusion_opt.trials.database import storage_url, without_password
from autodiffusion_opt.trials.history import MEASURED, best_first
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.queries import Queries, every_study, queries_of
from autodiffusion_opt.trials.reading import collection_paused
from autodiffusion_opt.trials.storage import Storage
from autodiffusion_opt.trials.studies import need_study, value_names

if TYPE_CHECKING:
    import pandas

    from autodiffusion_opt.sampling.layers import Layer

# Costs in a score, as tables and frames show them.
COSTS = ("images", "not_finite", "nfe", "layer_runs", "flops", "seconds")
# How many of the best are shown.
TOP = 5


@dataclass(frozen=True)
class Result:
    """A complete trial.

    Attributes:
        trial: its number.
        candidate: what it sampled with.
        values: by name; the values that the study optimises.
        origin: how the candidate came about: ``baseline``, ``random``, ``mutation`` ...
        baseline: the name of the baseline that it is; None for others.
        label: what tables call it.
        costs: ``images``, ``not_finite`` (of these), ``nfe``, ``layer_runs``, ``flops``, ``seconds``, where known.
        measured: all values by name, those too that are only bounded or reported.
        excess: by how much values are beyond their bounds; 0 where they keep to them.
    """

    trial: int
    candidate: Candidate
    values: Mapping[str, float]
    origin: str
    baseline: str | None
    label: str
    costs: Mapping[str, float | None]
    measured: Mapping[str, float]
    excess: float = 0.0

    @property
    def value(self) -> float:
        """The only value. Raises ValueError for a study with several."""
        (value,) = self.values.values()
        return value


@dataclass(frozen=True)
class StoredStudy:
    """A study as SQL holds it.

    Attributes:
        study: the Optuna study.
    """

    study: optuna.Study

    @cached_property
    def trials(self) -> Sequence[FrozenTrial]:
        """All trials, by number; read when they are first asked for."""
        return self.study.get_trials(deepcopy=False)

    @cached_property
    def queries(self) -> Queries:
        """Questions to SQL that need not read all trials."""
        return queries_of(self.study)

    @property
    def name(self) -> str:
        """Of the study."""
        return self.study.study_name

    @property
    def value_names(self) -> list[str]:
        """The names of its values, in the order of its directions."""
        return value_names(self.study)

    @property
    def definition(self) -> dict[str, Any]:
        """What it was started with, with the files, the number of trials and the ranking beside it."""
        attributes = self.study.user_attrs
        more = {key: attributes[key] for key in (WANTED, FILE, FOLDERS, RANKING) if key in attributes}
        definition: dict[str, Any] = attributes.get(DEFINITION, {})
        return more | definition

    @cached_property
    def _complete(self) -> list[Result]:
        names = self.value_names
        with collection_paused():
            return [_result(trial, names) for trial in best_first(self.trials, self.study.directions)]

    def complete(self) -> list[Result]:
        """The complete trials, best first; those that keep to their bounds before the others."""
        return list(self._complete)

    @property
    def has_front(self) -> bool:
        """Whether there are several values, so that several candidates may be best, each at something else."""
        return len(self.value_names) > 1

    def top(self, count: int | None = None) -> list[Result]:
        """The best different candidates, best first; of several values, the front: those that no other dominates.

        Args:
            count: how many at most; None: five, or the whole front.

        Raises:
            UserError: where no trial is complete, or none keeps to its bounds.
        """
        queries, names = self.queries, self.value_names
        top = queries.front() if self.has_front else queries.best(TOP if count is None else count)
        if top:
            return [_result(trial, names) for trial in top[:count]]
        nearest = queries.nearest()
        if nearest is None:
            is_python = any(map(made_in_python, self.definition.values()))
            how = "study.run()" if is_python else f"autodiffusion-opt run {self.name}"
            raise UserError(f"the study {self.name!r} has no complete trial yet; run it first: {how}")
        result = _result(nearest, names)
        if not result.excess:  # of several values, each trial has one that is infinite
            return []
        raise UserError(
            f"none of the {queries.states()['complete']} complete trials of {self.name!r} keeps to its bounds; trial "
            f"{result.trial} is nearest, with {_listed(result.measured)}: run more trials, or start a "
            "study with wider bounds"
        )

    def labelled(self, count: int | None = None) -> dict[str, Result]:
        """The best by what tables call them: ``best``, ``rank 2`` ...; of several values ``front 1``, ``front 2`` ...

        Args:
            count: how many at most; None: the best alone, or the whole front.

        Raises:
            UserError: as :meth:`top`.
        """
        if self.has_front:
            return {f"front {rank}": result for rank, result in enumerate(self.top(count), 1)}
        top = self.top(1 if count is None else count)
        return {"best" if rank == 1 else f"rank {rank}": result for rank, result in enumerate(top, 1)}

    def pick(self, rank: int) -> Result:
        """The result of a rank, from 1, among the best. Raises UserError where there are not so many."""
        top = self.top(None if self.has_front else rank)
        if rank > len(top):
            where = "in the front" if self.has_front else "different candidates"
            raise UserError(f"--pick must be at most {len(top)}, the number {where} of {self.name!r}; got {rank}")
        return top[rank - 1]

    def baselines(self) -> dict[str, Result]:
        """The complete baselines, by name, in the order in which they were run."""
        trials = sorted(self.queries.baselines(), key=lambda trial: trial.number)
        results = [_result(trial, self.value_names) for trial in trials]
        return {str(result.baseline): result for result in results}


def stored_study(name: str, storage: Storage) -> StoredStudy:
    """The study of a name. Raises UserError, listing those there are, where it was never run."""
    return StoredStudy(need_study(storage, name))


def stored_studies(storage: Storage) -> list[StoredStudy]:
    """Every study of a database, by name."""
    return [StoredStudy(study) for study in every_study(storage)]


def complete(study: optuna.Study, trials: Iterable[FrozenTrial] | None = None) -> list[Result]:
    """The complete trials of an Optuna study, best first; ``trials`` are all, where they have been read."""
    stored = StoredStudy(study)
    if trials is not None:
        vars(stored)["trials"] = list(trials)
    return stored.complete()


def _result(trial: FrozenTrial, names: Sequence[str]) -> Result:
    candidate, values = candidate_of(trial), values_of(trial)
    if candidate is None or values is None:
        raise UserError(f"trial {trial.number} has no candidate: was it made by another program?")
    score = trial.user_attrs.get(SCORE, {})
    return Result(
        trial=trial.number,
        candidate=candidate,
        values=dict(zip(names, values, strict=True)),
        origin=str(trial.user_attrs.get(ORIGIN, "")),
        baseline=trial.user_attrs.get(BASELINE),
        label=str(trial.user_attrs.get(LABEL, trial.user_attrs.get(BASELINE, ""))),
        costs={cost: score.get(cost) for cost in COSTS},
        measured=score.get("values") or dict(zip(names, values, strict=True)),
        excess=excess_of(trial),
    )


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def dataframe(stored: StoredStudy) -> pandas.DataFrame:
    """A row a trial. Raises UserError where pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise UserError("a data frame needs pandas: pip install pandas") from None
    rows = []
    for trial in stored.trials:
        candidate, score = candidate_of(trial), trial.user_attrs.get(SCORE, {})
        values = trial.values if trial.state in MEASURED else None  # of one stopped early: at its ``images``
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                **score.get("values", {}),
                **dict(zip(stored.value_names, values or [None] * len(stored.value_names), strict=True)),
                "excess": excess_of(trial),
                "origin": trial.user_attrs.get(ORIGIN),
                "baseline": trial.user_attrs.get(BASELINE),
                "stage": trial.user_attrs.get(STAGE),
                **{cost: score.get(cost) for cost in COSTS if cost not in score.get("values", {})},
                "candidate": None if candidate is None else str(candidate),
                "error": trial.user_attrs.get(ERROR),
            }
        )
    return pandas.DataFrame(rows)


def candidate_file(result: Result, study: str, definition: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON file of a result's candidate: itself, and where it comes from."""
    source = {"study": study, "trial": result.trial, "values": dict(result.values), "definition": dict(definition)}
    return {**result.candidate.to_dict(), "source": source}


def study_name(study: str) -> str:
    """The name of a study that is given by name or by its file."""
    return Path(study).stem if study.endswith(".toml") else study


def open_study(study: str, storage: str | None) -> StoredStudy:
    """A study in SQL, given by name or by its file. Raises UserError where there is none."""
    return stored_study(study_name(study), open_storage(storage_url(storage), create=False))


@dataclass(frozen=True)
class Chosen:
    """Candidates, and the study that they belong to.

    Attributes:
        config: the study.
        candidates: ``best``, then ``rank 2`` ...; of several values ``front 1``, ``front 2`` ...
        searched: the best's first value in the search and its number of images; None where they are not known.
    """

    config: StudyConfig
    candidates: dict[str, Candidate]
    searched: tuple[float, int] | None


def resolve(given: str, study: str | None, storage: str | None, count: int | None = 1) -> Chosen:
    """The best candidates of a study, or the candidate of a JSON file.

    A candidate's name in ``studies/candidates/`` does for its file. A file says where it comes from, unless ``study``
    names another.

    Args:
        given: a study, or a candidate's file.
        study: whose model and objective a file's candidate gets; None: those that the file names.
        storage: an SQLAlchemy URL.
        count: how many of a study's best; None: the best, or the whole front.

    Raises:
        UserError: for a file that is no candidate, or where more than one is wanted; or a study that is not in SQL.
    """
    path = find_candidate(given)
    if path is not None:
        if count is not None and count > 1:
            raise UserError(f"--top is for a study, which has several candidates; {path} holds one")
        candidate, source = Candidate.load_with_source(path)
        if study:
            return Chosen(load_study_config(study), {"best": candidate}, None)
        config = _config_of(source, path)
        return Chosen(config, {"best": candidate}, _searched_value(source, config))
    stored = open_study(given, storage)
    where = f"{stored.name} in {without_password(storage_url(storage))}"
    config = stored_config(stored.name, where, stored.definition)
    labelled = stored.labelled(count)
    first = next(iter(labelled.values()))
    images = int(first.costs["images"] or 0)
    searched = None if stored.has_front or images < 2 else (first.value, images)
    return Chosen(config, {label: result.candidate for label, result in labelled.items()}, searched)


def _searched_value(source: Any, config: StudyConfig) -> tuple[float, int] | None:
    """The value of the search that a candidate's file holds, and its number of images; None for several values."""
    values, images = source.get("values"), getattr(config.objective, "rungs", (0,))[-1]
    if not isinstance(values, Mapping) or len(values) != 1 or not images:
        return None
    (value,) = values.values()
    return (float(value), images) if isinstance(value, (int, float)) else None


def _config_of(source: Any, path: Path) -> StudyConfig:
    """The study that a candidate's file comes from. Raises UserError for a file that does not say."""
    if not isinstance(source, dict) or "definition" not in source:
        raise UserError(f"{path}: does not say which model it is for; name a study that does with --study")
    return stored_config(str(source.get("study", path.stem)), str(path), source["definition"], folder_of(path))


def listed_layers(name: str) -> tuple[list[Layer], int]:
    """The layers of a model or of a study's model, and the FLOPs of its denoiser's whole forward pass."""
    from autodiffusion_opt.sampling.compatibility import denoiser_of
    from autodiffusion_opt.sampling.example_call import learn_layers
    from autodiffusion_opt.sampling.layers import list_layers, total_flops
    from autodiffusion_opt.sampling.load import load_configured, load_pipeline

    is_study = name.endswith(".toml") or name in {entry.name for entry in entries(["studies"])}
    config = load_study_config(name) if is_study else None
    if config is None or config.pipeline is None:
        pipeline = load_pipeline(name, device="cpu", with_candidate=False)
    else:
        pipeline = load_configured(config.pipeline, config.base_of("pipeline"))
    denoiser = denoiser_of(pipeline)
    learn_layers(pipeline)
    return list_layers(denoiser), total_flops(denoiser)
