"""That the mutants of tests/mutants are of the code as it is."""

from __future__ import annotations

from pathlib import Path

import autodiffusion_opt

PACKAGE = Path(autodiffusion_opt.__file__).parent


def test_the_text_that_a_mutant_replaces_is_in_its_file_once() -> None:
    stale = []
    for listed in sorted((Path(__file__).parent / "mutants").glob("*.txt")):
        for line in listed.read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.startswith("#"):
                file, old, _ = line.split(" || ", 2)
                if (PACKAGE / file.strip()).read_text(encoding="utf-8").count(old) != 1:
                    stale.append(f"{listed.name}: {line}")
    assert stale == []
