"""A candidate on a pipeline: what is applied is right, and leaves no trace."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline
from marks import slow_but
from peers import pipelines
from peers.samples import images_of, load

from autodiffusion_opt import Candidate, UserError, applied, apply, install, load_pipeline, remove
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.fingerprint import fingerprint
from autodiffusion_opt.sampling.generate import ImageSampler, noise_generator, to_uint8
from autodiffusion_opt.sampling.layers import list_layers

UNEVEN = Candidate.from_time_steps([926, 690, 424, 153])
LEADING = Candidate.from_time_steps([750, 500, 250, 0])
WITH_LAYERS = Candidate.from_time_steps([926, 690, 424], removed=[[0, 3], [], [5]])
# diffusers' own set_timesteps, with NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


def images(pipeline: Any, candidate: Candidate, count: int = 10) -> torch.Tensor:
    return torch.cat(list(ImageSampler(pipeline, micro_batch=10, batch_size=10).images(candidate, range(count), 0)))


def images_of_a_fresh_pipeline(candidate: Candidate) -> torch.Tensor:
    return images(load_pipeline("digits", scheduler="ddim", device="cpu"), candidate)


def generators(count: int) -> list[torch.Generator]:
    return [noise_generator(0, index) for index in range(count)]


def call(pipeline: Any, count: int, steps: int) -> torch.Tensor:
    """The pipeline's own call, as a user makes it."""
    return pipeline(batch_size=count, generator=generators(count), num_inference_steps=steps, output_type="pt").images


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


# Right.


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


def test_apply_gives_the_searched_images_whatever_number_of_steps_is_asked_for(digits: Any) -> None:
    for candidate in (UNEVEN, WITH_LAYERS):
        wanted = images(digits, candidate)
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


def test_apply_reads_a_candidate_from_a_file(digits: Any, tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text(UNEVEN.to_json())
    try:
        for given in (tmp_path / "best.json", str(tmp_path / "best.json")):
            apply(digits, given)
            assert torch.equal(to_uint8(call(digits, 10, 4)), images_of_a_fresh_pipeline(UNEVEN))
    finally:
        remove(digits)


def test_the_last_candidate_applied_is_what_counts(digits: Any) -> None:
    before = state(digits)
    try:
        for candidate in (WITH_LAYERS, UNEVEN, LEADING, UNEVEN):
            apply(digits, candidate)
        assert torch.equal(to_uint8(call(digits, 10, 4)), images_of_a_fresh_pipeline(UNEVEN))
    finally:
        remove(digits)
    assert state(digits) == before


def test_use_the_result_of_a_stable_diffusion_search(tmp_path: Path) -> None:
    """README, "Use the result"."""
    (tmp_path / "best.json").write_text(UNEVEN.to_json())
    pipe = diffusers.DiffusionPipeline.from_pretrained(pipelines.saved("stable_diffusion"))
    pipe.set_progress_bar_config(disable=True)
    pipe = apply(pipe, str(tmp_path / "best.json"))
    image = pipe("a cat", num_inference_steps=4, generator=torch.manual_seed(0)).images[0]
    assert image.size == (64, 64)
    remove(pipe)
    plain = pipe("a cat", num_inference_steps=4, generator=torch.manual_seed(0)).images[0]
    assert plain != image


def test_use_the_result_of_a_flux_search() -> None:
    pipe = diffusers.FluxPipeline.from_pretrained(pipelines.saved("flux"))
    pipe.set_progress_bar_config(disable=True)
    pipe = apply(pipe, Candidate.from_time_steps([1000, 812.5, 250]))
    image = pipe("a cat", height=16, width=16, num_inference_steps=3, generator=torch.manual_seed(0)).images[0]
    assert image.size == (16, 16)


@pytest.mark.parametrize(
    ("scheduler", "steps"), [("ddim", [0, 1, 2, 3]), ("plms", [0, 0, 1, 2, 3]), ("heun", [0, 0, 1, 1, 2, 2, 3])]
)
@pytest.mark.parametrize("without", slow_but([0, 1, 2, 3], 0, 2))
def test_a_layer_is_left_out_at_exactly_the_steps_that_the_candidate_says(
    without: int, scheduler: str, steps: list[int]
) -> None:
    """In every call of those steps, and in no other."""
    settings = {"timestep_spacing": "leading"} if scheduler == "ddim" else {}
    pipeline, ran = load("stable_diffusion", scheduler=scheduler, scheduler_settings=settings), []
    pipeline.unet.register_forward_pre_hook(lambda *_: ran.append(False))
    block = pipeline.unet.down_blocks[0].resnets[0]
    block.conv1.register_forward_hook(lambda *_: ran.__setitem__(-1, True))
    [layer] = [one.index for one in list_layers(pipeline.unet) if pipeline.unet.get_submodule(one.path) is block]
    ran.clear()  # counting layers runs the network
    removed = [[layer] if step == without else [] for step in range(4)]
    apply(pipeline, Candidate.from_time_steps([926, 690, 424, 153], removed=removed))
    pipeline("a cat", num_inference_steps=4, guidance_scale=1.0, output_type="latent")
    assert ran == [step != without for step in steps]


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
def test_no_trace_is_left_after_an_exception(where: str, candidate: Candidate, digits: Any) -> None:
    before = state(digits)

    def boom(*_: Any) -> None:
        raise Boom

    if where == "block":
        with pytest.raises(Boom), install(digits, candidate):
            raise Boom
    elif where == "denoiser":
        hook = digits.unet.register_forward_hook(boom)
        with pytest.raises(Boom):
            images(digits, candidate, 3)
        hook.remove()
    else:
        blocks = ImageSampler(digits, micro_batch=3, batch_size=3).images(candidate, range(9), 0)
        next(blocks)
        blocks.close()
    assert state(digits) == before


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (Candidate.from_time_steps([1000, 3]), "0 to 999 for this model; got 1000"),
        (Candidate.from_time_steps([900, 3], removed=[[], [999]]), "got 999"),
        (Candidate.from_time_steps([900, 3], guidance_scale=2.0), "guidance_scale, but DDPMPipeline takes none"),
        (Candidate.from_time_steps([900, 3], removed=[[1], []], guidance_scale=2.0), "takes none"),
        (Candidate.from_dict({"steps": [900, {"time": 3, "branch": 9}]}), "has 6 branches, 0 to 5; got 9"),
    ],
)
def test_a_candidate_that_does_not_fit_is_refused_and_leaves_no_trace(
    candidate: Candidate, message: str, digits: Any
) -> None:
    before = state(digits)
    with pytest.raises(UserError) as error:
        apply(digits, candidate)
    assert message in str(error.value)
    assert state(digits) == before


def test_install_puts_back_the_candidate_that_was_applied_before(digits: Any) -> None:
    """As a search over a pipeline on which the user has a candidate."""
    try:
        apply(digits, UNEVEN)
        with pytest.raises(Boom), install(digits, LEADING):
            raise Boom
        assert torch.equal(to_uint8(call(digits, 10, 4)), images_of_a_fresh_pipeline(UNEVEN))
    finally:
        remove(digits)


@pytest.mark.parametrize("name", slow_but(pipelines.BUILDERS, "adm", "stable_diffusion", "flux"))
def test_on_every_pipeline_removed_layers_guidance_and_times_leave_no_trace(name: str) -> None:
    pipeline = load(name)
    plain = Candidate.from_time_steps([901, 640, 222])
    layer = next(one.index for one in list_layers(denoiser_of(pipeline)) if one.removable)
    before = images_of(pipeline, name, plain)
    removed = Candidate.from_time_steps([901, 640, 222], removed=[[layer], [], [layer]])
    assert not torch.equal(images_of(pipeline, name, removed), before)
    if name in (*pipelines.TEXT, "dit"):
        guided = Candidate.from_time_steps([901, 640, 222], guidance_scale=3.25)
        assert not torch.equal(images_of(pipeline, name, guided), before)
    assert torch.equal(images_of(pipeline, name, plain), before)


@pytest.mark.parametrize("name", ["stable_diffusion", "flux", "dit", "ddim"])
def test_a_pipeline_saved_with_a_candidate_is_plain_in_diffusers_and_has_it_here(name: str, tmp_path: Path) -> None:
    pipeline = load(name)
    before, own = images_of(pipeline, name), fingerprint(pipeline, str(pipelines.saved(name)))
    apply(pipeline, Candidate.from_time_steps([900, 300]))
    pipeline.save_pretrained(tmp_path)
    plain = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(plain) is type(load(name))
    plain.set_progress_bar_config(disable=True)
    assert torch.equal(images_of(plain, name), before)
    assert fingerprint(load(name), str(pipelines.saved(name))) == own
    without = load_pipeline(str(tmp_path), device="cpu", with_candidate=False)
    assert type(without) is type(load(name))
    again = load_pipeline(str(tmp_path), device="cpu")
    assert applied(again) == Candidate.from_time_steps([900, 300])


def test_digits_saved_while_layers_are_removed_are_saved_whole(digits: Any, tmp_path: Path) -> None:
    with install(digits, WITH_LAYERS):
        digits.save_pretrained(tmp_path / "saved")
    again = load_pipeline(str(tmp_path / "saved"), device="cpu")
    assert applied(again) == WITH_LAYERS
    assert type(remove(again)) is DDPMPipeline
    assert torch.equal(images(again, WITH_LAYERS), images(digits, WITH_LAYERS))


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


def test_the_candidates_guidance_scale_is_used_whatever_the_call_says(guided: Guided) -> None:
    scaled = Candidate.from_time_steps([900, 3], guidance_scale=2.5)
    with install(guided, scaled):
        assert type(guided).__name__ == "Guided"
        assert isinstance(guided, Guided)
        wanted = {"prompt": "a cat", "scale": 2.5, "eta": 0.0, "times": [900, 3]}
        assert guided("a cat", 2) == wanted
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert guided("a cat", 2, 9.0) == wanted
            assert guided(prompt="a cat", num_inference_steps=2, guidance_scale=9.0) == wanted
            assert guided("a cat", 2, 9.0, 0.5, height=8) == {**wanted, "eta": 0.5, "height": 8}
        [told] = caught  # once, and where the call stands
        assert (told.filename, str(told.message).partition(":")[0]) == (__file__, "guidance_scale=9.0 is not used")
    assert type(guided) is Guided
    assert guided("a cat", 2)["scale"] == 7.5


def test_a_candidate_without_a_guidance_scale_leaves_the_calls_own(guided: Guided) -> None:
    with install(guided, UNEVEN):
        assert guided("a cat", 4, 3.0)["scale"] == 3.0


def test_a_single_step_is_refused_where_the_pipeline_would_fail_in_the_middle_of_it() -> None:
    single = Candidate.from_time_steps([900])
    with pytest.raises(UserError, match="makes a single step by the predicted image"):
        apply(load("pixart_alpha"), single)
    apply(load("pixart_sigma"), single)
    pipeline = apply(load("pixart_alpha", scheduler="ddim"), single)
    settings = pipelines.CALLS["pixart_alpha"]
    assert len(pipeline("a cat", **settings, num_inference_steps=1, output_type="pt").images) == 1
