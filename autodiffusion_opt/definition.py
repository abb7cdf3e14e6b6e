"""The base of every definition read from a TOML file: frozen, no unknown keys, all mistakes told at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from autodiffusion_opt.errors import UserError, unknown_text

Kind = TypeVar("Kind", bound="Definition")


class Definition(BaseModel):
    """A table of a catalogue file. Subclasses name its keys; what a user may write is exactly that."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


def build(definition: type[Kind], table: object, where: str) -> Kind:
    """``table`` as a ``definition``.

    Args:
        definition: the class that says which keys there are.
        table: what TOML gave.
        where: the file, and the table in it, for messages.

    Raises:
        UserError: naming every wrong key at once, what is allowed, and the nearest match.
    """
    if not isinstance(table, Mapping):
        raise UserError(f"{where}: must be a table; got {table!r}")
    try:
        return definition.model_validate(dict(table))
    except ValidationError as error:
        lines = [f"{where}: {_explain(definition, one)}" for one in error.errors(include_url=False)]
        raise UserError("\n".join(lines)) from None


def build_kind(kinds: Mapping[str, type[Kind]], what: str, table: object, where: str) -> Kind:
    """``table`` as the definition that its key ``kind`` names."""
    if not isinstance(table, Mapping):
        raise UserError(f"{where}: must be a table; got {table!r}")
    kind = table.get("kind")
    if kind is None:
        raise UserError(f"{where}: kind is missing; it must be one of: {', '.join(sorted(kinds))}")
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"{where}: {unknown_text(f'the kind of {what}', str(kind), kinds)}")
    return build(kinds[kind], table, where)


def combine(errors: Iterable[UserError]) -> None:
    """Raises one UserError that holds all of ``errors``, if there are any."""
    texts = [str(error) for error in errors]
    if texts:
        raise UserError("\n".join(texts))


def _explain(definition: type[Definition], error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        names = _field_names(definition, error["loc"][:-1])
        return unknown_text(f"key {path}", str(error["loc"][-1]), names).replace("must be", "is unknown; it must be", 1)
    if error["type"] == "missing":
        return f"{path} is missing"
    if error["type"] == "literal_error":
        allowed = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return unknown_text(path, str(error["input"]), allowed)
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{path}: {message}; got {error['input']!r}" if path else message


def _field_names(definition: type[Definition], path: tuple[Any, ...]) -> list[str]:
    """The keys allowed in the table that ``path`` leads to."""
    for part in path:
        field = definition.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, Definition)):
            return []
        definition = inner
    return list(definition.model_fields)
