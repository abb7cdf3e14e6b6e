"""The papers' studies: each is loaded, bound to a model of the right layout, its published candidates decoded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from marks import slow_but

from autodiffusion_opt import Candidate, UserError, catalogue
from autodiffusion_opt.objective import ObjectiveConfig
from autodiffusion_opt.optimizer import EvolutionConfig
from autodiffusion_opt.sampling.adm.presets import PRESETS
from autodiffusion_opt.sampling.checkpoints import CHECKPOINTS
from autodiffusion_opt.sampling.introspect import read_model_info
from autodiffusion_opt.sampling.ldm import presets as latent
from autodiffusion_opt.sampling.load import IMPLIED, load_pipeline, model_folder, scheduler_class
from autodiffusion_opt.space import ModelInfo, Space, SpaceConfig, cost
from autodiffusion_opt.study.config import StudyConfig, load_study_config

LATENT = latent.PRESETS[latent.LDM4]
NAMES = [
    *(f"adm-imagenet64-{name}" for name in ("4", "6", "10", "nmax232", "nmax350", "nmax580")),
    *(f"adm-lsun-{name}" for name in ("bedroom", "cat")),
    *(f"sd15-coco-{solver}-{steps}" for solver in ("dpmsolver", "ddim", "plms") for steps in (4, 6, 10)),
]
# Flexiffusion's studies, how many layers their models have, and the networks of their budgets.
SEGMENTS = {"ddpm-cifar10-segments": (28, 50.0), "ldm4-segments": (38, 50.0), "sd15-segments": (38, 9.8)}
# Each published candidate, its study, and how many layers run in all.
CANDIDATES = {
    "adm-imagenet64-4": ("adm-imagenet64-4", 4 * 58),
    "adm-imagenet64-6": ("adm-imagenet64-6", 6 * 58),
    "adm-imagenet64-nmax580": ("adm-imagenet64-nmax580", 571),
    "sd15-dpmsolver-4": ("sd15-coco-dpmsolver-4", 4 * 38),
    "sd15-dpmsolver-6": ("sd15-coco-dpmsolver-6", 6 * 38),
    "sd15-plms-4": ("sd15-coco-plms-4", 5 * 38),
    "sd15-plms-6": ("sd15-coco-plms-6", 7 * 38),
}


@functools.cache
def denoiser(model: str) -> Any:
    """Of the layout of a published model, without memory."""
    with torch.device("meta"):
        if "imagenet64" in model:
            return UNet2DModel(**PRESETS["adm64"].unet)
        if "lsun" in model:
            return UNet2DModel(**(LATENT if "ldm4" in model else PRESETS["lsun256"]).unet)
        if "cifar10" in model:  # as google/ddpm-cifar10-32's config.json
            return UNet2DModel(
                sample_size=32,
                block_out_channels=(128, 256, 256, 256),
                down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=None,
            )
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


@functools.cache
def info_of(name: str) -> ModelInfo:
    """The numbers of a study's model."""
    table = load_study_config(name).pipeline
    assert table is not None
    if "adm" in name:
        own = diffusers.DDIMScheduler(**PRESETS["lsun256" if "lsun" in name else "adm64"].scheduler)
    elif "ldm4" in name:
        own = diffusers.DDIMScheduler(**LATENT.scheduler)
    elif "cifar10" in name:
        own = diffusers.DDPMScheduler()
    else:  # as Stable Diffusion's scheduler_config.json
        betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        own = diffusers.PNDMScheduler(**betas, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    assert table.scheduler is not None
    kind: Any = scheduler_class(table.scheduler)
    scheduler = kind.from_config(own.config, **IMPLIED.get(table.scheduler, {}), **table.scheduler_settings)
    pipeline = SimpleNamespace(unet=denoiser(table.model), scheduler=scheduler)
    return read_model_info(pipeline, need_layers=True, need_branches="segments" in name)


def space_of(config: StudyConfig) -> Space:
    assert isinstance(config.space, SpaceConfig)
    return config.space.space(info_of(config.name))


@pytest.mark.parametrize("name", slow_but(NAMES, "adm-imagenet64-4", "adm-imagenet64-nmax580", "sd15-coco-dpmsolver-4"))
def test_a_study_is_the_papers_search_in_a_space_that_fits_its_model(name: str) -> None:
    config = load_study_config(name)
    space, joint, lsun = space_of(config), "nmax" in name, "lsun" in name
    optimizer = config.optimizer
    assert isinstance(optimizer, EvolutionConfig)
    assert isinstance(config.objective, ObjectiveConfig)
    assert (optimizer.population, optimizer.mutations, optimizer.probability) == (50, 25, 0.25)
    assert optimizer.crossovers == (10 if joint or lsun else 15)
    assert config.objective.rungs == ((1000,) if joint else (5000,))
    assert config.trials == 50 * (15 if joint else 10)
    candidate = space.decode({key: _middle(values) for key, values in space.distributions().items()})
    space.check(candidate)
    budget = {"nmax232": 232, "nmax350": 350, "nmax580": 580}.get(name.rpartition("-")[2])
    if budget is not None:
        assert cost.layer_runs(info_of(name), candidate) <= budget
        assert info_of(name).layers == 58


@pytest.mark.parametrize("name", slow_but(SEGMENTS, "ddpm-cifar10-segments"))
def test_a_study_of_segments_is_within_its_budget_on_its_model(name: str) -> None:
    config, (layers, budget) = load_study_config(name), SEGMENTS[name]
    space = space_of(config)
    assert info_of(name).layers == layers
    for values in (_least, _middle, _greatest):
        candidate = space.decode({key: values(box) for key, box in space.distributions().items()})
        space.check(candidate)
        assert cost.networks(info_of(name), candidate) <= budget + 1e-9
        assert space.decode(space.encode(candidate)) == candidate
    assert any(step.branch is not None for step in candidate.steps)  # of the greatest: as many as the budget allows
    assert cost.networks(info_of(name), candidate) > 0.9 * budget
    objective = config.objective
    assert isinstance(objective, ObjectiveConfig)
    assert (objective.kind, objective.rungs, objective.report_in) == ("rfid", (3072,), "verify")
    assert "fid" in objective.report


def _least(distribution: Any) -> Any:
    return distribution.low


def _greatest(distribution: Any) -> Any:
    return distribution.high


def _middle(distribution: Any) -> Any:
    return (distribution.low + distribution.high) / 2


@pytest.mark.parametrize("name", slow_but(CANDIDATES, "adm-imagenet64-4", "adm-imagenet64-nmax580", "sd15-dpmsolver-4"))
def test_a_published_candidate_is_in_the_space_of_its_study(name: str) -> None:
    study, runs = CANDIDATES[name]
    path = catalogue.find_candidate(name)
    assert path is not None
    candidate = Candidate.load(path)
    space = space_of(load_study_config(study))
    space.check(candidate)
    if space.fully_parametric:  # any layers are no parameters
        assert space.decode(space.encode(candidate)) == candidate
    assert cost.layer_runs(info_of(study), candidate) == runs


def test_every_shipped_candidate_and_study_of_a_paper_is_tested() -> None:
    shipped = {path.stem for path in (catalogue.shipped() / "studies" / "candidates").glob("*.json")}
    assert shipped == set(CANDIDATES)
    studies = {entry.name for entry in catalogue.entries(["studies"]) if entry.name.startswith(("adm-", "sd15-coco-"))}
    assert studies == set(NAMES)
    of_segments = {entry.name for entry in catalogue.entries(["studies"]) if entry.name.endswith("-segments")}
    assert of_segments == {*SEGMENTS, "digits-segments", "dit-segments"}


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_study_of_segments_says_what_is_our_reading_of_the_papers(name: str) -> None:
    text = catalogue.read_text(catalogue.find("studies", name))
    assert "2409.17566" in text
    assert "# Our reading: the bodies of the papers were not at hand" in text


@pytest.mark.parametrize("name", [*NAMES, *SEGMENTS])
def test_a_study_says_what_was_published_how_to_check_it_and_what_it_costs(name: str) -> None:
    text = catalogue.read_text(catalogue.find("studies", name))
    assert "ublished" in text
    assert "# Check: autodiffusion-opt " in text
    assert "# Cost (benchmarks/paper_costs.py): " in text


@pytest.mark.parametrize(
    ("name", "file"), [("adm-imagenet64-4", "64x64_diffusion.pt"), ("ldm4-segments", "model.ckpt")]
)
def test_a_study_whose_model_is_missing_says_which_file_to_get(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, err = call("run", name, "--storage", f"sqlite:///{tmp_path}/studies.db")
    assert (code, out) == (2, "")
    assert f"Get {file}" in err
    assert f"{file} " in err.partition("autodiffusion-opt convert ")[2]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_model_that_is_missing_is_told_with_its_files_and_the_command_that_makes_it(
    name: str, tmp_path: Path
) -> None:
    told = rf"Get .*\.(pt|ckpt) .*from https://.*autodiffusion-opt convert .* -o {tmp_path}/{name}"
    with pytest.raises(UserError, match=told):
        load_pipeline(str(tmp_path / name), device="cpu")
    studies = [catalogue.read_text(catalogue.find("studies", study)) for study in [*NAMES, *SEGMENTS]]
    assert any(f"~/autodiffusion/{name}" in text for text in studies)


@pytest.mark.parametrize("model", ["someone/adm-imagenet64", "someone/ldm4-lsun-bedroom"])
def test_a_hub_id_that_ends_in_such_a_name_is_a_hub_id(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_folder(model) is None
    asked: list[str] = []

    def refuse(name: str, **_settings: Any) -> None:
        asked.append(name)
        raise OSError("no such repository")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", refuse)
    with pytest.raises(UserError, match=r"from the hub: no such repository\. Get .*autodiffusion-opt convert "):
        load_pipeline(model, device="cpu")
    assert asked == [model]
