"""Strict TOML tables: the base class of every table, and the registries of the kinds that a table may name.

A table is a frozen value with no unknown keys. All mistakes of a file are told at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from autodiffusion_opt.errors import UserError, reason_of, unknown_text
from autodiffusion_opt.text import quoted, visible

AnyConfig = TypeVar("AnyConfig", bound="Config")
Entry = TypeVar("Entry")


class Config(BaseModel):
    """A table of a catalogue file. Subclasses name its keys; what a user may write is exactly that."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class Registry(Mapping[str, Entry], Generic[Entry]):
    """The kinds of one thing, by the name that a table gives: those built in, registered ones, installed plug-ins.

    A plug-in is an entry point of the group ``autodiffusion_opt.GROUP``; it is imported when its name is asked for.

    Args:
        what: what the entries are, for messages: ``"metric"``.
        group: the last part of the entry points' group: ``"metrics"``.
        builtin: the entries that are always there.
        base: the class that every entry must be a subclass of; None: entries are functions.
        families: entries for many names: ``nevergrad:`` stands for every name that begins with it. What is behind the
            prefix is for the entry to check; such names are not listed one by one.
    """

    def __init__(
        self,
        what: str,
        group: str,
        builtin: Mapping[str, Entry],
        base: type | None = None,
        families: Mapping[str, Entry] | None = None,
    ) -> None:
        self.what = what
        self.families = dict(families or {})
        self._base = base
        self.group = f"autodiffusion_opt.{group}"
        self._entries = dict(builtin)

    def register(self, name: str, entry: Entry) -> None:
        """Add an entry. Raises UserError for a name that is taken by another, or a class that is not complete."""
        if not name or self._entries.get(name, entry) is not entry:
            raise UserError(f"a {self.what} must be registered under a name that is not taken; got {name!r}")
        fits = callable(entry) if self._base is None else inspect.isclass(entry) and issubclass(entry, self._base)
        if not fits:
            needed = "a function" if self._base is None else f"a subclass of {self._base.__name__}"
            raise UserError(f"the {self.what} {name!r} must be {needed}; got {entry!r}")
        missing = sorted(getattr(entry, "__abstractmethods__", ())) if inspect.isclass(entry) else []
        if missing:
            raise UserError(f"the {self.what} {name!r} must define {', '.join(missing)}")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            family = self._family(name)
            if family is not None:
                return family
            plugin = self._plugins().get(name)
            if plugin is None:
                raise KeyError(name)
            try:
                self.register(name, plugin.load())
            except (ImportError, AttributeError) as error:
                raise UserError(
                    f"the {self.what} {name!r} of {plugin.value} cannot be loaded: {reason_of(error)}"
                ) from error
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is such a name; a plug-in is not imported for it."""
        return name in self._entries or self._family(name) is not None or name in self._plugins()

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._entries, *self._plugins()]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def get_kind(self, name: object, where: str = "") -> Entry:
        """The entry of a name. Raises UserError, after ``where``, with those there are and the nearest match."""
        if not isinstance(name, str) or name not in self:
            raise UserError(f"{where}{unknown_text(f'the kind of {self.what}', name, self.names())}")
        return self[name]

    def names(self) -> list[str]:
        """Every name, sorted, a family as ``nevergrad:NAME``: what messages list."""
        return sorted([*self, *(f"{prefix}NAME" for prefix in self.families)])

    def _family(self, name: object) -> Entry | None:
        return next((self.families[prefix] for prefix in self.families if str(name).startswith(prefix)), None)

    def _plugins(self) -> dict[str, EntryPoint]:
        return {plugin.name: plugin for plugin in entry_points(group=self.group)}


def build(table_class: type[AnyConfig], table: object, where: str) -> AnyConfig:
    """``table`` as a ``table_class``.

    Args:
        table_class: the class that says which keys there are.
        table: what TOML gave.
        where: the file, and the table in it, for messages.

    Raises:
        UserError: naming every wrong key at once, what is allowed, and the nearest match.
    """
    if not isinstance(table, Mapping):
        raise UserError(f"{where}: must be a table; got {quoted(table)}")
    try:
        return table_class.model_validate(dict(table))
    except ValidationError as error:
        lines = [f"{where}: {_explain(table_class, mistake)}" for mistake in error.errors(include_url=False)]
        raise UserError("\n".join(lines)) from None


def kind_in(table: object, registry: Registry[Any], where: str) -> Any:
    """The entry of ``registry`` that the table's key ``kind`` names. Raises UserError."""
    if not isinstance(table, Mapping):
        raise UserError(f"{where}: must be a table; got {quoted(table)}")
    if "kind" not in table:
        raise UserError(f"{where}: kind is missing; it must be one of: {', '.join(registry.names())}")
    return registry.get_kind(table["kind"], f"{where}: ")


def combine(errors: Iterable[UserError]) -> None:
    """Raises one UserError that holds all of ``errors``, if there are any."""
    texts = [str(error) for error in errors]
    if texts:
        raise UserError("\n".join(texts))


def _explain(table_class: type[Config], error: Any) -> str:
    path = ".".join(visible(str(part)) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        names = _field_names(table_class, error["loc"][:-1])
        return unknown_text(f"key {path}", str(error["loc"][-1]), names).replace("must be", "is unknown; it must be", 1)
    if error["type"] == "missing":
        return f"{path} is missing"
    if error["type"] == "literal_error":
        allowed = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return unknown_text(path, error["input"], allowed)
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{path}: {message}; got {quoted(error['input'])}" if path else message


def _field_names(table_class: type[Config], path: tuple[Any, ...]) -> list[str]:
    """The keys allowed in the table that ``path`` leads to."""
    for part in path:
        field = table_class.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, Config)):
            return []
        table_class = inner
    return list(table_class.model_fields)
