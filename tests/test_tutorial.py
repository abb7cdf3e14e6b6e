"""The tutorial's blocks, run one after the other on a small Stable Diffusion with random weights."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peers.pipelines import saved
from PIL import Image

import autodiffusion_opt as ado
from autodiffusion_opt.objective.features import FEATURES

PAGE = Path(__file__).parent.parent / "docs" / "tutorial.md"
FENCED = re.compile(r"(?:<!-- (\w+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
# What makes the page's study small enough for a test; a replacement must change something.
SMALLER = {
    "trials = 60": "trials = 12",
    'dtype = "float16"': 'dtype = "float32"',
    "batch_size = 16": "batch_size = 4",
    "micro_batch = 8": "micro_batch = 4",
    "images = [50, 200]": "images = [4, 8]",
    'features = "inception"': 'features = "corners"',  # Inception would be downloaded
    "-n 16": "-n 4",
    "--images 500": "--images 8",
}


class Corners:
    """Each image's upper left 8×8 pixels: uint8 (N, 3, H, W) -> float32 (N, 192)."""

    identity = "corners"

    def __call__(self, images: torch.Tensor) -> NDArray[np.float32]:
        return (images[..., :8, :8].float() / 255).flatten(1).cpu().numpy()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, of its scheduler
def test_the_tutorial_runs_from_a_models_folder_to_a_script(
    call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FEATURES, "_entries", dict(FEATURES))
    ado.register_features("corners", lambda device, weights: Corners())
    text = PAGE.read_text(encoding="utf-8")
    for large, small in SMALLER.items():
        assert large in text
        text = text.replace(large, small)
    blocks = FENCED.findall(text)
    here = Path.cwd()
    (here / "my-model").symlink_to(saved("stable_diffusion"))
    (here / "prompts.txt").write_text(next(block for mark, _, block in blocks if mark == "prompts"))
    (here / "studies").mkdir()
    study = next(block for _, language, block in blocks if language == "toml")
    (here / "studies" / "my-model-6.toml").write_text(study)
    namespace: dict[str, object] = {}
    for mark, language, block in blocks:
        if mark == "run" and language == "python":
            exec(compile(block, str(PAGE), "exec"), namespace)
        elif mark == "run":
            for line in block.splitlines():
                run(line, call)
    for file in ("grid.png", "lighthouse.png"):
        Image.open(here / file).verify()
    assert "Verified" in (here / "report.html").read_text()


def run(line: str, call: Callable[..., tuple[int, str, str]]) -> None:
    """A command of the page: in this process where it is the library's, which takes seconds to import."""
    program, *words = shlex.split(line)
    if program == "autodiffusion-opt":
        code, _, told = call(*words)
        assert code == 0, f"{line}\n{told}"
    else:
        assert program == "python"
        subprocess.run([sys.executable, *words], check=True)
