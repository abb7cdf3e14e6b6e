"""Run the tests against mutants of the code: single changes that a test must notice.

    python tests/mutants/run.py [--file space.txt ...] [--match TEXT] [--jobs 2]

Each line of ``tests/mutants/*.txt`` is a mutant: ``file || text that is there once || what stands there instead``. It
is made in a copy of the repository, and the tests that belong to the file run there; a mutant that no test notices
survives. A line may end in ``|| survives: reason``: then its survival is expected. The last line is a JSON object; the
exit code is 1 if fewer than nine tenths are killed, or one survives without a reason. Not part of the default tests:
all of them take an hour or two on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
EXPECTED = "survives:"
COPIED = ("autodiffusion_opt", "tests", "spaces", "objectives", "studies", "pyproject.toml", "README.md", "docs")
# The tests of a file or a room, by the beginning of its path, where they are not those of the folder of the same name.
TESTS = {
    "candidate.py": ["tests/test_candidate.py"],
    "catalogue.py": ["tests/test_catalogue.py"],
    "cli": ["tests/test_cli*.py"],
    "config.py": ["tests/study/test_config.py", "tests/test_plugins.py"],
    "paths.py": ["tests/test_paths.py", "tests/study/test_paths.py"],
    "plugins.py": ["tests/test_plugins.py"],
    "process.py": ["tests/test_cli.py"],
    "report": ["tests/test_cli.py"],
    "sampling/hooks.py": ["tests/sampling/test_hooks.py", "tests/sampling/test_layers_bypass.py"],
    "sampling/layers": ["tests/sampling/test_layers*.py"],
    "signals.py": ["tests/test_signals.py"],
    "study/workers.py": ["tests/test_cli_workers.py"],
    "sampling/schedule": ["tests/sampling/test_schedule*.py", "tests/sampling/test_steps_seen.py"],
}


@dataclass(frozen=True)
class Mutant:
    """One change; ``reason`` says why no test can notice it."""

    file: str
    old: str
    new: str
    reason: str | None

    def tests(self, repository: Path) -> list[str]:
        """Tests of the file itself, then of its room."""
        path = Path(self.file)
        room = next(
            (tests for start, tests in TESTS.items() if self.file.startswith(start)), [f"tests/{path.parts[0]}"]
        )
        patterns = [f"tests/{path.parent}/test_{path.name}", *room]
        files = [file for pattern in patterns for file in sorted(repository.glob(pattern))]
        return [str(file.relative_to(repository)) for file in dict.fromkeys(files)]


def read(path: Path) -> list[Mutant]:
    """The mutants of a file. Exits with the line that is wrong."""
    mutants = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = (line + " " if line.endswith(" ||") else line).split(" || ")
        reason = parts.pop().strip().removeprefix(EXPECTED).strip() if parts[-1].strip().startswith(EXPECTED) else None
        if len(parts) != 3:
            sys.exit(f"{path.name}:{number}: a mutant must be: file || old || new")
        mutants.append(Mutant(parts[0].strip(), parts[1], parts[2], reason))
    return mutants


def survives(mutant: Mutant, repository: Path) -> bool | str:
    """Whether all tests pass with the mutant in a copy of the repository; text where it cannot be made."""
    path = repository / "autodiffusion_opt" / mutant.file
    original = path.read_text(encoding="utf-8")
    if original.count(mutant.old) != 1:
        return f"the text is there {original.count(mutant.old)} times"
    path.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--timeout", "120"]
    try:
        done = subprocess.run(
            [*command, *mutant.tests(repository)], cwd=repository, env=environment, capture_output=True, timeout=600
        )
    except subprocess.TimeoutExpired:  # a mutant may hang
        return False
    finally:
        path.write_text(original, encoding="utf-8")
    if done.returncode not in (0, 1, 2):  # 1: tests failed, 2: the file could not be imported
        return f"pytest ended with {done.returncode}: {done.stdout.decode()[-500:]}"
    return done.returncode == 0


def main() -> None:
    """Run the chosen mutants and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", action="append", help="a list of mutants; default: all lists")
    parser.add_argument("--match", default="", help="only mutants whose line holds this text")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    lists = [HERE / name for name in options.file] if options.file else sorted(HERE.glob("*.txt"))
    mutants = [m for path in lists for m in read(path) if options.match in f"{m.file} {m.old} {m.new}"]
    begun = time.monotonic()
    copies: Queue[Path] = Queue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        for job in range(options.jobs):
            copy = Path(folder) / str(job)
            for name in COPIED:
                source = REPOSITORY / name
                if source.is_dir():
                    shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    copy.mkdir(exist_ok=True)
                    shutil.copy(source, copy / name)
            copies.put(copy)

        def judge(mutant: Mutant) -> bool | str:
            copy = copies.get()
            try:
                result = survives(mutant, copy)
            finally:
                copies.put(copy)
            shown = result if isinstance(result, str) else "SURVIVED" if result else "killed"
            print(f"{shown:<9} {mutant.file} | {mutant.old} | {mutant.new}", flush=True)
            return result

        results = list(pool.map(judge, mutants))
    broken = [m for m, result in zip(mutants, results, strict=True) if isinstance(result, str)]
    survivors = [m for m, result in zip(mutants, results, strict=True) if result is True]
    unexplained = [m for m in survivors if m.reason is None]
    killed = len(mutants) - len(survivors) - len(broken)
    summary = {
        "mutants": len(mutants),
        "killed": killed,
        "share": killed / max(len(mutants), 1),
        "survivors": {f"{m.file} | {m.old} | {m.new}": m.reason for m in survivors},
        "broken": [f"{m.file} | {m.old}" for m in broken],
        "seconds": round(time.monotonic() - begun),
    }
    print(json.dumps(summary))
    sys.exit(bool(unexplained or broken or killed < 0.9 * len(mutants)))


if __name__ == "__main__":
    main()
