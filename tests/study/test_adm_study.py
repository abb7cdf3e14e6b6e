"""A joint study of a small random ADM with its classifier: run in two parts, exported, its script run."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import adm
from PIL import Image

from autodiffusion_opt import Study
from autodiffusion_opt.space import cost

Call = Callable[..., tuple[int, str, str]]
LAYERS = sum(kind != "keep" for _, kind, _, _ in adm.path(adm.small("new")[1]))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's file, its model and reference beside it."""
    folder = tmp_path_factory.mktemp("adm")
    adm.small_pipeline()[0].save_pretrained(folder / "small")
    noise = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "reference.npz", arr_0=noise)
    path = folder / "adm.toml"
    path.write_text(f"""# A small ADM-G.
trials = 10
[pipeline]
model = "small"
scheduler = "ddim"
device = "cpu"
batch_size = 3
micro_batch = 3
[space]
kind = "joint"
n_max = {3 * LAYERS}
steps_min = 3
steps_max = 4
draw = "uniform"
guidance_scale = [0.0, 4.0]
[objective]
kind = "fid"
images = 4
features = "pixels"
reference = "reference.npz"
[objective.conditions]
kind = "labels"
[optimizer]
kind = "evolution"
population = 4
parents = 2
mutations = 2
crossovers = 1
stage_one = 1
growth = 1
""")
    return path


@pytest.mark.slow
def test_a_joint_study_in_two_parts_is_what_one_run_gives_and_its_script_samples(
    study: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[list[Any]] = []
    for name, parts in (("whole", (10,)), ("parts", (4, 10))):
        url = f"sqlite:///{tmp_path}/{name}.db"
        for trials in parts:  # each loads the model anew
            searched = Study.load(study, storage=url)
            searched.run(trials)
        results.append([(result.candidate, result.value) for result in searched.top(10)])
    assert results[0] == results[1]
    assert len(results[0]) == 10
    candidates = [candidate for candidate, _ in results[0]]
    assert len({candidate.guidance_scale for candidate in candidates}) >= 3  # of own, the middle, and searched
    assert any(any(candidate.removed) for candidate in candidates)
    info = searched.problem.info
    assert all(cost.layer_runs(info, candidate) <= 3 * LAYERS for candidate in candidates)

    out = tmp_path / "out"
    code, printed, _ = call("export", "adm", "-o", out, "--storage", url, "--json")
    assert code == 0
    assert "sample.py" in json.loads(printed)["files"]
    monkeypatch.chdir(out)
    runpy.run_path(str(out / "sample.py"))
    assert np.asarray(Image.open(out / "image.png")).std() > 5
