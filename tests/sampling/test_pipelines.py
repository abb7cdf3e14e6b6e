"""Every kind of pipeline, small and with random weights: a study runs, is resumed, and what it found deploys."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marks import slow_but
from peers import pipelines
from peers.samples import BATCH, IMAGES, SEED, UNEVEN, call_by_hand, load
from PIL import Image

from autodiffusion_opt import Callback, Candidate, Study, UserError, apply
from autodiffusion_opt.objective.features import PixelFeatures
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.generate import to_uint8
from autodiffusion_opt.sampling.layers import list_layers

# diffusers' own set_timesteps, with NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of colour images."""
    folder = tmp_path_factory.mktemp("reference")
    noise = np.random.default_rng(0)
    for index in range(6):
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def write_study(folder: Path, name: str, reference: Path) -> Path:
    """A study of a kind: 5 trials, three steps, 4 images in batches of 3; its prompts in a file beside it."""
    (folder / "prompts.txt").write_text("\n".join(pipelines.PROMPTS))
    table = ""
    if name in pipelines.TEXT:
        table = '[objective.conditions]\nkind = "prompts"\nfile = "prompts.txt"'
    elif name in pipelines.CLASSES:
        table = '[objective.conditions]\nkind = "labels"\nclasses = [0, 2, 1]'
    call = "\n".join(f"{key} = {json.dumps(value)}" for key, value in pipelines.CALLS.get(name, {}).items())
    path = folder / f"{name}.toml"
    path.write_text(f"""
trials = 5
[space]
kind = "time-steps"
steps = 3
[pipeline]
model = "{pipelines.saved(name)}"
device = "cpu"
batch_size = {BATCH}
micro_batch = {BATCH}
[pipeline.call]
{call}
[objective]
kind = "fid"
images = {IMAGES}
seed = {SEED}
features = "pixels"
reference = "{reference}"
{table}
[optimizer]
kind = "random"
""")
    return path


class Recorder(Callback):
    """Keeps the images that each trial's features were taken of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[Candidate, list[torch.Tensor]] = {}
        self._now: list[torch.Tensor] = []
        extract = PixelFeatures.__call__

        def recording(extractor: PixelFeatures, images: torch.Tensor) -> Any:
            self._now.append(images.clone())
            return extract(extractor, images)

        monkeypatch.setattr(PixelFeatures, "__call__", recording)

    def proposed(self, number: int, candidate: Candidate) -> None:
        self._now = self.seen.setdefault(candidate, [])


@pytest.mark.parametrize("name", slow_but(pipelines.BUILDERS, "flux"))
def test_a_study_runs_is_resumed_and_its_best_candidate_deploys(
    name: str, reference: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, recorder = write_study(tmp_path, name, reference), Recorder(monkeypatch)
    for trials in (2, 5):  # the second run loads the model anew and goes on
        study = Study.load(path, storage=url)
        assert len(study.run(trials, progress=recorder)) == trials
    best = study.best()
    assert math.isfinite(best.value)
    (tmp_path / "best.json").write_text(best.candidate.to_json())

    fresh = apply(load(name), tmp_path / "best.json")
    filled = [0, 1, 2], [3, 3, 3]  # the last batch is filled up
    found = torch.cat([to_uint8(call_by_hand(fresh, name, indices, num_inference_steps=3)) for indices in filled])
    assert torch.equal(found[:IMAGES], torch.cat(recorder.seen[best.candidate]))
    assert found.float().std() > 10


@pytest.mark.slow
def test_a_changed_file_of_prompts_is_another_study(reference: Path, tmp_path: Path, url: str) -> None:
    path = write_study(tmp_path, "stable_diffusion", reference)
    Study.load(path, storage=url).run(1)
    with (tmp_path / "prompts.txt").open("a") as file:
        file.write("\none more")
    with pytest.raises(UserError, match="started with another definition"):
        Study.load(path, storage=url).run(2)


@pytest.mark.parametrize("name", slow_but(["stable_diffusion", "flux", "adm"]))
def test_a_joint_study_ranks_the_layers_under_the_same_conditions(
    name: str, reference: Path, tmp_path: Path, url: str
) -> None:
    path = write_study(tmp_path, name, reference)
    layers = len(list_layers(denoiser_of(load(name))))
    joint = f'kind = "joint"\nlayers = "ranked"\nn_max = {3 * layers}\nsteps_min = 3\nsteps_max = 4'
    path.write_text(path.read_text().replace('kind = "time-steps"\nsteps = 3', joint))
    study = Study.load(path, storage=url)
    study.run(5)
    assert all(sum(layers - len(gone) for gone in one.candidate.removed) <= 3 * layers for one in study.top(5))
    assert len(study.problem.info.ranking) == 3


def test_a_warning_about_the_number_of_steps_is_given_once() -> None:
    pipeline = apply(load("stable_diffusion"), UNEVEN)
    with pytest.warns(UserWarning, match="num_inference_steps=7 is not used"):
        first = call_by_hand(pipeline, "stable_diffusion", [0], num_inference_steps=7)
    again = call_by_hand(pipeline, "stable_diffusion", [0], num_inference_steps=7)
    assert torch.equal(first, again)
    assert torch.equal(first, call_by_hand(pipeline, "stable_diffusion", [0], num_inference_steps=3))
