"""``clip-score`` with a small CLIP of random weights, against transformers' own similarity of images and prompts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peers import pipelines
from peers.samples import load, sampler_of
from PIL import Image

from autodiffusion_opt import Candidate, ModelInfo, UserError
from autodiffusion_opt.config import build
from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.objective.prompt_scores import PromptScores

CANDIDATE = Candidate.from_time_steps([900, 300])
SIZE = 24


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP model, its tokenizer and its preprocessing."""
    folder = tmp_path_factory.mktemp("models") / "small-clip"
    text = pipelines.clip().config.to_dict()
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(3)
    config = transformers.CLIPConfig(
        text_config=text, vision_config=width | {"image_size": SIZE, "patch_size": 8}, projection_dim=12
    )
    transformers.CLIPModel(config).eval().save_pretrained(folder)
    pipelines.clip_tokenizer().save_pretrained(folder)
    size = {"shortest_edge": SIZE}, {"height": SIZE, "width": SIZE}
    transformers.CLIPImageProcessor(size=size[0], crop_size=size[1]).save_pretrained(folder)
    return folder


def objective(sampler: Any, base: Path = Path(), **more: Any) -> Any:
    table = {"kind": "clip-score", "images": 7} | more
    return build(METRICS["clip-score"].Config, table, "here").objective(sampler, ModelInfo(train_steps=1000), base)


def value(measured: Any, **more: Any) -> float:
    *_, score = measured.measure(CANDIDATE, **more)
    return float(score.values["clip-score"])


def by_transformers(folder: Path, images: torch.Tensor, prompts: list[str]) -> list[float]:
    """What CLIP's own forward says of each image and its prompt, one at a time."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPImageProcessor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    scores = []
    for image, prompt in zip(images, prompts, strict=True):
        pixels = processor(images=Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = model(pixel_values=pixels, **tokenizer([prompt], return_tensors="pt")).logits_per_image
        scores.append(max(100 * float(logits / model.logit_scale.detach().exp()), 0.0))
    return scores


def test_image_i_is_scored_with_prompt_i_modulo_their_number(clip: Path) -> None:
    sampler = sampler_of(load("stable_diffusion", scheduler="ddim"), "stable_diffusion")  # blocks of 3
    images = torch.cat(list(sampler.images(CANDIDATE, range(7), 0)))
    prompts = [pipelines.PROMPTS[index % 5] for index in range(7)]
    wanted = by_transformers(clip, images, prompts)
    measured = objective(sampler, model=str(clip))
    assert dict(measured.directions) == {"clip-score": "maximize"}
    assert value(measured) == pytest.approx(np.mean(wanted), rel=1e-4)
    assert 0 < np.mean(wanted) <= 100
    assert np.mean(by_transformers(clip, images, prompts[1:] + prompts[:1])) != pytest.approx(np.mean(wanted), rel=1e-4)


def test_each_score_is_a_hundred_times_the_cosine_or_0(clip: Path) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 3, 30, 24), dtype=np.uint8))
    prompts = ["a cat", "rain", "old house"] * 3
    scores = PromptScores(str(clip), prompts[:3], torch.device("cpu"))
    found = torch.cat([scores.of_each(images[:4], 0), scores.of_each(images[4:], 4)])
    assert found.tolist() == pytest.approx(by_transformers(clip, images, prompts), rel=1e-4)


def test_negative_cosines_count_as_0(clip: Path) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 24, 24), dtype=np.uint8))
    scores = PromptScores(str(clip), ["rain"], torch.device("cpu"))
    before = scores.of_each(images, 0)
    scores._embedded["rain"] = -scores._embedded["rain"]
    after = scores.of_each(images, 0)
    assert (torch.minimum(before, after) == 0).all()
    assert (torch.maximum(before, after) > 0).all()


def test_grey_images_and_long_prompts_are_taken(clip: Path) -> None:
    scores = PromptScores(str(clip), ["a very long prompt " * 40], torch.device("cpu"))
    grey = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8), dtype=np.uint8))
    assert torch.equal(scores.of_each(grey, 0), scores.of_each(grey.expand(-1, 3, -1, -1), 0))


def test_each_prompt_is_embedded_once(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = sampler_of(load("stable_diffusion", scheduler="ddim"), "stable_diffusion")
    measured = objective(sampler, model=str(clip))
    embedded: list[Any] = []
    original = transformers.CLIPModel.get_text_features
    monkeypatch.setattr(
        transformers.CLIPModel,
        "get_text_features",
        lambda self, **given: embedded.append(given) or original(self, **given),  # type: ignore[func-returns-value]
    )
    assert value(measured) == value(measured)
    assert len(embedded) == len(pipelines.PROMPTS)


def test_a_folder_starts_from_the_file_that_names_it_and_its_weights_are_its_identity(clip: Path) -> None:
    sampler = sampler_of(load("stable_diffusion", scheduler="ddim"), "stable_diffusion")
    identity = objective(sampler, clip.parent, model=clip.name).identity
    assert objective(sampler, model=str(clip)).identity == identity
    other = copy.deepcopy(transformers.CLIPModel.from_pretrained(clip))
    with torch.no_grad():
        other.text_projection.weight += 0.1
    for part in (pipelines.clip_tokenizer(), transformers.CLIPImageProcessor.from_pretrained(clip), other):
        part.save_pretrained(clip.parent / "other")
    assert objective(sampler, clip.parent, model="other").identity != identity


def test_without_prompts_it_is_refused(digits: Any, clip: Path) -> None:
    with pytest.raises(UserError, match=r"clip-score needs prompts: add a table \[conditions\]"):
        objective(sampler_of(digits, "digits"), model=str(clip))


@pytest.mark.parametrize("model", ["no/such-model", "."])
def test_a_model_that_cannot_be_had_is_told(model: str) -> None:
    sampler = sampler_of(load("stable_diffusion", scheduler="ddim"), "stable_diffusion")
    with pytest.raises(UserError, match=r"clip-score: the model '.*' cannot be had as a CLIP model: "):
        objective(sampler, model=model)
