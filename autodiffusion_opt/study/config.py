"""What a study says: its file, the files that it names, or what Python handed over. Resolved; no torch, no SQL."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from optuna.samplers import BaseSampler
from pydantic import Field

from autodiffusion_opt.catalogue import Section, find, parse_toml, read_toml
from autodiffusion_opt.config import Config, build, combine, kind_in
from autodiffusion_opt.errors import UserError, reason_of, unknown_text
from autodiffusion_opt.objective import METRICS, CandidateMetric, ImageMetric, Objective, ObjectiveConfig
from autodiffusion_opt.optimizer import DEFAULT, OPTIMIZERS, OptimizerConfig
from autodiffusion_opt.optimizer.parameters import describe_sampler
from autodiffusion_opt.paths import absolute, folder_of
from autodiffusion_opt.sampling.config import PipelineConfig
from autodiffusion_opt.space import SPACES, Space, SpaceConfig
from autodiffusion_opt.space.model_info import ModelInfo
from autodiffusion_opt.text import quoted
from autodiffusion_opt.trials.attributes import FINGERPRINT

# Keys of [pipeline] that say where something runs, not what: they may change between two runs of a study.
WHERE_KEYS = {"device", "offload"}
PYTHON = "python"
LONGEST_NAME = 512
# Changes that do not show in the name of a changed study: of no part of the definition; the seed is named apart.
UNNAMED = (["trials"], ["seed"], *(["pipeline", key] for key in sorted(WHERE_KEYS)))
Result = TypeVar("Result")


class StudyFile(Config):
    """A file under ``studies/``. A relative path, here and in the tables, starts from the folder of the file it is in.

    Attributes:
        pipeline: the table ``[pipeline]``, the path of a file that holds it, or the name of a model.
        space: a name in ``spaces/``, a path, or a table.
        objective: a name in ``objectives/``, a path, or a table.
        optimizer: the table ``[optimizer]``, the path of a file that holds it, or the name of a kind.
        trials: the total wanted, baselines included.
        seed: of the optimizer.
    """

    pipeline: str | dict[str, Any]
    space: str | dict[str, Any]
    objective: str | dict[str, Any]
    optimizer: str | dict[str, Any] = DEFAULT
    trials: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class StudyConfig:
    """A study, resolved: everything that decides its results, and how many trials are wanted.

    Attributes:
        name: of the study in SQL.
        path: its file, or where it came from, for messages.
        base: the folder that relative paths start from: the file's; the working folder for a study made in Python.
        bases: the same of the parts that stand in files of their own, by the part's name.
        pipeline: its table; None for an objective that needs no pipeline.
        pipeline_object: a pipeline handed over in Python, in place of one that is loaded.
        space: its table, or a space made in Python.
        objective: its table, or an objective made in Python.
        optimizer: its table, or an Optuna sampler.
        trials: how many are wanted.
        seed: of the optimizer.
        ranking: of layers, where a stored definition has it: it is not measured again.
        model_info: the model's numbers, where there is no pipeline to read them from.
    """

    name: str
    path: str
    base: Path
    pipeline: PipelineConfig | None
    space: SpaceConfig | Space
    objective: ObjectiveConfig | ImageMetric | CandidateMetric | Objective
    optimizer: OptimizerConfig | BaseSampler
    trials: int
    seed: int
    pipeline_object: Any = None
    ranking: tuple[tuple[int, ...], ...] = ()
    model_info: ModelInfo | None = None
    bases: Mapping[str, Path] = field(default_factory=dict)

    def base_of(self, part: str) -> Path:
        """The folder that relative paths in a part (``pipeline``, ``objective`` ...) start from."""
        return self.bases.get(part, self.base)

    def definition(self) -> dict[str, Any]:
        """What must not change under the study's name, as JSON values."""
        pipeline = None if self.pipeline is None else self.pipeline.model_dump(mode="json", exclude=WHERE_KEYS)
        return {
            "pipeline": pipeline,
            "space": _described(self.space),
            "objective": _described(self.objective),
            "optimizer": _described(self.optimizer),
            "seed": self.seed,
        }

    def with_seed(self, seed: int) -> StudyConfig:
        """The same study with another seed; it gets a name of its own, since it is another sequence of trials."""
        return self if seed == self.seed else replace(self, seed=seed, name=check_name(f"{self.name}-seed{seed}"))

    def on_model(self, model: str | None) -> StudyConfig:
        """The same study of another model, given on the command line; None: of its own. Raises UserError."""
        if model is None:
            return self
        if self.pipeline is None:
            raise UserError(f"{self.path}: this study has no pipeline whose model could be another")
        pipeline = self.pipeline.model_copy(update={"model": model})
        return replace(self, pipeline=pipeline, bases={**self.bases, "pipeline": Path.cwd()}, ranking=())

    def reporting(self, names: Iterable[str]) -> StudyConfig:
        """The same study with further values reported (``report`` in its objective). Raises UserError."""
        more = tuple(names)
        if not more:
            return self
        if not isinstance(self.objective, ObjectiveConfig):
            raise UserError(f"{self.path}: --report is for an objective that is a table of metrics; this one is not")
        table = {key: getattr(self.objective, key) for key in self.objective.model_fields_set}
        table["report"] = (*(self.objective.report or ()), *more)
        return replace(self, objective=build(type(self.objective), table, f"{self.path}: --report"))

    def on_device(self, device: str | None) -> StudyConfig:
        """The same study on another device; None: on its own."""
        if device is None or self.pipeline is None:
            return self
        return replace(self, pipeline=self.pipeline.model_copy(update={"device": device}))


def _described(part: Any) -> Any:
    """A part of a study as JSON values. Raises UserError for an object that cannot be compared when it is resumed."""
    if isinstance(part, Config):
        return part.model_dump(mode="json")
    if isinstance(part, BaseSampler):
        return {PYTHON: "sampler", **describe_sampler(part)}
    if hasattr(part, "definition"):
        return part.definition()
    name = type(part).__qualname__
    identity = getattr(part, "identity", "") or (repr(part) if is_dataclass(part) else "")
    if not identity:
        raise UserError(
            f"{name} needs an attribute identity: text that changes whenever it would give other results, so that a "
            "resumed study knows that it is the same"
        )
    return {PYTHON: name, "identity": identity}


def load_study_config(name: str, overrides: Iterable[str] = ()) -> StudyConfig:
    """The study of a catalogue name or a path.

    Args:
        name: of the study's file.
        overrides: ``key=value`` in place of what the file says; dotted keys, values as in TOML; of two with one key
            the later counts. A study whose definition they change is called ``NAME+key=value``.

    Raises:
        UserError: all that is wrong with the study's file and those that it names, at once.
    """
    path = find("studies", name)
    tables: dict[str, Any] = {"optimizer": {"kind": DEFAULT}} | read_toml(path)
    changes: list[Change] = []
    for change in map(_parsed, overrides):  # of two of one key the later counts
        changes = [*(earlier for earlier in changes if earlier[0] != change[0]), change]
    errors: list[UserError] = []
    if not changes:
        return _resolved(check_name(path.stem), path, tables, errors)
    original = _resolved(path.stem, path, tables, errors)
    changed = _resolved(path.stem, path, tables, errors, changes)
    if changed.definition() == original.definition():
        return changed
    named = (f"{'.'.join(keys)}={text}" for keys, _, text in changes if keys not in UNNAMED)
    seeded = changed.seed != original.seed
    return replace(changed, name=check_name("+".join([path.stem, *named]) + (f"-seed{changed.seed}" if seeded else "")))


def check_name(name: str) -> str:
    """The name of a study that is to be kept in SQL. Raises UserError for one that some database cannot hold."""
    if not 1 <= len(name) <= LONGEST_NAME:
        raise UserError(
            f"a study's name must have at most {LONGEST_NAME} characters, which all databases hold; {quoted(name)} has "
            f"{len(name):,}: copy its file under a shorter name"
        )
    if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        raise UserError(f"a study's name must be text in UTF-8 without NUL; got {quoted(name)}: rename its file")
    return name


# A dotted key, its value, and the value's text.
Change = tuple[list[str], Any, str]


def _parsed(text: str) -> Change:
    """``space.steps=6`` as keys and a value: TOML's, or text where it is none."""
    key, separator, value = text.partition("=")
    keys = [part.strip() for part in key.split(".")]
    if not separator or not all(keys):
        raise UserError(f"--set must be key=value, such as space.steps=6; got {quoted(text)}")
    if keys[0] not in StudyFile.model_fields:
        raise UserError(f"--set: {unknown_text('the first key', keys[0], StudyFile.model_fields)}")
    value = value.strip()
    try:
        return keys, parse_toml(f"value = {value}")["value"], value
    except tomllib.TOMLDecodeError:
        return keys, value, value
    except ValueError as error:
        raise UserError(f"--set {quoted(text)}: {reason_of(error)}") from None


def _changed(tables: dict[str, Any], changes: Iterable[Change]) -> dict[str, Any]:
    """The tables with the changes made in copies; the tables that they reach into are written out already."""
    for keys, value, text in changes:
        tables = dict(tables)
        table = tables
        for key in keys[:-1]:
            inner = table.get(key, {})
            if not isinstance(inner, Mapping):
                raise UserError(f"--set {'.'.join(keys)}={text}: {key} is no table; it is {quoted(inner)}")
            table[key] = dict(inner)
            table = table[key]
        table[keys[-1]] = value
    return tables


def _resolved(
    name: str, path: Path, tables: dict[str, Any], errors: list[UserError], changes: Iterable[Change] = ()
) -> StudyConfig:
    """A study's file with the files that it names read, the changes made, and everything checked."""
    changes = list(changes)
    sections: dict[str, Section | None] = {
        "pipeline": None,
        "space": "spaces",
        "objective": "objectives",
        "optimizer": None,
    }
    where = {part: f"{path}: {part}" for part in sections}
    bases: dict[str, Path] = {}
    # A change of a whole part comes before its name is looked up, a change inside it after.
    tables = attempt(errors, lambda: _changed(tables, (change for change in changes if len(change[0]) == 1))) or tables
    for part, section in sections.items():
        if isinstance(tables.get(part), str):
            named = attempt(errors, partial(find_part, part, section, tables[part], where[part], near=path))
            if named is not None:
                tables = {**tables, part: named.table}
                where[part] = named.where
                bases |= {} if named.file is None else {part: folder_of(named.file)}
    tables = attempt(errors, lambda: _changed(tables, (change for change in changes if len(change[0]) > 1))) or tables
    study = attempt(errors, lambda: build(StudyFile, tables, str(path)))
    pipeline = _table_of(errors, tables, "pipeline", lambda table: build(PipelineConfig, table, where["pipeline"]))
    space = _table_of(errors, tables, "space", lambda table: build_space(table, where["space"]))
    objective = _table_of(errors, tables, "objective", lambda table: build_objective(table, where["objective"]))
    optimizer = _table_of(errors, tables, "optimizer", lambda table: build_optimizer(table, where["optimizer"]))
    combine(dict.fromkeys(errors))
    parts = (pipeline, space, objective, optimizer)
    return StudyConfig(name, str(path), folder_of(path), *parts, study.trials, study.seed, bases=bases)


def _table_of(errors: list[UserError], tables: Mapping[str, Any], part: str, make: Callable[[Any], Result]) -> Any:
    """The part of a study's file; None where it is no table, which :class:`StudyFile` tells."""
    table = tables.get(part)
    return attempt(errors, lambda: make(table)) if isinstance(table, Mapping) else None


@dataclass(frozen=True)
class NamedPart:
    """A part of a study that is given by a name.

    Attributes:
        table: what the name stands for.
        where: where that stands, for messages.
        file: which holds it; None for a model or a kind, which no file holds.
    """

    table: dict[str, Any]
    where: str
    file: Path | None = None


def find_part(part: str, section: Section | None, name: str, where: str, near: Path | None = None) -> NamedPart:
    """The part of a study that a name stands for. Raises UserError.

    Args:
        part: of the study.
        section: of the catalogue, in which the name is looked up; None: the part has no section.
        name: in the section; or the path of a file; without a section, a model or a kind.
        where: the part, for messages.
        near: the file that gives the name; None: Python does.
    """
    if section is not None:
        file = find(section, name, near=near)
    elif name.endswith(".toml"):
        file = absolute(name, folder_of(near) if near else None)
        if not file.is_file():
            raise UserError(f"{where}: there is no file {name} ({file})")
    else:
        return NamedPart({"model" if part == "pipeline" else "kind": name}, where)
    return NamedPart(read_toml(file), str(file), file)


def build_space(table: object, where: str) -> SpaceConfig:
    """A table ``[space]``. Raises UserError."""
    if isinstance(table, Mapping) and "pipeline" in table:
        raise UserError(f"{where}: [pipeline] is a table of the study, beside [space], and not of the space")
    space: SpaceConfig = build(kind_in(table, SPACES, where), table, where)
    return space


def build_objective(table: object, where: str) -> ObjectiveConfig:
    """A table ``[objective]``. Raises UserError."""
    objective: ObjectiveConfig = build(kind_in(table, METRICS, where).Config, table, where)
    return objective


def build_optimizer(table: object, where: str) -> OptimizerConfig:
    """A table ``[optimizer]``. Raises UserError."""
    optimizer: OptimizerConfig = build(kind_in(table, OPTIMIZERS, where), table, where)
    return optimizer


def made_in_python(part: Any) -> bool:
    """Whether a part of a stored definition was an object, of which SQL holds a description only."""
    if not isinstance(part, Mapping):
        return part is None
    if PYTHON in part or str(part.get("model", "")).startswith(f"{PYTHON}:"):
        return True
    return any(isinstance(value, Mapping) and PYTHON in value for value in part.values())


def check_version(path: str, definition: Mapping[str, Any]) -> None:
    """Raises UserError for a definition that version 0.1.0 stored: its space held the pipeline."""
    space = definition.get("space")
    if isinstance(space, Mapping) and "pipeline" in space:
        raise UserError(
            f"{path}: this study was stored by version 0.1.0, in which [pipeline] was a part of the space; this "
            "version cannot continue it. Run it under another name, or with another --storage"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key: old -> new`` for every value that differs, nested keys with dots."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {quoted(before)} -> {quoted(after)}")
    return lines


def changes_since(stored: Mapping[str, Any], config: StudyConfig) -> list[str]:
    """What differs between a study's stored definition and its files, a line each, as far as no model must be loaded.

    Raises:
        UserError: for a definition that version 0.1.0 stored.
    """
    check_version(config.path, stored)
    of_files = {key: value for key, value in stored.items() if key != FINGERPRINT}
    return differences(of_files, config.definition())


def attempt(errors: list[UserError], load: Callable[[], Result]) -> Any:
    try:
        return load()
    except UserError as error:
        errors.append(error)
        return None
