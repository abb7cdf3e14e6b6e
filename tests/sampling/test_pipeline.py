"""Load, apply, generate: what is applied is right and leaves no trace; images do not depend on their neighbours."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline

from autodiffusion_opt import Candidate, UserError, apply, install, load_pipeline, remove
from autodiffusion_opt.sampling.fingerprint import fingerprint
from autodiffusion_opt.sampling.load import pick_device
from autodiffusion_opt.sampling.apply import generate, noise_generator, to_uint8

UNEVEN = Candidate.from_time_steps([926, 690, 424, 153])
LEADING = Candidate.from_time_steps([750, 500, 250, 0])
WITH_LAYERS = Candidate.from_time_steps([926, 690, 424], removed=[[0, 3], [], [5]])


def images(
    pipeline: Any, candidate: Candidate, indices: Any, batch_size: int = 10, seed: int = 0, micro_batch: int = 10
) -> torch.Tensor:
    blocks = list(generate(pipeline, candidate, indices, seed=seed, batch_size=batch_size, micro_batch=micro_batch))
    assert [len(block) for block in blocks[:-1]] == [batch_size] * (len(blocks) - 1)
    assert 1 <= len(blocks[-1]) <= batch_size
    return torch.cat(blocks)


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [noise_generator(seed, index) for index in range(count)]


def call(pipeline: Any, count: int, steps: int) -> torch.Tensor:
    """The pipeline's own call, as a user makes it."""
    found = pipeline(batch_size=count, generator=generators(count), num_inference_steps=steps, output_type="pt")
    return found.images


def state(pipeline: Any) -> dict[str, Any]:
    """All that a candidate could leave behind."""
    return {
        "type": type(pipeline),
        "pipeline": dict(vars(pipeline)),
        "scheduler type": type(pipeline.scheduler),
        "scheduler": {key: value for key, value in vars(pipeline.scheduler).items() if key != "timesteps"},
        "timesteps": pipeline.scheduler.timesteps.tolist(),
        "modules": {
            name: {key: id(value) for key, value in vars(module).items()}
            for name, module in pipeline.unet.named_modules()
        },
        "hooks": {name: len(module._forward_hooks) for name, module in pipeline.unet.named_modules()},
    }


# Images.


@pytest.mark.parametrize("candidate", [UNEVEN, WITH_LAYERS], ids=["times", "layers"])
def test_an_image_does_not_depend_on_what_is_asked_with_it(candidate: Candidate, digits: Any) -> None:
    whole = images(digits, candidate, range(30))
    assert (whole.dtype, whole.shape) == (torch.uint8, (30, 1, 8, 8))
    for subset in ([29, 3, 3, 7, 11, 0, 19, 18, 17, 16, 15], list(range(12, 30)), list(range(30))[::-1], [4], [0, 1]):
        assert torch.equal(images(digits, candidate, subset), whole[subset])
    assert len({bytes(image.numpy()) for image in whole}) == 30


@pytest.mark.parametrize("candidate", [UNEVEN, WITH_LAYERS], ids=["times", "layers"])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 16, 30, 64, 100, 1000])
def test_an_image_is_the_same_bits_whatever_the_batch_size(batch_size: int, candidate: Candidate, digits: Any) -> None:
    wanted = images(digits, candidate, range(100), 10)
    assert torch.equal(images(digits, candidate, range(100), batch_size), wanted)


def test_asked_for_one_by_one(digits: Any) -> None:
    wanted = images(digits, UNEVEN, range(20))
    assert torch.equal(torch.cat([images(digits, UNEVEN, [index]) for index in range(20)]), wanted)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_networks_see_one_shape(threads: int, digits: Any) -> None:
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


@pytest.mark.parametrize("micro_batch", [1, 7, 64])
def test_another_micro_batch_changes_few_pixels_and_by_one_level_at_most(micro_batch: int, digits: Any) -> None:
    one, other = (images(digits, UNEVEN, range(100), micro_batch=size).int() for size in (micro_batch, 50))
    assert (one - other).abs().max() <= 1
    assert (one != other).float().mean() < 1e-3


def test_memory_that_does_not_hold_a_micro_batch(digits: Any) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = digits.unet.register_forward_pre_hook(full)
    try:
        with pytest.raises(UserError, match="must hold 10 images at once, and does not: lower micro_batch"):
            images(digits, UNEVEN, range(20))
    finally:
        hook.remove()


def test_nothing_is_made_for_no_images(digits: Any) -> None:
    assert list(generate(digits, UNEVEN, [], seed=0, batch_size=4, micro_batch=4)) == []


def test_another_seed_gives_other_noise(digits: Any) -> None:
    assert not torch.equal(images(digits, UNEVEN, range(4), seed=0), images(digits, UNEVEN, range(4), seed=1))
    noise = [torch.randn(3, generator=noise_generator(*pair)).tolist() for pair in ((0, 1), (1, 0), (0, 1))]
    assert noise[0] == noise[2] != noise[1]


def test_global_random_state_is_left_alone(digits: Any) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    images(digits, UNEVEN, range(3))
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_to_uint8() -> None:
    given = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 7.0, float("nan"), float("inf"), float("-inf")])
    assert to_uint8(given).tolist() == [0, 0, 0, 1, 255, 255, 0, 255, 0]


# Right.


def test_leading_is_what_the_untouched_pipeline_does(digits: Any) -> None:
    assert digits.scheduler.config.timestep_spacing == "leading"
    assert torch.equal(images(digits, LEADING, range(10)), to_uint8(call(digits, 10, 4)))


def by_formula(pipeline: Any, times: list[int], count: int) -> torch.Tensor:
    """DDIM (Song et al., 2021, equation 12, η = 0) with x₀ clipped as the model's scheduler does; float64."""
    alphas = torch.cat([pipeline.scheduler.alphas_cumprod.double()[times], torch.ones(1, dtype=torch.float64)])
    x = torch.cat([torch.randn(1, 1, 8, 8, generator=one) for one in generators(count)]).double()
    for index, time in enumerate(times):
        now, after = alphas[index], alphas[index + 1]
        with torch.inference_mode():
            noise = pipeline.unet(x.float(), time).sample.double()
        clean = ((x - (1 - now).sqrt() * noise) / now.sqrt()).clamp(-1, 1)
        x = after.sqrt() * clean + (1 - after).sqrt() * noise
    return (x / 2 + 0.5).clamp(0, 1)


def test_uneven_times_are_right_where_diffusers_is_not(digits: Any) -> None:
    times = [int(time) for time in UNEVEN.times]
    wanted = by_formula(digits, times, 10)
    with install(digits, UNEVEN):
        ours = call(digits, 10, 4)
    replaced = DDPMPipeline(unet=digits.unet, scheduler=DDIMScheduler.from_config(digits.scheduler.config))
    replaced.set_progress_bar_config(disable=True)

    def naive(steps: int, device: Any = None) -> None:
        replaced.scheduler.num_inference_steps, replaced.scheduler.timesteps = steps, torch.tensor(times)

    replaced.scheduler.set_timesteps = naive
    theirs = call(replaced, 10, 4)
    assert (ours - wanted).abs().max() < 1e-4
    assert (theirs - wanted).abs().max() > 0.1


def test_apply_equals_generate_whatever_number_of_steps_is_asked_for(digits: Any) -> None:
    for candidate in (UNEVEN, WITH_LAYERS):
        wanted = images(digits, candidate, range(10))
        assert apply(digits, candidate) is digits
        try:
            assert torch.equal(to_uint8(call(digits, 10, len(candidate.steps))), wanted)
            with pytest.warns(UserWarning, match="num_inference_steps=50 is not used"):
                assert torch.equal(to_uint8(call(digits, 10, 50)), wanted)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # told once
                assert torch.equal(to_uint8(call(digits, 10, 50)), wanted)
        finally:
            remove(digits)
    assert not torch.equal(to_uint8(call(digits, 10, 4)), wanted)


def test_apply_reads_a_file(digits: Any, tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text(UNEVEN.to_json())
    try:
        for given in (tmp_path / "best.json", str(tmp_path / "best.json")):
            apply(digits, given)
            assert torch.equal(to_uint8(call(digits, 10, 4)), images_of(UNEVEN))
    finally:
        remove(digits)


def images_of(candidate: Candidate) -> torch.Tensor:
    """Of a pipeline of its own."""
    return images(load_pipeline("digits", scheduler="ddim", device="cpu"), candidate, range(10))


def test_the_last_one_applied_is_what_counts(digits: Any) -> None:
    before = state(digits)
    try:
        for candidate in (WITH_LAYERS, UNEVEN, LEADING, UNEVEN):
            apply(digits, candidate)
        assert torch.equal(to_uint8(call(digits, 10, 4)), images_of(UNEVEN))
    finally:
        remove(digits)
    assert state(digits) == before


def test_a_copy_of_the_pipeline_that_is_saved_is_as_ever(digits: Any, tmp_path: Path) -> None:
    with install(digits, WITH_LAYERS):
        digits.save_pretrained(tmp_path / "saved")
    again = load_pipeline(str(tmp_path / "saved"), device="cpu")
    assert type(again) is DDPMPipeline
    assert torch.equal(images(again, WITH_LAYERS, range(10)), images(digits, WITH_LAYERS, range(10)))


# No trace.


@pytest.mark.parametrize("candidate", [UNEVEN, WITH_LAYERS], ids=["times", "layers"])
def test_install_leaves_no_trace(candidate: Candidate, digits: Any) -> None:
    before = state(digits)
    with install(digits, candidate):
        call(digits, 2, len(candidate.steps))
        assert state(digits) != before
    assert state(digits) == before
    assert remove(digits) is digits
    assert state(digits) == before


class Boom(Exception):
    """What goes wrong."""


@pytest.mark.parametrize("candidate", [UNEVEN, WITH_LAYERS], ids=["times", "layers"])
@pytest.mark.parametrize("where", ["block", "denoiser", "consumer"])
def test_nor_after_an_exception(where: str, candidate: Candidate, digits: Any) -> None:
    before = state(digits)

    def boom(*_: Any) -> None:
        raise Boom

    if where == "block":
        with pytest.raises(Boom), install(digits, candidate):
            raise Boom
    elif where == "denoiser":
        hook = digits.unet.register_forward_hook(boom)
        with pytest.raises(Boom):
            images(digits, candidate, range(3))
        hook.remove()
    else:
        batches = generate(digits, candidate, range(9), seed=0, batch_size=3, micro_batch=3)
        next(batches)
        batches.close()
    assert state(digits) == before


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (Candidate.from_time_steps([1000, 3]), "0 to 999 for this model; got 1000"),
        (Candidate.from_time_steps([900, 3], removed=[[], [999]]), "got 999"),
        (Candidate.from_time_steps([900, 3], guidance_scale=2.0), "guidance_scale, but DDPMPipeline takes none"),
        (Candidate.from_time_steps([900, 3], removed=[[1], []], guidance_scale=2.0), "takes none"),
        (Candidate.from_dict({"steps": [900, {"time": 3, "compute": "partial"}]}), "partial"),
    ],
)
def test_a_candidate_that_does_not_fit(candidate: Candidate, message: str, digits: Any) -> None:
    before = state(digits)
    with pytest.raises(UserError) as error:
        apply(digits, candidate)
    assert message in str(error.value)
    assert state(digits) == before


def test_install_puts_back_what_was_applied_before(digits: Any) -> None:
    """As a search over a pipeline on which the user has a candidate."""
    try:
        apply(digits, UNEVEN)
        images(digits, WITH_LAYERS, range(2))
        with pytest.raises(Boom), install(digits, LEADING):
            raise Boom
        assert torch.equal(to_uint8(call(digits, 10, 4)), images_of(UNEVEN))
    finally:
        remove(digits)


# Guidance.


class Guided(SimpleNamespace):
    """A pipeline with classifier-free guidance, as far as its call goes."""

    __hash__ = object.__hash__

    def __call__(
        self, prompt: str, num_inference_steps: int = 50, guidance_scale: float = 7.5, eta: float = 0.0, **more: Any
    ) -> dict[str, Any]:
        """What it was called with."""
        self.scheduler.set_timesteps(num_inference_steps)
        times = self.scheduler.timesteps.tolist()
        return {"prompt": prompt, "scale": guidance_scale, "eta": eta, "times": times, **more}


@pytest.fixture
def guided(digits: Any) -> Iterator[Guided]:
    pipeline = Guided(scheduler=copy.deepcopy(digits.scheduler), unet=digits.unet)
    yield pipeline
    remove(pipeline)


def test_the_candidates_guidance_scale_is_used(guided: Guided) -> None:
    scaled = Candidate.from_time_steps([900, 3], guidance_scale=2.5)
    with install(guided, scaled):
        assert type(guided).__name__ == "Guided"
        assert isinstance(guided, Guided)
        wanted = {"prompt": "a cat", "scale": 2.5, "eta": 0.0, "times": [900, 3]}
        assert guided("a cat", 2) == wanted
        assert guided("a cat", 2, 9.0) == wanted
        assert guided(prompt="a cat", num_inference_steps=2, guidance_scale=9.0) == wanted
        assert guided("a cat", 2, 9.0, 0.5, height=8) == {**wanted, "eta": 0.5, "height": 8}
    assert type(guided) is Guided
    assert guided("a cat", 2)["scale"] == 7.5
    with install(guided, UNEVEN):
        assert guided("a cat", 4, 3.0)["scale"] == 3.0


# Loading.


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as error:
        load_pipeline(*args, **kwargs)
    return str(error.value)


def test_folders_and_names(digits: Any, tmp_path: Path) -> None:
    digits.save_pretrained(tmp_path / "own")
    again = load_pipeline(str(tmp_path / "own"), device="cpu")
    assert torch.equal(images(again, UNEVEN, range(5)), images(digits, UNEVEN, range(5)))
    assert fingerprint(again, str(tmp_path / "own")) == fingerprint(again, str(tmp_path / "own"))
    weights = next((tmp_path / "own").rglob("*.safetensors"))
    before = fingerprint(again, str(tmp_path / "own"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert fingerprint(again, str(tmp_path / "own")) != before


def test_models_that_are_none(tmp_path: Path) -> None:
    assert "must hold a model_index.json" in refused(str(tmp_path))
    assert "Did you mean 'digits'?" in refused("digit")
    assert "must be an embedded name (digits), a folder" in refused("./nowhere")
    assert "must be an embedded name (digits), a folder" in refused(str(tmp_path / "nowhere"))
    assert "'nobody/nothing' cannot be loaded" in refused("nobody/nothing")  # offline
    (tmp_path / "model_index.json").write_text("{")
    assert "cannot be loaded" in refused(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    assert "cannot be loaded" in refused(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}')
    assert "cannot be loaded" in refused(str(tmp_path))


def test_schedulers_by_name() -> None:
    assert "Did you mean 'ddim'?" in refused("digits", scheduler="dimm")
    assert "Did you mean 'DDIMScheduler'?" in refused("digits", scheduler="DDIMSchedler")
    assert "Did you mean 'steps_offset'?" in refused("digits", scheduler_settings={"step_offset": 1})
    spaced = load_pipeline("digits", scheduler_settings={"timestep_spacing": "trailing"}, device="cpu")
    assert spaced.scheduler.config.timestep_spacing == "trailing"


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "meta:3:2"])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(UserError, match="device must be auto, cpu, or a GPU that is there"):
        pick_device(device)


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
