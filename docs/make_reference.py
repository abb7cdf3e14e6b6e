"""Make docs/keys.md, the reference of every TOML key, from the classes of the tables.

    python docs/make_reference.py > docs/keys.md
    python docs/make_reference.py --check

``--check`` prints a diff and exits with 1 where keys.md is not what the classes say.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from autodiffusion_opt.config import Config, Registry
from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.optimizer import OPTIMIZERS
from autodiffusion_opt.sampling.config import ConditionsConfig, PipelineConfig
from autodiffusion_opt.space import SPACES
from autodiffusion_opt.study.config import StudyFile

PAGE = Path(__file__).parent / "keys.md"
HEAD = """# Keys

This page lists every key that a TOML file may have.
`python docs/make_reference.py > docs/keys.md` makes it from the classes of the tables; do not edit it by hand.

A key that is not listed is an error, and so is a value that does not fit its key.
A relative path starts from the folder of the file that names it; see [concepts](concepts.md#a-studys-file).
All mistakes in a study's files are told at once.
A key whose default is "absent" may be left out; one that is "needed" may not.
`autodiffusion-opt run STUDY --set space.steps=6` gives any of them another value for one run.
"""
# What a table of one kind says of keys that its class does not name.
FREE_KEYS = "Further keys are arguments of Optuna's sampler, by their own names; `seed` is the study's."


def page() -> str:
    """The text of keys.md."""
    return "\n".join([HEAD, *_sections()])


def _sections() -> Iterator[str]:
    yield _section("The study's file", StudyFile)
    yield _section("`[pipeline]`", PipelineConfig)
    for table, kinds in (("space", _kinds(SPACES)), ("objective", _kinds(METRICS)), ("optimizer", _kinds(OPTIMIZERS))):
        for config, names in kinds.items():
            listed = ", ".join(f'`kind = "{name}"`' for name in names)
            yield _section(f"`[{table}]` with {listed}", config)
    yield _section("`[objective.conditions]`", ConditionsConfig)


def _kinds(registry: Registry[Any]) -> dict[type[Config], list[str]]:
    """The tables of the kinds that this package brings, each with its names."""
    kinds: dict[type[Config], list[str]] = {}
    entries = {name: registry[name] for name in registry}
    entries |= {f"{prefix}NAME": entry for prefix, entry in registry.families.items()}
    for name, entry in entries.items():
        if entry.__module__.startswith("autodiffusion_opt."):
            kinds.setdefault(getattr(entry, "Config", entry), []).append(name)
    return kinds


def _section(title: str, config: type[Config]) -> str:
    # The heading shows the kind; only the conditions have a choice of kinds in one class.
    fields = {
        name: field for name, field in config.model_fields.items() if name != "kind" or config is ConditionsConfig
    }
    described = _descriptions(config)
    missing = sorted(set(fields) - set(described))
    if missing:
        raise SystemExit(f"{config.__qualname__}: its docstring must describe {', '.join(missing)} in Attributes")
    rows = [
        f"| `{name}` | {_type_text(field.annotation, field)} | {_default(field)} | {described[name]} |"
        for name, field in fields.items()
    ]
    free = [FREE_KEYS, ""] if config.model_config.get("extra") == "allow" else []
    table = ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows, ""] if rows else []
    return "\n".join([f"## {title}", "", *table, *free, *([] if rows or free else ["No further keys.", ""])])


def _descriptions(config: type[Config]) -> dict[str, str]:
    """Key -> its text in the section Attributes of the class's docstring, or of the nearest class above it."""
    found: dict[str, str] = {}
    for above in reversed(config.__mro__):
        if issubclass(above, Config):
            found |= _attributes(above.__dict__.get("__doc__") or "")
    return found


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
    return text.replace("``", "`").replace("|", "\\|")


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


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**needed**"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "absent"
    return "absent" if isinstance(value, Config | Mapping) else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value}"


def main(arguments: list[str]) -> int:
    """Print the page, or compare it with the file."""
    made = page()
    if arguments != ["--check"]:
        sys.stdout.write(made)
        return 0
    kept = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    diff = list(difflib.unified_diff(kept.splitlines(), made.splitlines(), str(PAGE), "the classes", lineterm=""))
    print("\n".join(diff))
    return 1 if kept != made else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
