"""Studies side by side: which optimizer, and how many steps?

Studies that agree in pipeline, space and objective are compared by optimizer, each seed a repeat. Studies that differ
in the number of steps too are a front of cost against value. Others are refused, with what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import optuna
from optuna.study import StudyDirection

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.goals import Direction
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.space.baselines import compared_with
from autodiffusion_opt.study.comparison import ComparedStudy, OptimizerComparison, Rescoring
from autodiffusion_opt.study.config import differences
from autodiffusion_opt.study.curves import curve_of
from autodiffusion_opt.study.problem import load_problem
from autodiffusion_opt.study.results import StoredStudy, stored_study, study_name
from autodiffusion_opt.study.steps_front import StepsComparison
from autodiffusion_opt.study.stored_config import stored_config
from autodiffusion_opt.study.verify import rescore
from autodiffusion_opt.trials.attributes import FINGERPRINT
from autodiffusion_opt.trials.database import storage_url, without_password
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.storage import Storage

# Percent of the best value within which a search has to come.
WITHIN = (5.0, 20.0)
# What must be the same in studies that are compared.
SHARED = ("pipeline", "space", "objective", FINGERPRINT)
# Keys of a space that say how many steps there may be: studies of a front differ in these alone.
STEPS_KEYS = ("steps", "nfe", "n_max", "max_flops", "steps_min", "steps_max")


def compare(
    studies: str | Iterable[str],
    storage: str | None = None,
    *,
    within: Sequence[float] = WITHIN,
    verify: bool = False,
    images: int = 5000,
    repeats: int = 3,
    device: str | None = None,
    progress: Progress = silent,
) -> OptimizerComparison | StepsComparison:
    """Studies of one storage side by side.

    Args:
        studies: names, files, or patterns such as ``digits-4*``.
        storage: an SQLAlchemy URL; None: ``$AUTODIFFUSION_STORAGE``, else SQLite below the working folder.
        within: percent of the best value: what it takes to come so near is told.
        verify: whether the winners are measured again, on fresh noise; else the search's values are told.
        images: a repeat, to verify.
        repeats: how often, each with noise of its own.
        device: another than the studies', to verify on.
        progress: is told of the images that are measured.

    Returns:
        A comparison of optimizers; or of numbers of steps, where the studies differ in these.

    Raises:
        UserError: for studies that are not there, have no complete trial or several values, or differ in more than
            optimizer, seed and number of steps.
    """
    if not all(percent > 0 for percent in within):
        raise UserError(f"within must be percentages above 0; got {', '.join(map(str, within))}")
    url = storage_url(storage)
    database = open_storage(url, create=False)
    given = [studies] if isinstance(studies, str) else studies
    stored = [stored_study(name, database) for name in _names(given, database)]
    if not stored:
        raise UserError("compare needs the names of studies; got none")
    for study in stored:
        _check_comparable(study)
    is_front = _differ_in_steps(stored)
    compared = _compared(stored, needs_winner=is_front)
    if is_front:
        _check_costs(compared)
    rescoring = Rescoring(images, repeats) if verify else None
    if rescoring is not None:
        compared = _rescored(compared, stored, without_password(url), rescoring, device, progress)
    direction: Direction = "maximize" if stored[0].study.direction == StudyDirection.MAXIMIZE else "minimize"
    (value_name,) = stored[0].value_names
    if is_front:
        return StepsComparison.of(compared, value_name, direction, rescoring)
    _check_repeats(compared)
    if all(study.winner is None for study in compared):
        stored[0].top(1)  # raises UserError: nothing keeps to its bounds
    return OptimizerComparison.of(compared, value_name, direction, within, rescoring)


def percentages(text: str) -> tuple[float, ...]:
    """``5,20`` as numbers. Raises UserError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--within must be percentages with commas between them, such as 5,20; got {text!r}") from None


def _names(given: Iterable[str], storage: Storage) -> list[str]:
    """The names of studies, each once; of a pattern with ``*``, those in the storage that it fits."""
    stored = sorted(optuna.get_all_study_names(storage))
    names: list[str] = []
    for text in given:
        name = study_name(text)
        # Of patterns, only * is one: names of changed studies hold brackets (objective.images=[100, 500]).
        pattern = name.replace("[", "[[]")
        fitting = [known for known in stored if fnmatchcase(known, pattern)] if "*" in name else [name]
        if not fitting:
            where = without_password(str(storage.url))
            raise UserError(f"no study in {where} fits {text!r}; there are: {', '.join(stored) or '(none)'}")
        names += fitting
    return list(dict.fromkeys(names))


def _check_comparable(stored: StoredStudy) -> None:
    """Raises UserError for a study without a complete trial, or with several values."""
    if stored.has_front:
        listed = ", ".join(stored.value_names)
        raise UserError(
            f"compare is for studies with one value; {stored.name!r} has {listed}: see its front with "
            f"autodiffusion-opt best {stored.name}"
        )
    if not stored.complete():
        stored.top(1)  # raises UserError, which says what to run


def _differ_in_steps(stored: Sequence[StoredStudy]) -> bool:
    """Whether the studies differ in the number of steps. Raises UserError where they differ in more."""
    first, *rest = stored
    refused = []
    for study in rest:
        differing = differences(_shared(first, without_steps=True), _shared(study, without_steps=True))
        if differing:
            refused.append(f"{first.name} -> {study.name}:")
            refused += [f"  {line}" for line in differing]
    if refused:
        lines = "\n".join(refused)
        raise UserError(
            "studies that are compared must have the same pipeline, space and objective, or differ in the number of "
            f"steps alone ({', '.join(STEPS_KEYS)}); these differ in more:\n{lines}"
        )
    return any(differences(_shared(first), _shared(study)) for study in rest)


def _shared(stored: StoredStudy, *, without_steps: bool = False) -> dict[str, Any]:
    """What must be the same in studies that are compared."""
    shared = {part: stored.definition.get(part) for part in SHARED}
    if without_steps and isinstance(shared["space"], Mapping):
        shared["space"] = {key: value for key, value in shared["space"].items() if key not in STEPS_KEYS}
    return shared


def _compared(stored: Sequence[StoredStudy], *, needs_winner: bool) -> list[ComparedStudy]:
    """What each study found. Raises UserError where one needs a winner and has none."""
    tables = [study.definition["optimizer"] for study in stored]
    labels = _short([study.name for study in stored])
    compared = []
    for study, optimizer, table in zip(stored, _optimizer_names(tables), tables, strict=True):
        best = study.top(1)[0] if needs_winner else study.complete()[0]
        compared.append(
            ComparedStudy(
                name=study.name,
                label=labels[study.name],
                optimizer=optimizer,
                table=table,
                seed=int(study.definition["seed"]),
                curve=curve_of(study),
                winner=None if best.excess else best,
                own=compared_with(study.baselines()),
            )
        )
    return compared


def _short(names: Sequence[str]) -> dict[str, str]:
    """Names of changed studies (``digits-4+space.steps=6``) without the parts that all of them have."""
    shared = set.intersection(*(set(name.split("+")) for name in names))
    return {name: "+".join(part for part in name.split("+") if part not in shared) or name for name in names}


def _optimizer_names(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """The kind of each optimizer; with the keys that tell it from others of its kind, where there are any."""
    names = []
    for table in tables:
        kind = table.get("kind")
        alike = [given for given in tables if given.get("kind") == kind]
        everywhere = {key for given in alike for key in given}
        keys = sorted(key for key in everywhere if any(given.get(key) != table.get(key) for given in alike))
        names.append(" ".join([str(kind), *(f"{key}={table.get(key)}" for key in keys)]))
    return names


def _check_repeats(compared: Sequence[ComparedStudy]) -> None:
    """Raises UserError for studies that agree in seed too: they are no repeats."""
    first: dict[tuple[str, int], str] = {}
    for study in compared:
        same = first.setdefault((study.optimizer, study.seed), study.name)
        if same != study.name:
            raise UserError(
                f"the studies of an optimizer must differ in their seeds; {same!r} and {study.name!r} are both "
                f"{study.optimizer} with seed {study.seed}: leave one of them out"
            )


def _check_costs(compared: Sequence[ComparedStudy]) -> None:
    """Raises UserError for studies of different numbers of steps whose candidates' costs are not known."""
    unknown = [study.name for study in compared if not study.cost("nfe") > 0]
    if unknown:
        raise UserError(
            f"studies with different numbers of steps are compared by their NFE; that of {', '.join(unknown)} is not "
            "known: an objective of your own says it in its scores"
        )


def _rescored(
    compared: Sequence[ComparedStudy],
    stored: Sequence[StoredStudy],
    where: str,
    rescoring: Rescoring,
    device: str | None,
    progress: Progress,
) -> list[ComparedStudy]:
    """The studies with their winners and baselines measured again, all on the same fresh noise.

    They agree in pipeline and objective, so those of the first measure all. Raises UserError where these cannot be made
    from what SQL holds.
    """
    config = stored_config(stored[0].name, f"{stored[0].name} in {where}", stored[0].definition).on_device(device)
    problem = load_problem(config, progress=progress)
    results = [result for study in compared for result in (study.winner, study.own) if result is not None]
    # Equal candidates (own of studies with as many steps) are measured once.
    candidates: dict[str, Candidate] = {result.candidate.to_json(): result.candidate for result in results}
    scored = rescore(problem, candidates, images=rescoring.images, repeats=rescoring.repeats, progress=progress)
    return [
        replace(
            study,
            rescored=None if study.winner is None else scored[study.winner.candidate.to_json()],
            own_rescored=None if study.own is None else scored[study.own.candidate.to_json()],
        )
        for study in compared
    ]
