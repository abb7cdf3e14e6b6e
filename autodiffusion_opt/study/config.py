"""What a study's file says, with the files that it names: read, validated, resolved. No torch, no SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from autodiffusion_opt.catalogue import Section, find, read_toml
from autodiffusion_opt.config import Config, build, build_kind, combine
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective import KINDS as OBJECTIVES
from autodiffusion_opt.objective import ObjectiveConfig
from autodiffusion_opt.optimizer import KINDS as OPTIMIZERS
from autodiffusion_opt.optimizer import OptimizerConfig
from autodiffusion_opt.space import KINDS as SPACES
from autodiffusion_opt.space import SpaceConfig

# Keys that say where something runs, not what: they may change between two runs of a study.
NOT_PART = {"pipeline": {"device", "offload"}}


class StudyFile(Config):
    """A file under ``studies/``.

    Attributes:
        space: a name in ``spaces/``, a path, or a table.
        objective: a name in ``objectives/``, a path, or a table.
        optimizer: the table ``[optimizer]``.
        trials: the total wanted, baselines included.
        seed: of the optimizer.
    """

    space: str | dict[str, Any]
    objective: str | dict[str, Any]
    optimizer: dict[str, Any] = Field(default_factory=lambda: {"kind": "evolution"})
    trials: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class StudyConfig:
    """A study, resolved: everything that decides its results, and how many trials are wanted."""

    name: str
    path: Path
    space: SpaceConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    trials: int
    seed: int
    ranking: tuple[tuple[int, ...], ...] = ()  # of layers, where a stored definition has it: not measured again

    def definition(self) -> dict[str, Any]:
        """What must not change under the study's name, as JSON values."""
        return {
            "space": self.space.model_dump(mode="json", exclude=NOT_PART),
            "objective": self.objective.model_dump(mode="json"),
            "optimizer": self.optimizer.model_dump(mode="json"),
            "seed": self.seed,
        }

    def with_seed(self, seed: int) -> StudyConfig:
        """The same study with another seed; it gets a name of its own, since it is another sequence of trials."""
        return self if seed == self.seed else replace(self, seed=seed, name=f"{self.name}-seed{seed}")

    def on_device(self, device: str) -> StudyConfig:
        """The same study on another device."""
        pipeline = self.space.pipeline.model_copy(update={"device": device})
        return replace(self, space=self.space.model_copy(update={"pipeline": pipeline}))


def load_study_config(name: str) -> StudyConfig:
    """The study of a catalogue name or a path.

    Raises:
        UserError: all that is wrong with the study's file and those that it names, at once.
    """
    path = find("studies", name)
    table = {"optimizer": {"kind": "evolution"}} | read_toml(path)
    errors: list[UserError] = []
    study = _try(errors, lambda: build(StudyFile, table, str(path)))
    space = _part(SPACES, "spaces", "space", table.get("space"), path, errors)
    objective = _part(OBJECTIVES, "objectives", "objective", table.get("objective"), path, errors)
    optimizer = _try(errors, lambda: build_kind(OPTIMIZERS, "optimizer", table["optimizer"], f"{path}: optimizer"))
    combine(errors)
    return StudyConfig(path.stem, path, space, objective, optimizer, study.trials, study.seed)


def load_space(name: str) -> SpaceConfig:
    """The space of a catalogue name or a path. Raises UserError."""
    path = find("spaces", name)
    return build_kind(SPACES, "space", read_toml(path), str(path))


def _part(
    kinds: Mapping[str, Any],
    section: Section,
    what: str,
    given: object,
    path: Path,
    errors: list[UserError],
) -> Any:
    """The part that a study's file names or holds; None where it does neither, which is told with the file."""

    def load() -> Any:
        if isinstance(given, dict):
            return build_kind(kinds, what, given, f"{path}: {what}")
        if not isinstance(given, str):
            return None
        file = _beside(path, given) or find(section, given, near=path)
        return build_kind(kinds, what, read_toml(file), str(file))

    return _try(errors, load)


def _beside(path: Path, given: str) -> Path | None:
    """A path is meant from the folder of the file that names it."""
    found = path.parent / given
    return found if given.endswith(".toml") and found.is_file() else None


def _try(errors: list[UserError], load: Any) -> Any:
    try:
        return load()
    except UserError as error:
        errors.append(error)
        return None


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key: old -> new`` for every value that differs, nested keys with dots."""
    lines = []
    for key in sorted({*old, *new}):
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            lines += differences(one, other, f"{prefix}{key}.")
        elif one != other:
            lines.append(f"{prefix}{key}: {one!r} -> {other!r}")
    return lines


def stored_config(name: str, path: Path, definition: Mapping[str, Any]) -> StudyConfig:
    """The plan of a stored definition (:meth:`StudyConfig.definition`). Raises UserError for one that is none.

    Relative paths in it start from the folder of ``path``, or of its key ``file``, where it has one.
    """
    missing = [key for key in ("space", "objective") if key not in definition]
    if missing:
        raise UserError(f"{path}: the definition must have space and objective; {', '.join(missing)} is missing")
    return StudyConfig(
        name,
        Path(str(definition.get("file", path))),
        build_kind(SPACES, "space", definition["space"], f"{path}: space"),
        build_kind(OBJECTIVES, "objective", definition["objective"], f"{path}: objective"),
        build_kind(OPTIMIZERS, "optimizer", definition.get("optimizer", {"kind": "random"}), f"{path}: optimizer"),
        int(definition.get("trials", 1)),
        int(definition.get("seed", 0)),
        tuple(tuple(third) for third in definition.get("ranking", ())),
    )
