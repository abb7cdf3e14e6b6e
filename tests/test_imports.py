"""What may be imported where: the parts that know no model start without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import autodiffusion_opt

HEAVY = ("torch", "diffusers", "transformers", "torchvision", "torch_fidelity")
REPORT = f"; import sys, json; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"


def heavy_modules(script: str, folder: Path) -> list[str]:
    """Which heavy modules a script leaves imported, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script + REPORT], cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("module", ["candidate", "space", "optimizer", "plan", "catalogue", "trials", "objective"])
def test_rooms_that_know_no_model(module: str, tmp_path: Path) -> None:
    assert heavy_modules(f"import autodiffusion_opt.{module}", tmp_path) == []


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["ls"], ["ls", "--json"], ["show", "digits-4"], ["run", "--help"], ["status"]]
)
def test_commands_that_know_no_model(words: list[str], tmp_path: Path) -> None:
    script = (
        f"from autodiffusion_opt import cli; code = cli._guarded(lambda: cli.app({words!r}, standalone_mode=False))"
    )
    assert heavy_modules(script, tmp_path) == []


def test_the_report_sees_torch(tmp_path: Path) -> None:
    assert "torch" in heavy_modules("import autodiffusion_opt; autodiffusion_opt.apply", tmp_path)


def test_public_names() -> None:
    assert sorted(autodiffusion_opt.__all__) == [
        "Candidate",
        "Step",
        "Study",
        "UserError",
        "apply",
        "install",
        "load_pipeline",
        "remove",
    ]
    for name in autodiffusion_opt.__all__:
        assert getattr(autodiffusion_opt, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        autodiffusion_opt.nothing  # noqa: B018
