"""The teacher: which images it gives, that they are made once, and what makes it another teacher."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peers.samples import load, sampler_of

from autodiffusion_opt import UserError
from autodiffusion_opt.sampling.conditions import Labels, Prompts
from autodiffusion_opt.sampling.generate import ImageSampler, noise_generator
from autodiffusion_opt.sampling.own import own_candidate
from autodiffusion_opt.sampling.teacher import Teacher

# diffusers' own set_timesteps, with NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


def sampler(pipeline: Any, **more: Any) -> ImageSampler:
    return ImageSampler(pipeline, **{"micro_batch": 5, "batch_size": 10} | more)


def calls_of(pipeline: Any) -> list[int]:
    """A list that grows by the batch's size at every call of the denoiser of a copy."""
    calls: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    return calls


@pytest.fixture
def own_digits(digits: Any) -> Any:
    return copy.deepcopy(digits)


def test_its_images_are_what_the_pipeline_does_by_itself_with_so_many_steps(digits: Any) -> None:
    images = torch.cat(list(Teacher(sampler(digits), 7).images(range(5), 3)))
    digits.set_progress_bar_config(disable=True)
    generators = [noise_generator(3, index) for index in range(5)]
    by_hand = digits(batch_size=5, num_inference_steps=7, generator=generators, output_type="pt").images
    by_hand = torch.as_tensor(by_hand)
    by_hand = by_hand if by_hand.shape[1] == 1 else by_hand.permute(0, 3, 1, 2)
    assert torch.equal(images, (by_hand * 255).round().to(torch.uint8))
    assert Teacher(sampler(digits), 7).candidate == own_candidate(sampler(digits), 7)


def test_it_is_made_once_as_far_as_it_is_asked_for(own_digits: Any, tmp_path: Path) -> None:
    calls = calls_of(own_digits)
    for count, more in ((10, 10), (10, 0), (7, 0), (25, 15)):
        calls.clear()
        rows = Teacher(sampler(own_digits), 6).kept(0, tmp_path)
        rows.need(count)
        assert sum(calls) == 6 * more
    images = torch.cat(list(Teacher(sampler(own_digits), 6).images(range(25), 0)))
    assert np.array_equal(rows.rows(0, 25), images.numpy())


def test_what_is_computed_of_images_is_kept_and_not_they(own_digits: Any, tmp_path: Path) -> None:
    def means(images: torch.Tensor) -> Any:
        return images.float().mean(dim=(2, 3)).numpy()

    teacher = Teacher(sampler(own_digits), 6)
    rows = teacher.kept(0, tmp_path, means, "means").rows(0, 10)
    assert np.array_equal(rows, means(torch.cat(list(teacher.images(range(10), 0)))))
    calls = calls_of(own_digits)
    assert np.array_equal(teacher.kept(0, tmp_path, means, "means").rows(0, 10), rows)
    assert calls == []
    teacher.kept(0, tmp_path, means, "other means").need(10)
    assert sum(calls) == 6 * 10


def test_progress_is_told(digits: Any, tmp_path: Path) -> None:
    told: list[Any] = []
    Teacher(sampler(digits), 3).kept(0, tmp_path).need(15, lambda *what: told.append(what))
    assert told == [("teacher's images", 10, 15), ("teacher's images", 15, 15)]


def spoiled(pipeline: Any) -> Any:
    with torch.no_grad():
        pipeline.unet.conv_out.bias += 0.01
    return pipeline


def respaced(pipeline: Any) -> Any:
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    return pipeline


CHANGES: dict[str, Any] = {
    "steps": lambda pipeline: Teacher(sampler(pipeline), 7),
    "weights": lambda pipeline: Teacher(sampler(spoiled(pipeline)), 6),
    "scheduler": lambda pipeline: Teacher(sampler(respaced(pipeline)), 6),
    "micro batch": lambda pipeline: Teacher(sampler(pipeline, micro_batch=10), 6),
    "dtype": lambda pipeline: Teacher(sampler(pipeline.to(torch.float64)), 6),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_it_is_another_teacher_where_anything_changed_that_decides_its_images(
    change: str, own_digits: Any, tmp_path: Path
) -> None:
    before = Teacher(sampler(own_digits), 6)
    assert before.identity == Teacher(sampler(own_digits, batch_size=3), 6).identity
    rows = before.kept(0, tmp_path).rows(0, 10)
    after = CHANGES[change](own_digits)
    assert after.identity != before.identity
    if change not in ("dtype", "micro batch"):  # which may round to the same images
        assert not np.array_equal(after.kept(0, tmp_path).rows(0, 10), rows)
    assert len(list(tmp_path.glob("teacher-*"))) == 1 + (change not in ("dtype", "micro batch"))


def test_another_seed_is_kept_apart_and_is_the_same_teacher(digits: Any, tmp_path: Path) -> None:
    teacher = Teacher(sampler(digits), 6)
    rows = [teacher.kept(seed, tmp_path).rows(0, 10) for seed in (0, 1)]
    assert not np.array_equal(*rows)
    assert len(list(tmp_path.glob("teacher-*"))) == 2


def test_conditions_the_calls_arguments_and_the_decoder_belong_to_it() -> None:
    pipeline = load("stable_diffusion")
    first = Teacher(sampler_of(pipeline, "stable_diffusion"), 3)
    other = Teacher(sampler_of(pipeline, "stable_diffusion", conditions=Prompts(["a cat", "a dog"])), 3)
    identity = first.identity
    assert other.identity != identity
    scaled = Teacher(sampler_of(pipeline, "stable_diffusion", call={"guidance_scale": 3.0}), 3)
    assert scaled.identity != identity
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias += 0.1
    assert Teacher(sampler_of(pipeline, "stable_diffusion"), 3).identity != identity
    adm = load("adm")
    labels = [Teacher(sampler_of(adm, "adm", conditions=Labels(given)), 3).identity for given in ([0, 1], [1, 0])]
    assert labels[0] != labels[1]


def test_a_teacher_that_overflows_is_refused(own_digits: Any, tmp_path: Path) -> None:
    own_digits.unet.conv_out.bias.data.fill_(float("inf"))
    with pytest.raises(UserError, match="the teacher's image 0 is not finite: with 6 steps the model overflows"):
        Teacher(sampler(own_digits), 6).kept(0, tmp_path).need(10)
    assert list(tmp_path.rglob("*.npy")) == []
