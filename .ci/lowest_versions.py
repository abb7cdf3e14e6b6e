"""Print the lowest versions that pyproject.toml names, one ``name==version`` a line, for ``pip install -c``."""

import re
import tomllib
from pathlib import Path


def lowest(requirements: list[str]) -> list[str]:
    """``name>=version`` as ``name==version``; a requirement without a lower bound is a mistake."""
    pins = []
    for requirement in requirements:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?>=([0-9][0-9.]*)", requirement)
        if match is None:
            raise SystemExit(f"{requirement!r} must name a lowest version: name>=1.2")
        pins.append(f"{match[1]}=={match[2]}")
    return pins


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    print("\n".join(lowest(project["dependencies"])))
