"""Make docs/keys.md, the reference of every TOML key, from the classes of the tables.

    python docs/make_reference.py > docs/keys.md
    python docs/make_reference.py --check

``--check`` prints a diff and exits with 1 where keys.md is not what the classes say.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autodiffusion_opt.config import Config, Registry
from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.optimizer import OPTIMIZERS
from autodiffusion_opt.sampling.config import ConditionsConfig, PipelineConfig
from autodiffusion_opt.space import SPACES
from autodiffusion_opt.study.config import StudyFile
from autodiffusion_opt.study.keys import Key, keys_of

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
PIPE = "\\|"  # in a cell of a table
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
    keys = [key for key in keys_of(config).values() if key.name != "kind" or config is ConditionsConfig]
    rows = [f"| `{key.name}` | {key.type} | {_default(key)} | {key.meaning.replace('|', PIPE)} |" for key in keys]
    free = [FREE_KEYS, ""] if config.model_config.get("extra") == "allow" else []
    table = ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows, ""] if rows else []
    return "\n".join([f"## {title}", "", *table, *free, *([] if rows or free else ["No further keys.", ""])])


def _default(key: Key) -> str:
    if key.is_needed:
        return "**needed**"
    return "absent" if key.default is None or isinstance(key.default, Mapping) else f"`{_toml(key.default)}`"


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
