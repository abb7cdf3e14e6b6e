"""The table ``[conditions]`` of an objective: what each image is of. Imports neither torch nor diffusers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from autodiffusion_opt.config import Config
from autodiffusion_opt.errors import UserError, unknown

if TYPE_CHECKING:
    from autodiffusion_opt.sampling.apply import Conditions

DELIMITERS = {".csv": ",", ".tsv": "\t"}
# Which keys belong to which kind.
KEYS = {"none": (), "prompts": ("file", "column", "negative_prompt"), "labels": ("classes",)}


class ConditionsConfig(Config):
    """What each image is of: image i always of the same, entry i modulo their number.

    Attributes:
        kind: ``none``, ``prompts`` or ``labels``.
        file: of prompts: text, one a line; JSON of COCO's captions, the first of each image; or CSV (``.csv``,
            ``.tsv``) with a named column.
        column: of a CSV file.
        negative_prompt: one for all images.
        classes: of labels: how many there are, or which; absent: all of the model's.
    """

    kind: Literal["none", "prompts", "labels"] = "none"
    file: str | None = Field(default=None, min_length=1)
    column: str | None = None
    negative_prompt: str | None = None
    classes: int | tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _keys_of_kind(self) -> ConditionsConfig:
        given = [key for key in ("file", "column", "negative_prompt", "classes") if getattr(self, key) is not None]
        strange = [key for key in given if key not in KEYS[self.kind]]
        if strange:
            allowed = ", ".join(KEYS[self.kind]) or "no other key"
            raise ValueError(f'kind = "{self.kind}" takes {allowed}; got {", ".join(strange)}')
        if self.kind == "prompts" and self.file is None:
            raise ValueError('kind = "prompts" needs file: the prompts, one a line')
        if self.classes is not None and (self.classes == () or (isinstance(self.classes, int) and self.classes < 1)):
            raise ValueError(f"classes must be a number of at least 1, or a list of labels; got {self.classes!r}")
        return self


def bind_conditions(definition: ConditionsConfig, pipeline: Any, base: Path | None = None) -> Conditions:
    """The conditions of a definition, for a pipeline.

    Args:
        definition: the table.
        pipeline: what will be called.
        base: the folder that a relative file starts from; the working folder is tried next.

    Raises:
        UserError: for a file that is not there or holds no prompts, and for a pipeline that takes no such conditions
            or needs others.
    """
    from autodiffusion_opt.sampling.conditions import Labels, Prompts, check_conditions, class_count
    from autodiffusion_opt.sampling.apply import Unconditional

    found: Conditions = Unconditional()
    if definition.kind == "prompts":
        prompts = read_prompts(_find(str(definition.file), base), definition.column)
        found = Prompts(prompts, definition.negative_prompt)
    elif definition.kind == "labels":
        found = Labels(_labels(definition.classes, class_count(pipeline)))
    check_conditions(pipeline, found)
    return found


def read_prompts(path: Path, column: str | None = None) -> tuple[str, ...]:
    """The prompts in a file, in their order, without empty ones. Raises UserError."""
    if column is not None and path.suffix.lower() not in DELIMITERS:
        raise UserError(f"conditions: column is for {', '.join(DELIMITERS)} files; got {path.name}: leave column out")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"conditions: file {path} cannot be read as UTF-8 text: {error}") from None
    if path.suffix.lower() == ".json":
        lines = _captions(text, path)
    elif path.suffix.lower() in DELIMITERS:
        lines = _column(text, path, column)
    else:
        lines = text.splitlines()
    prompts = tuple(stripped for line in lines if (stripped := line.strip()))
    if not prompts:
        raise UserError(f"conditions: file {path} must hold at least one prompt; it holds none")
    return prompts


def _captions(text: str, path: Path) -> list[str]:
    """COCO has about five captions an image; the first of each, so that prompts are as varied as images."""
    try:
        annotations = json.loads(text)["annotations"]
        first: dict[object, str] = {}
        for index, one in enumerate(annotations):
            first.setdefault(one.get("image_id", ("none", index)), str(one["caption"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f'conditions: file {path} must be as COCO\'s captions: {{"annotations": [{{"caption": "..."}}, ...]}}'
        ) from None
    return list(first.values())


def _column(text: str, path: Path, column: str | None) -> list[str]:
    rows = csv.DictReader(text.splitlines(keepends=True), delimiter=DELIMITERS[path.suffix.lower()])
    names = list(rows.fieldnames or [])
    if column is None or column not in names:
        raise unknown(f"conditions: column (of {path.name})", str(column or ""), names)
    return [row[column] or "" for row in rows]


def _labels(classes: int | tuple[int, ...] | None, count: int | None) -> tuple[int, ...]:
    """The labels, within the model's ``count`` classes where that is known. Raises UserError."""
    if classes is None and count is None:
        raise UserError("conditions: the model does not say how many classes it has; give classes")
    labels = tuple(range(classes or count or 0)) if not isinstance(classes, tuple) else classes
    wrong = [label for label in labels if label < 0 or (count is not None and label >= count)]
    if wrong:
        limit = "0 or more" if count is None else f"from 0 to {count - 1}, the model's classes"
        raise UserError(f"conditions: classes must be {limit}; got {wrong[0]}")
    return labels


def _find(name: str, base: Path | None) -> Path:
    given = Path(name).expanduser()
    tried = [given] if given.is_absolute() or base is None else [base / given, given]
    for path in tried:
        if path.is_file():
            return path
    raise UserError(f"conditions: file {name!r} is not there ({', '.join(str(path) for path in tried)})")
