"""The catalogue: finds and validates the TOML files under ``spaces/``, ``objectives/`` and ``studies/``.

A name is looked up beside the file that uses it, then below the working folder, then in what is shipped. A path is
no name: it starts from the folder of the file that gives it (:mod:`autodiffusion_opt.paths`).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autodiffusion_opt.errors import UserError, reason_of, unknown
from autodiffusion_opt.paths import absolute, folder_of

Section = Literal["spaces", "objectives", "studies"]
SECTIONS: tuple[Section, ...] = ("spaces", "objectives", "studies")
# Of a file, without its ending.
LONGEST_NAME = 250
_PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """One file of the catalogue."""

    section: Section
    name: str
    path: Path

    @property
    def description(self) -> str:
        """The file's first comment, joined to one line."""
        lines = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.lstrip("# ").rstrip())
        return " ".join(lines)


def shipped() -> Path:
    """The folder that holds the three sections: inside an installed package, or the checkout of an editable one."""
    inside = _PACKAGE / "_catalogue"
    return inside if inside.is_dir() else _PACKAGE.parent


def roots(near: Path | None = None) -> list[Path]:
    """Where sections are looked for, in order, each folder once."""
    candidates = [*([folder_of(near).parent] if near else []), Path.cwd(), shipped()]
    return list(dict.fromkeys(path.resolve() for path in candidates))


def entries(sections: Iterable[Section] = SECTIONS, near: Path | None = None) -> list[Entry]:
    """All files of the sections; of two with the same name, that of the first folder."""
    by_name: dict[tuple[Section, str], Entry] = {}
    for section in sections:
        for path in (path for root in roots(near) for path in sorted((root / section).glob("*.toml"))):
            by_name.setdefault((section, path.stem), Entry(section, path.stem, path))
    return sorted(by_name.values(), key=lambda entry: (SECTIONS.index(entry.section), entry.name))


def find(section: Section, name: str, near: Path | None = None) -> Path:
    """The file of a name, or of a path. Raises UserError with the nearest match.

    Args:
        section: in which the name is looked up.
        name: in the section, or a path.
        near: the file that gives the name; None: the command line or Python does.
    """
    path = absolute(name, folder_of(near) if near else None)
    if path.is_file():
        return path
    if name.endswith(".toml") or "/" in name:
        raise UserError(f"{section}: there is no file {name} ({path}); " + _known(section, Path(name).stem, near))
    for entry in entries([section], near):
        if entry.name == name:
            return entry.path
    raise UserError(_known(section, name, near))


def find_candidate(name: str) -> Path | None:
    """A candidate's file: a path that ends in .json, or a name in ``studies/candidates/``; None for neither."""
    if name.endswith(".json"):
        return Path(name)
    if len(name) > LONGEST_NAME:
        return None
    files = (root / "studies" / "candidates" / f"{name}.json" for root in roots())
    return next((path for path in files if path.is_file()), None)


def candidates() -> dict[str, str]:
    """The names in ``studies/candidates/``, with each file's comment."""
    files: dict[str, Path] = {}
    for root in roots():
        for path in sorted((root / "studies" / "candidates").glob("*.json")):
            files.setdefault(path.stem, path)
    return {name: _comment(files[name]) for name in sorted(files)}


def _comment(path: Path) -> str:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"cannot be read: {reason_of(error)}"
    return str(content.get("comment", "")) if isinstance(content, dict) else ""


def _known(section: Section, name: str, near: Path | None) -> str:
    names = [entry.name for entry in entries([section], near)]
    return str(unknown(f"a name in {section}/ (else: the path of a .toml file)", name, names))


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file. Raises UserError, naming the file, the line and what is wrong."""
    try:
        return parse_toml(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: must be a TOML file: {reason_of(error)}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises ValueError for what TOML does not allow, integers beyond 64 bits too."""
    try:
        tables = tomllib.loads(text)
        _check_numbers(tables)
    except RecursionError:
        raise ValueError("its arrays or tables are nested too deeply") from None
    return tables


def _check_numbers(value: Any) -> None:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("an integer must be within 64 bits")
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_numbers(inner)


def read_text(path: Path) -> str:
    """A file's text. Raises UserError, naming the file."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: must be a TOML file in UTF-8; it is not text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason_of(error)}") from None


def show(name: str) -> Entry:
    """The entry of a name in any section; studies before spaces before objectives. Raises UserError."""
    everything = entries()
    for section in reversed(SECTIONS):
        for entry in everything:
            if entry.section == section and name in (entry.name, f"{section}/{entry.name}"):
                return entry
    path = absolute(name)
    if path.is_file():
        return Entry("studies", path.stem, path)
    raise unknown("a name in the catalogue", name, {entry.name for entry in everything})
