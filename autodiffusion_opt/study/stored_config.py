"""A study as its stored definition says: in SQL, or in a candidate's file, which anybody may have written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from autodiffusion_opt.config import Config, build, combine
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.paths import absolute, folder_of
from autodiffusion_opt.sampling.config import PipelineConfig
from autodiffusion_opt.study.config import (
    StudyConfig,
    attempt,
    build_objective,
    build_optimizer,
    build_space,
    check_version,
    made_in_python,
)
from autodiffusion_opt.text import quoted


class _Beside(Config):
    """What a stored definition holds beside its parts.

    Attributes:
        trials: the total wanted.
        seed: of the optimizer.
        file: the study's.
        folders: that relative paths in parts start from, by the part's name.
        ranking: of layers.
    """

    trials: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    file: str | None = None
    folders: dict[str, str] = Field(default_factory=dict)
    ranking: tuple[tuple[int, ...], ...] = ()


def stored_config(name: str, path: str, definition: Mapping[str, Any], base: Path | None = None) -> StudyConfig:
    """The study of a stored definition (:meth:`StudyConfig.definition`).

    Args:
        name: of the study.
        path: where the definition was read, for messages.
        definition: JSON values. Relative paths in its parts start from the folder of ``file``, the study's; those of
            a part in ``folders`` from the folder there.
        base: the folder that relative paths start from where no ``file`` is given; None: the working folder.

    Raises:
        UserError: for a definition of another version or from Python, or what is none.
    """
    if not isinstance(definition, Mapping):
        raise UserError(f"{path}: the definition must be a table; got {quoted(definition)}")
    check_version(path, definition)
    missing = [key for key in ("pipeline", "space", "objective") if key not in definition]
    if missing:
        raise UserError(f"{path}: the definition must have {', '.join(missing)}; it has not")
    definition = {"optimizer": {"kind": "random"}} | dict(definition)
    python = [key for key in ("pipeline", "space", "objective", "optimizer") if made_in_python(definition.get(key))]
    if python:
        raise UserError(
            f"{path}: the parts {', '.join(python)} of this study came from Python, and cannot be made from what SQL "
            "holds: use the methods of ado.Study in Python, verify and export say"
        )
    given = {key: definition[key] for key in _Beside.model_fields if key in definition}
    errors: list[UserError] = []
    beside = attempt(errors, lambda: build(_Beside, given, path))
    parts = (
        attempt(errors, lambda: build(PipelineConfig, definition["pipeline"], f"{path}: pipeline")),
        attempt(errors, lambda: build_space(definition["space"], f"{path}: space")),
        attempt(errors, lambda: build_objective(definition["objective"], f"{path}: objective")),
        attempt(errors, lambda: build_optimizer(definition["optimizer"], f"{path}: optimizer")),
    )
    combine(errors)
    file = beside.file
    base = absolute("", base) if file is None else folder_of(absolute(file, base))
    return StudyConfig(
        name,
        path if file is None else file,
        base,
        *parts,
        beside.trials,
        beside.seed,
        ranking=beside.ranking,
        bases={part: absolute(folder, base) for part, folder in beside.folders.items()},
    )
