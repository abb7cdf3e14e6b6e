"""Ranking layers by what their removal changes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel, PNDMScheduler

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.apply import apply
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.conditions import Labels, Unconditional
from autodiffusion_opt.sampling.generate import ImageSampler, noise_generator
from autodiffusion_opt.sampling.layers import install_bypass
from autodiffusion_opt.sampling.load import load_pipeline
from autodiffusion_opt.sampling.ranking import rank_layers
from autodiffusion_opt.sampling.schedule.state import KEY

TINY = {"images": 2, "times_per_third": 1}
LAYERS = range(18)
Calls = list[tuple[torch.Tensor, int]]


@pytest.fixture
def pipeline() -> Any:
    return load_pipeline("digits", scheduler="ddim", device="cpu")


def sampler(pipeline: Any, micro_batch: int = 16, **more: Any) -> ImageSampler:
    return ImageSampler(pipeline, micro_batch=micro_batch, batch_size=micro_batch, **more)


def state(pipeline: Any) -> tuple[Any, ...]:
    """All that a ranking could leave behind."""
    modules = {name: sorted(vars(module)) for name, module in pipeline.unet.named_modules()}
    return modules, dict(pipeline.unet._forward_pre_hooks), dict(vars(pipeline.scheduler)), dict(vars(pipeline))


def test_each_third_orders_every_removable_layer_tells_progress_and_leaves_no_trace(pipeline: Any) -> None:
    before, told = state(pipeline), []
    ranking = rank_layers(sampler(pipeline), **TINY, progress=lambda *counts: told.append(counts))
    assert [sorted(third) for third in ranking] == [list(LAYERS)] * 3
    assert told[:30] == [("sampling to rank layers", step, 30) for step in range(30)]
    assert told[30:] == [("ranking layers", layer + 1, 18) for layer in LAYERS]
    assert state(pipeline) == before


# The order, against a loop of our own: DDIM on 30 even times, its network called at some of them, each layer removed.


def inputs(pipeline: Any, steps: tuple[int, ...], seed: int = 0) -> Calls:
    """What the network sees at some steps while image 0 is sampled at 30 even times from the noisiest on."""
    times = [round(999 - 999 * step / 30) for step in range(30)]
    alphas = torch.cat([pipeline.scheduler.alphas_cumprod.double()[times], torch.ones(1, dtype=torch.float64)])
    x = torch.randn(1, 1, 8, 8, generator=noise_generator(seed, 0)).double()
    seen: Calls = []
    for step, time in enumerate(times):
        now, after = alphas[step], alphas[step + 1]
        if step in steps:
            seen.append((x.float(), time))
        with torch.inference_mode():
            noise = pipeline.unet(x.float(), time).sample.double()
        clean = ((x - (1 - now).sqrt() * noise) / now.sqrt()).clamp(-1, 1)
        x = after.sqrt() * clean + (1 - after).sqrt() * noise
    return seen


def order(pipeline: Any, calls: Calls, norm: Any = torch.Tensor.norm) -> tuple[int, ...]:
    """The layers by the sum of their relative changes."""
    changes = dict.fromkeys(LAYERS, 0.0)
    with torch.inference_mode():
        for x, time in calls:
            whole = pipeline.unet(x, time).sample.double()
            for layer in LAYERS:
                with install_bypass(pipeline.unet, [[layer]], lambda: 0):
                    changes[layer] += float(norm(pipeline.unet(x, time).sample.double() - whole) / norm(whole))
    return tuple(sorted(LAYERS, key=changes.__getitem__))


# Two calls in each third, each in the middle of its half.
MIDDLES = ((2, 7), (12, 17), (22, 27))


@pytest.mark.slow
def test_the_order_is_that_of_relative_l2_changes_at_the_middle_calls_of_each_third(pipeline: Any) -> None:
    ranking = rank_layers(sampler(pipeline), images=1, times_per_third=2)
    assert ranking == tuple(order(pipeline, inputs(pipeline, steps)) for steps in MIDDLES)
    # What would be found by another norm, other noise, or other calls is something else.
    for steps, third in zip(MIDDLES, ranking, strict=True):
        first, second = steps
        assert order(pipeline, inputs(pipeline, steps), lambda x: x.abs().sum()) != third
        assert order(pipeline, inputs(pipeline, steps, seed=1)) != third
        assert order(pipeline, inputs(pipeline, (first,))) != third
        assert order(pipeline, inputs(pipeline, (second,))) != third


@pytest.mark.slow
def test_a_single_call_is_that_in_the_middle_of_its_third(pipeline: Any) -> None:
    ranking = rank_layers(sampler(pipeline), images=1, times_per_third=1)
    assert ranking == tuple(order(pipeline, inputs(pipeline, (step,))) for step in (5, 15, 25))


@pytest.mark.slow
def test_the_seed_is_that_of_the_images_noise(pipeline: Any) -> None:
    ranking = rank_layers(sampler(pipeline), images=1, times_per_third=1, seed=3)
    assert ranking == tuple(order(pipeline, inputs(pipeline, (step,), seed=3)) for step in (5, 15, 25))


def test_a_call_counts_by_its_relative_change_however_large_its_output(pipeline: Any) -> None:
    """After sampling, the first call of each third gives 1024 times as much: absolute changes would be its alone."""
    wanted = rank_layers(sampler(pipeline), images=1, times_per_third=2)
    first = {round(999 - 999 * steps[0] / 30) for steps in MIDDLES}

    def enlarged(_: Any, args: tuple[Any, ...], output: Any) -> Any:
        if KEY in vars(pipeline.scheduler) or int(args[1]) not in first:
            return output
        return type(output)(sample=1024 * output.sample)

    with pipeline.unet.register_forward_hook(enlarged):
        assert rank_layers(sampler(pipeline), images=1, times_per_third=2) == wanted


def test_a_layer_that_does_nothing_comes_first(pipeline: Any) -> None:
    """Its residual branch ends in zeros: removing it changes nothing."""
    idle = denoiser_of(pipeline).get_submodule("down_blocks.1.resnets.1").conv2
    torch.nn.init.zeros_(idle.weight)
    torch.nn.init.zeros_(idle.bias)
    assert [third[0] for third in rank_layers(sampler(pipeline), **TINY)] == [4, 4, 4]


def test_of_equal_layers_the_earlier_comes_first(pipeline: Any) -> None:
    for name in ("down_blocks.1.resnets.1", "down_blocks.0.resnets.0"):
        idle = denoiser_of(pipeline).get_submodule(name).conv2
        torch.nn.init.zeros_(idle.weight)
        torch.nn.init.zeros_(idle.bias)
    assert [third[:2] for third in rank_layers(sampler(pipeline), **TINY)] == [(0, 4)] * 3


def test_a_layer_without_which_the_output_is_not_finite_comes_last(pipeline: Any) -> None:
    unet, ran = pipeline.unet, []
    unet.register_forward_pre_hook(lambda *_: ran.clear())
    unet.get_submodule("down_blocks.1.resnets.1").conv1.register_forward_hook(lambda *_: ran.append(True))

    def broken(_: Any, __: Any, output: Any) -> Any:
        return output if ran else type(output)(sample=output.sample * torch.nan)

    unet.register_forward_hook(broken)
    assert [third[-1] for third in rank_layers(sampler(pipeline), **TINY)] == [4, 4, 4]


class Recorded(Unconditional):
    """No condition, and the indices that each call was made for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def arguments(self, pipeline: Any, indices: Any) -> dict[str, Any]:
        self.asked.append(list(indices))
        return {"batch_size": len(indices)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "micro_batch", "asked"),
    [(4, 16, [[0, 1, 2, 3]]), (4, 3, [[0, 1], [2, 3]]), (5, 4, [[0, 1, 2], [3, 4, 4]])],
)
def test_images_are_sampled_in_as_few_equal_calls_as_the_micro_batch_allows(
    images: int, micro_batch: int, asked: list[list[int]], pipeline: Any
) -> None:
    recorded = Recorded()
    rank_layers(sampler(pipeline, micro_batch, conditions=recorded), images=images, times_per_third=1)
    assert recorded.asked == asked


def guided(scheduler: Any) -> Any:
    """A small class-conditional transformer with classifier-free guidance, random weights."""
    torch.manual_seed(0)
    settings = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "sample_size": 4}
    transformer = DiTTransformer2DModel(in_channels=4, out_channels=4, num_embeds_ada_norm=1000, **settings)
    vae = AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4)
    pipeline = DiTPipeline(transformer.eval(), vae.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("scheduler", [DDIMScheduler, partial(PNDMScheduler, skip_prk_steps=True)])
def test_the_calls_kept_have_the_conditions_and_both_halves_of_the_guidance_batch(scheduler: Any) -> None:
    """Also with solvers that call twice; a layer made idle at its output comes first."""
    pipeline, seen = guided(scheduler()), set()
    idle = pipeline.transformer.transformer_blocks[1]
    for last in (idle.attn1.to_out[0], idle.ff.net[2]):
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    watch = pipeline.transformer.register_forward_pre_hook(
        lambda _, args, given: seen.add((len(args[0]), tuple(given["class_labels"].tolist()))), with_kwargs=True
    )
    ranking = rank_layers(sampler(pipeline, conditions=Labels((7, 9))), **TINY)
    watch.remove()
    assert [third[0] for third in ranking] == [1, 1, 1]
    assert seen == {(4, (7, 9, 1000, 1000))}


def test_a_pipeline_that_fails_is_left_as_it_was(pipeline: Any) -> None:
    before = state(pipeline)
    with pytest.raises(TypeError):
        rank_layers(sampler(pipeline, call={"no_such_argument": 1}), **TINY)
    assert state(pipeline) == before


def test_a_pipeline_with_a_candidate_is_refused_and_keeps_it(pipeline: Any) -> None:
    apply(pipeline, Candidate.from_time_steps([900, 500, 100]))
    before = state(pipeline)
    with pytest.raises(UserError, match=r"remove\(pipeline\)"):
        rank_layers(sampler(pipeline), **TINY)
    assert state(pipeline) == before


@pytest.mark.parametrize("name", ["images", "times_per_third"])
def test_a_count_of_none_is_refused(pipeline: Any, name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be 1 or more; got 0"):
        rank_layers(sampler(pipeline), **(TINY | {name: 0}))
