"""Images: the same bits whatever they are asked with, and those of the pipeline's own call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from marks import slow_but
from peers.samples import SEED, images_of, load

from autodiffusion_opt import Candidate, UserError, remove
from autodiffusion_opt.sampling.apply import apply
from autodiffusion_opt.sampling.conditions import Unconditional
from autodiffusion_opt.sampling.generate import ImageSampler, noise_generator, to_uint8

UNEVEN = Candidate.from_time_steps([926, 690, 424, 153])
LEADING = Candidate.from_time_steps([750, 500, 250, 0])
WITH_LAYERS = Candidate.from_time_steps([926, 690, 424], removed=[[0, 3], [], [5]])


def images(
    pipeline: Any, candidate: Candidate, indices: Any, batch_size: int = 10, seed: int = 0, micro_batch: int = 10
) -> torch.Tensor:
    sampler = ImageSampler(pipeline, micro_batch=micro_batch, batch_size=batch_size)
    blocks = list(sampler.images(candidate, indices, seed))
    assert [len(block) for block in blocks[:-1]] == [batch_size] * (len(blocks) - 1)
    assert 1 <= len(blocks[-1]) <= batch_size
    return torch.cat(blocks)


def call(pipeline: Any, count: int, steps: int) -> torch.Tensor:
    """The pipeline's own call, as a user makes it."""
    noise = [noise_generator(0, index) for index in range(count)]
    return pipeline(batch_size=count, generator=noise, num_inference_steps=steps, output_type="pt").images


@pytest.mark.parametrize("candidate", [UNEVEN, WITH_LAYERS], ids=["times", "layers"])
def test_an_image_does_not_depend_on_what_is_asked_with_it(candidate: Candidate, digits: Any) -> None:
    whole = images(digits, candidate, range(30))
    assert (whole.dtype, whole.shape) == (torch.uint8, (30, 1, 8, 8))
    for subset in ([29, 3, 3, 7, 11, 0, 19, 18, 17, 16, 15], list(range(12, 30)), list(range(30))[::-1], [4], [0, 1]):
        assert torch.equal(images(digits, candidate, subset), whole[subset])
    assert len({bytes(image.numpy()) for image in whole}) == 30


@pytest.mark.parametrize("candidate", [UNEVEN, WITH_LAYERS], ids=["times", "layers"])
@pytest.mark.parametrize("batch_size", slow_but([1, 3, 7, 16, 30, 64, 100, 1000], 1, 30))
def test_an_image_is_the_same_bits_whatever_the_batch_size(batch_size: int, candidate: Candidate, digits: Any) -> None:
    wanted = images(digits, candidate, range(100), 10)
    assert torch.equal(images(digits, candidate, range(100), batch_size), wanted)


def test_images_asked_for_one_by_one_are_those_asked_for_together(digits: Any) -> None:
    wanted = images(digits, UNEVEN, range(20))
    assert torch.equal(torch.cat([images(digits, UNEVEN, [index]) for index in range(20)]), wanted)


@pytest.mark.parametrize("name", ["stable_diffusion", "flux", "dit", "adm"])
def test_an_image_of_any_kind_of_pipeline_is_the_same_bits_whatever_the_batch_size(name: str) -> None:
    pipeline = load(name)
    one, three, all_ = (images_of(pipeline, name, batch_size=size) for size in (1, 3, 8))
    assert torch.equal(one, three)
    assert torch.equal(one, all_)
    assert (one[0].int() - one[1].int()).abs().max() > 20


# Two threads wait for each other in loops that other work on the machine makes long.
@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_networks_see_one_shape_whatever_is_asked_for(threads: int, digits: Any) -> None:
    """Kernels of other shapes would round otherwise, on this machine or another."""
    seen = set()
    hook = digits.unet.register_forward_pre_hook(lambda _, given: seen.add(tuple(given[0].shape)))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        wanted = images(digits, UNEVEN, range(25), 25)
        for count in (1, 9, 10, 11, 25):
            assert torch.equal(images(digits, UNEVEN, range(count), 7), wanted[:count])
    finally:
        torch.set_num_threads(before)
        hook.remove()
    assert seen == {(10, 1, 8, 8)}


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [1, 7, 64])
def test_another_micro_batch_changes_few_pixels_and_by_one_level_at_most(micro_batch: int, digits: Any) -> None:
    one, other = (images(digits, UNEVEN, range(100), micro_batch=size).int() for size in (micro_batch, 50))
    assert (one - other).abs().max() <= 1
    assert (one != other).float().mean() < 1e-3


def test_a_micro_batch_that_memory_does_not_hold_names_the_key_to_lower(digits: Any) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = digits.unet.register_forward_pre_hook(full)
    try:
        with pytest.raises(UserError, match="must hold 10 images at once, and does not: lower micro_batch"):
            images(digits, UNEVEN, range(20))
    finally:
        hook.remove()


def test_no_indices_give_no_images(digits: Any) -> None:
    assert list(ImageSampler(digits, micro_batch=4, batch_size=4).images(UNEVEN, [], 0)) == []


def test_another_seed_or_index_gives_other_noise(digits: Any) -> None:
    assert not torch.equal(images(digits, UNEVEN, range(4), seed=0), images(digits, UNEVEN, range(4), seed=1))
    noise = [torch.randn(3, generator=noise_generator(*pair)).tolist() for pair in ((0, 1), (1, 0), (0, 1))]
    assert noise[0] == noise[2] != noise[1]


def test_the_noise_of_an_image_never_changes_between_versions() -> None:
    """Stored studies hold values that were measured with this noise."""
    found = [torch.randn(2, generator=noise_generator(seed, index)) for seed, index in ((0, 1), (7, 12))]
    assert found[0].tolist() == pytest.approx([1.2880988, 1.4395837], abs=1e-6)
    assert found[1].tolist() == pytest.approx([-1.4733571, -0.1197078], abs=1e-6)


def test_global_random_state_is_left_alone(digits: Any) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    images(digits, UNEVEN, range(3))
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_pixels_are_rounded_clamped_and_black_where_they_are_no_number() -> None:
    given = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 7.0, float("nan"), float("inf"), float("-inf")])
    assert to_uint8(given).tolist() == [0, 0, 0, 1, 255, 255, 0, 255, 0]


def test_leading_times_give_what_the_untouched_pipeline_gives(digits: Any) -> None:
    assert digits.scheduler.config.timestep_spacing == "leading"
    assert torch.equal(images(digits, LEADING, range(10)), to_uint8(call(digits, 10, 4)))


def test_a_candidate_that_the_user_applied_is_there_again_after_sampling_another(digits: Any) -> None:
    wanted = images(digits, UNEVEN, range(10))
    try:
        apply(digits, UNEVEN)
        images(digits, WITH_LAYERS, range(2))
        assert torch.equal(to_uint8(call(digits, 10, 4)), wanted)
    finally:
        remove(digits)


def test_the_pipelines_progress_bar_is_silent_while_sampling_and_as_it_was_after(digits: Any) -> None:
    seen: list[dict[str, Any]] = []
    before = vars(digits).get("_progress_bar_config")
    digits._progress_bar_config = {"disable": False, "desc": "mine"}
    hook = digits.unet.register_forward_pre_hook(lambda *_: seen.append(digits._progress_bar_config))
    try:
        images(digits, UNEVEN, range(2))
        assert digits._progress_bar_config == {"disable": False, "desc": "mine"}
    finally:
        hook.remove()
        digits._progress_bar_config = before
    assert seen == [{"disable": True, "desc": "mine"}] * 4


class Recorded(Unconditional):
    """No condition, and the indices that each call was made for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def arguments(self, pipeline: Any, indices: Any) -> dict[str, Any]:
        self.asked.append(list(indices))
        return {"batch_size": len(indices)}


def test_the_last_call_is_filled_up_with_the_last_image(digits: Any) -> None:
    recorded = Recorded()
    sampler = ImageSampler(digits, recorded, micro_batch=3, batch_size=4)
    assert [len(block) for block in sampler.images(UNEVEN, [9, 8, 7, 6, 5], 0)] == [4, 1]
    assert recorded.asked == [[9, 8, 7], [6, 5, 5]]


def test_arguments_of_the_call_reach_the_pipeline(digits: Any) -> None:
    with pytest.raises(TypeError, match="no_such_argument"):
        list(ImageSampler(digits, call={"no_such_argument": 1}).images(UNEVEN, [0], 0))


def test_images_that_a_pipeline_gives_as_arrays_have_their_channels_first() -> None:
    """LDMPipeline knows no tensors."""
    pipeline = load("ldm")
    found = images_of(pipeline, "ldm", LEADING)
    array = pipeline(
        batch_size=3,
        num_inference_steps=4,
        generator=[noise_generator(SEED, index) for index in range(3)],
        output_type="np",
    ).images
    assert array.shape == (3, 16, 16, 3)
    assert found.shape == (4, 3, 16, 16)
    np.testing.assert_array_equal(found[:3], np.moveaxis((array * 255).round().astype(np.uint8), -1, 1))


def test_a_sampler_for_a_pipeline_that_needs_prompts_says_what_is_missing() -> None:
    with pytest.raises(UserError, match="needs prompts"):
        images_of(load("flux"), "flux", conditions=Unconditional())
