"""The embedded model: small, ordinary, and good enough to search on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline
from safetensors import safe_open

from autodiffusion_opt.objective.features import load_extractor
from autodiffusion_opt.objective.statistics import Gaussian, Moments, frechet_distance
from autodiffusion_opt.sampling.generate import ImageSampler, noise_generator, to_uint8
from autodiffusion_opt.zoo import EMBEDDED, digits


@pytest.fixture(scope="module")
def extractor() -> Any:
    return load_extractor("digits", torch.device("cpu"))


def gaussian(images: torch.Tensor, extractor: Any) -> Gaussian:
    moments = Moments(64)
    for batch in images.split(250):
        moments.add(extractor(batch))
    return moments.gaussian()


@pytest.fixture(scope="module")
def real(extractor: Any) -> Gaussian:
    return gaussian(digits.load_images(), extractor)


def uniform(steps: int, count: int) -> torch.Tensor:
    """Images of diffusers' own sampling, without us."""
    pipeline = DDPMPipeline.from_pretrained(EMBEDDED["digits"].pipeline)
    pipeline.set_progress_bar_config(disable=True)
    found = []
    for start in range(0, count, 250):
        noise = [noise_generator(7, index) for index in range(start, start + 250)]
        call = pipeline(batch_size=250, generator=noise, num_inference_steps=steps, output_type="pt")
        found.append(to_uint8(call.images))
    return torch.cat(found)


def halves(extractor: Any) -> float:
    """The distance between two halves of the real data, drawn at random."""
    images = digits.load_images()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    one, other = images[order[:898]], images[order[898:]]
    return frechet_distance(gaussian(one, extractor), gaussian(other, extractor))


def test_it_is_small() -> None:
    files = [path for path in Path(digits.FOLDER).rglob("*") if path.suffix == ".safetensors"]
    assert len(files) == 3
    assert sum(path.stat().st_size for path in files) < 4 * 2**20
    assert not [path for path in Path(digits.FOLDER).rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


def test_it_is_an_ordinary_folder() -> None:
    pipeline = DiffusionPipeline.from_pretrained(EMBEDDED["digits"].pipeline)
    assert type(pipeline) is DDPMPipeline
    assert pipeline.scheduler.config.num_train_timesteps == 1000
    assert pipeline.scheduler.config.beta_schedule == "linear"
    names = {type(module).__name__ for module in pipeline.unet.modules()}
    assert {"ResnetBlock2D", "Attention"} <= names
    with safe_open(EMBEDDED["digits"].pipeline / "unet" / "diffusion_pytorch_model.safetensors", "np") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {np.dtype(np.float32)}  # noqa: SIM118


def test_the_images_are_the_real_ones() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    wanted = (datasets.load_digits().images * 255 / 16).round().astype(np.uint8)
    np.testing.assert_array_equal(digits.load_images()[:, 0].numpy(), wanted)


def test_the_classifier_knows_digits() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    with torch.inference_mode():
        found = digits.load_classifier()(digits.load_images().float() / 127.5 - 1).argmax(1)
    assert (found.numpy() == datasets.load_digits().target).mean() > 0.99


@pytest.mark.slow
def test_more_steps_give_better_images_and_four_leave_room(extractor: Any, real: Gaussian) -> None:
    four, ten = (frechet_distance(gaussian(uniform(steps, 500), extractor), real) for steps in (4, 10))
    noise = torch.randint(0, 256, (500, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert ten < four / 3
    assert four < frechet_distance(gaussian(noise, extractor), real) / 2


def test_four_uneven_steps_beat_four_uniform_ones(extractor: Any, real: Gaussian) -> None:
    """What the search finds in minutes (``autodiffusion-opt run studies/digits-4.toml``), near enough."""
    from autodiffusion_opt import Candidate, load_pipeline

    pipeline = load_pipeline("digits", scheduler="ddim", device="cpu")
    candidate = Candidate.from_time_steps([800, 550, 300, 100])
    sampler = ImageSampler(pipeline, micro_batch=250, batch_size=250)
    images = torch.cat(list(sampler.images(candidate, range(500), 7)))
    four = frechet_distance(gaussian(uniform(4, 500), extractor), real)
    assert frechet_distance(gaussian(images, extractor), real) < 0.6 * four


@pytest.mark.slow
def test_at_a_hundred_steps_it_is_nearer_than_the_two_halves_of_the_real_data(extractor: Any, real: Gaussian) -> None:
    hundred, four = (frechet_distance(gaussian(uniform(steps, 1000), extractor), real) for steps in (100, 4))
    assert hundred < halves(extractor)
    assert four > 10 * hundred
