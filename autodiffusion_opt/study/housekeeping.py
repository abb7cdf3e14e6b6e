"""Studies removed, renamed and copied, unless a worker is at them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.study.previews import copy_previews, preview_id, remove_previews
from autodiffusion_opt.study.results import study_name
from autodiffusion_opt.trials.attributes import ARTIFACT, WORKER
from autodiffusion_opt.trials.claims import is_alive
from autodiffusion_opt.trials.moving import attributes_in_use, copy_study, delete_study, rename_study
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.queries import queries_of
from autodiffusion_opt.trials.storage import Storage
from autodiffusion_opt.trials.studies import need_study

# SQL's column takes no more.
LONGEST_NAME = 512


@dataclass(frozen=True)
class Moved:
    """A study that was removed, renamed or copied, or will be.

    Attributes:
        study: its name, as it is now.
        trials: how many it has, in all states.
    """

    study: str
    trials: int


def removable(names: Iterable[str], storage: Storage) -> list[Moved]:
    """What :func:`remove` would remove, each study once. Raises UserError as that does."""
    studies = {name: _idle_study(name, storage) for name in map(study_name, names)}
    return [Moved(name, sum(queries_of(study).states().values())) for name, study in studies.items()]


def remove(names: Iterable[str], storage: Storage) -> list[Moved]:
    """Delete studies with all their trials; none, where one cannot be deleted.

    Args:
        names: of the studies, or their files.
        storage: the database.

    Raises:
        UserError: for a study that is not there, or at which a worker works.
    """
    removed = removable(names, storage)
    for each in removed:
        study = need_study(storage, each.study)
        pictures = set(filter(None, map(preview_id, study.get_trials(deepcopy=False))))
        delete_study(study)
        kept = attributes_in_use(storage, (ARTIFACT + picture for picture in pictures))  # by copies of the study
        remove_previews({picture for picture in pictures if ARTIFACT + picture not in kept}, str(storage.url))
    return removed


def rename(name: str, new: str, storage: Storage) -> Moved:
    """Give a study another name; what it is called now.

    Args:
        name: of the study, or its file.
        new: its new name, or its file's new name.
        storage: the database.

    Raises:
        UserError: for a study that is not there, or at which a worker works; a name that another study has, or that
            none can have.
    """
    new = _checked(study_name(new))
    study = _idle_study(study_name(name), storage)
    rename_study(study, new)
    return Moved(new, sum(queries_of(study).states().values()))


def copy(name: str, storage: Storage, url: str, new: str | None = None) -> Moved:
    """Copy a study, all of it, to another database; what the copy is called.

    Args:
        name: of the study, or its file.
        storage: the database that it is in.
        url: of the database that it is copied to; an SQLite file is made where there is none.
        new: the copy's name; None: the study's.

    Raises:
        UserError: as :func:`rename`, or for a database that cannot be opened or written.
    """
    new = None if new is None else _checked(study_name(new))
    study = _idle_study(study_name(name), storage)
    new = study.study_name if new is None else new
    count = copy_study(study, open_storage(url), new)
    copy_previews(study.get_trials(deepcopy=False), str(storage.url), url)
    return Moved(new, count)


def _idle_study(name: str, storage: Storage) -> optuna.Study:
    """A study at which nobody works, as far as can be told. Raises UserError."""
    study = need_study(storage, name)
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    alive = [_worker(trial) for trial in running if is_alive(study, trial)]
    if alive:
        raise UserError(
            f"nobody may work at the study {name!r}, and {', '.join(alive)}: stop the run, or wait for its end. A "
            "worker that was killed on another machine counts as alive for two minutes more"
        )
    return study


def _worker(trial: FrozenTrial) -> str:
    worker = str(trial.user_attrs.get(WORKER, ""))
    host, _, process = worker.rpartition(":")[0].rpartition(":")
    who = f"process {process} on {host}" if host else "a process"
    return f"{who} runs trial {trial.number}"


def _checked(name: str) -> str:
    """The same name. Raises UserError for what a study cannot be called."""
    is_plain = name.isprintable() and name == name.strip() and not name.endswith(".toml")
    if not is_plain or not 0 < len(name) <= LONGEST_NAME:
        raise UserError(
            f"a study's name must have 1 to {LONGEST_NAME} printable characters, the first and the last no space, and "
            f"not end in .toml; got {name[:80]!r}"
        )
    return name
