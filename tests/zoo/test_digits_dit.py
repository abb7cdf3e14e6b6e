"""The embedded DiT: small, ordinary, class-conditional with guidance, and good enough to search on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, DiTPipeline, DiTTransformer2DModel
from safetensors import safe_open

from autodiffusion_opt import Candidate, load_pipeline
from autodiffusion_opt.objective.features import load_extractor
from autodiffusion_opt.objective.statistics import Gaussian, Moments, frechet_distance
from autodiffusion_opt.sampling.conditions import Labels, class_count
from autodiffusion_opt.sampling.generate import ImageSampler, noise_generator, to_uint8
from autodiffusion_opt.sampling.introspect import read_model_info
from autodiffusion_opt.zoo import EMBEDDED, digits, digits_dit
from autodiffusion_opt.zoo.digits_dit.train import LATENT_DEVIATION

FOLDER = EMBEDDED["digits-dit"].pipeline
SCALE = 1.2  # of guidance: enough to change images, and too little to move them far from the real ones

Samples = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """As plain diffusers opens it."""
    pipeline = DiffusionPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def balanced_samples(pipeline: Any) -> Samples:
    """``(steps, scale)``: 250 images, 25 of each class, made once for all tests."""
    return functools.cache(lambda steps, scale=SCALE: sample(pipeline, steps, balanced(250), scale))


def sample(pipeline: Any, steps: int, labels: list[int], scale: float = SCALE) -> torch.Tensor:
    """uint8 images of diffusers' own sampling, without us."""
    noise = [noise_generator(7, index) for index in range(len(labels))]
    call = pipeline(labels, scale, generator=noise, num_inference_steps=steps, output_type="pt")
    return to_uint8(call.images)


def balanced(count: int) -> list[int]:
    return [index % 10 for index in range(count)]


def gaussian(images: torch.Tensor) -> Gaussian:
    features = load_extractor("digits-dit", torch.device("cpu"))
    moments = Moments(64)
    for batch in images.split(250):
        moments.add(features(batch))
    return moments.gaussian()


def distance(images: torch.Tensor) -> float:
    """To the real digits."""
    return frechet_distance(gaussian(images), gaussian(digits_dit.load_images()))


def recognised(images: torch.Tensor) -> torch.Tensor:
    """What digit the classifier takes each image for."""
    with torch.inference_mode():
        return digits.load_classifier()(images.float() / 127.5 - 1).argmax(1)


def sureness(images: torch.Tensor, labels: list[int]) -> float:
    """The mean log-probability that the classifier gives each image's own label."""
    with torch.inference_mode():
        logits = digits.load_classifier()(images.float() / 127.5 - 1)
    return -float(torch.nn.functional.cross_entropy(logits, torch.tensor(labels)))


def test_it_is_small() -> None:
    files = [path for path in digits_dit.FOLDER.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 4 * 2**20


def test_its_weights_are_in_float16_on_disk() -> None:
    for path in FOLDER.rglob("*.safetensors"):
        with safe_open(path, "np") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {np.dtype(np.float16)}  # noqa: SIM118


def test_it_is_an_ordinary_folder(pipeline: Any) -> None:
    assert type(pipeline) is DiTPipeline
    parts = (pipeline.transformer, pipeline.vae, pipeline.scheduler)
    assert [type(part) for part in parts] == [DiTTransformer2DModel, AutoencoderKL, DDIMScheduler]
    assert pipeline.scheduler.config.num_train_timesteps == 1000
    assert pipeline.scheduler.config.beta_schedule == "linear"
    # ε alone; DiTPipeline would split twice as many channels into ε and a variance.
    assert pipeline.transformer.config.out_channels == pipeline.transformer.config.in_channels
    assert sample(pipeline, 2, [0, 1, 2]).shape == (3, 1, 8, 8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_loaded_in_the_type_that_is_asked_for(dtype: str) -> None:
    pipeline = load_pipeline("digits-dit", dtype=dtype, device="cpu")
    for part in (pipeline.transformer, pipeline.vae):
        assert {weight.dtype for weight in part.parameters()} == {getattr(torch, dtype)}


def test_it_has_six_layers_and_takes_labels(pipeline: Any) -> None:
    assert read_model_info(pipeline).layers == 6
    # DiTPipeline's null class is number 1,000, so the tables have a thousand classes before it, and ten are in use.
    assert class_count(pipeline) == 1000
    for block in pipeline.transformer.transformer_blocks:
        table = block.norm1.emb.class_embedder.embedding_table.weight
        assert table.any(dim=1).nonzero().flatten().tolist() == [*range(10), 1000]


def test_the_labels_are_those_of_the_real_images() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    np.testing.assert_array_equal(digits_dit.load_labels().numpy(), datasets.load_digits().target)
    assert (recognised(digits_dit.load_images()) == digits_dit.load_labels()).float().mean() > 0.99


def test_the_autoencoder_keeps_the_images(pipeline: Any) -> None:
    real = digits_dit.load_images()
    with torch.inference_mode():
        latents = pipeline.vae.encode(real.float() / 127.5 - 1).latent_dist.mode()
        decoded = to_uint8(pipeline.vae.decode(latents).sample / 2 + 0.5)
    assert float(latents.std()) * pipeline.vae.config.scaling_factor == pytest.approx(LATENT_DEVIATION, rel=1e-3)
    assert distance(decoded) < 1


@pytest.mark.slow
def test_a_label_makes_images_of_its_class(balanced_samples: Samples) -> None:
    assert (recognised(balanced_samples(10)) == torch.tensor(balanced(250))).float().mean() > 0.9


@pytest.mark.slow
def test_guidance_changes_images_and_makes_them_clearer(balanced_samples: Samples) -> None:
    guided, plain = balanced_samples(10, 3.0), balanced_samples(10, 1.0)
    assert (guided != plain).flatten(1).any(1).all()
    assert sureness(guided, balanced(250)) > sureness(plain, balanced(250))


def test_the_null_class_makes_images_of_all_classes(pipeline: Any) -> None:
    """Without a label; what guidance leads away from."""
    images = sample(pipeline, 10, [1000] * 150, scale=1.0)
    assert set(recognised(images).tolist()) == set(range(10))


def test_four_uneven_steps_beat_four_uniform_ones(balanced_samples: Samples) -> None:
    """The best times of a hundred drawn at random (at scale 1.25), on other noise than they were chosen on."""
    ours = load_pipeline("digits-dit", scheduler="ddim", device="cpu")
    sampler = ImageSampler(ours, Labels(range(10)), {"guidance_scale": SCALE}, micro_batch=250, batch_size=250)
    uneven = torch.cat(list(sampler.images(Candidate.from_time_steps([446, 184, 62, 40]), range(250), 7)))
    assert distance(uneven) < 0.75 * distance(balanced_samples(4))


@pytest.mark.slow
def test_more_steps_give_better_images_and_four_leave_room(balanced_samples: Samples) -> None:
    four, ten = (distance(balanced_samples(steps)) for steps in (4, 10))
    noise = torch.randint(0, 256, (250, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert ten < 0.75 * four
    assert four < distance(noise) / 4


@pytest.mark.slow
def test_fifty_steps_are_far_better_than_four(pipeline: Any) -> None:
    """With guidance, and more so without: guidance itself moves images away from the real ones."""
    for scale, share in ((SCALE, 5.0), (1.0, 7.0)):
        four, fifty = (distance(sample(pipeline, steps, balanced(1000), scale)) for steps in (4, 50))
        assert four > share * fifty
