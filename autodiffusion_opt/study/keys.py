"""What the keys of a table may be, from the class of the table: for docs/keys.md, and for studies that are written."""

from __future__ import annotations

import inspect
import re
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, Union

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from autodiffusion_opt.config import Config


@dataclass(frozen=True)
class Key:
    """A key of a table.

    Attributes:
        name: in TOML.
        type: in words, as Markdown, with the limits of its numbers: ``whole number, at least 1``.
        is_needed: whether it must be there.
        default: where it may be left out; None: absent.
        meaning: from the docstring of the table's class, as Markdown.
        annotation: of the class's attribute.
    """

    name: str
    type: str
    is_needed: bool
    default: Any
    meaning: str
    annotation: Any


def keys_of(config: type[Config]) -> dict[str, Key]:
    """The keys of a table's class, by name, in its order.

    Raises:
        ValueError: for a key that the section Attributes of the docstrings does not describe.
    """
    described = _descriptions(config)
    missing = sorted(set(config.model_fields) - {"kind"} - set(described))
    if missing:
        raise ValueError(f"{config.__qualname__}: its docstring must describe {', '.join(missing)} in Attributes")
    return {
        name: Key(
            name,
            _type_text(field.annotation, field),
            field.is_required(),
            _default(field),
            described.get(name, ""),
            field.annotation,
        )
        for name, field in config.model_fields.items()
    }


def _descriptions(config: type[Config]) -> dict[str, str]:
    """Key -> its text in the section Attributes of the class's docstring, or of the nearest class above it."""
    descriptions: dict[str, str] = {}
    for above in reversed(config.__mro__):
        if issubclass(above, Config):
            descriptions |= _attributes(above.__dict__.get("__doc__") or "")
    return descriptions


def _attributes(docstring: str) -> dict[str, str]:
    """``name: text`` of each entry; its further lines are indented more."""
    _, _, section = inspect.cleandoc(docstring).partition("Attributes:\n")
    entries: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        entry = re.match(r" {4}(\w+): (.*)", line)
        if entry:
            name = entry[1]
            entries[name] = entry[2]
        elif name and line.startswith(" " * 8):
            entries[name] += " " + line.strip()
        elif line and not line.startswith(" "):
            break
    return {name: _markdown(text) for name, text in entries.items()}


def _markdown(text: str) -> str:
    text = re.sub(r":\w+:`~?autodiffusion_opt\.(\w+)`", r"`ado.\1`", text)
    text = re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"`\1`", text)
    return text.replace("``", "`")


def _type_text(annotation: Any, field: FieldInfo | None = None) -> str:
    """A type in words, with the limits of its numbers."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_text(arguments[0], field)
    if origin in (Union, types.UnionType):
        parts = [_type_text(part, field) for part in arguments if part is not type(None)]
        return " or ".join(dict.fromkeys(parts))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        inner = [_type_text(part) for part in arguments if part is not Ellipsis]
        return f"list of {inner[0]}s" if Ellipsis in arguments else f"[{', '.join(inner)}]"
    if origin is dict:
        return "table"
    if annotation is Any:  # the only key that takes more than TOML can say
        return "text, or in Python `ado.Features`"
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return "table"
    names = {str: "text", bool: "true or false", int: "whole number", float: "number"}
    limits = _limits(field) if annotation in (int, float) and field is not None else ""
    return names[annotation] + limits


def _limits(field: FieldInfo) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    said = [
        f"{word} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, word in words.items()
        if getattr(limit, name, None) is not None
    ]
    return f", {', '.join(said)}" if said else ""


def _default(field: FieldInfo) -> Any:
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    return None if value is PydanticUndefined or isinstance(value, Config) else value
