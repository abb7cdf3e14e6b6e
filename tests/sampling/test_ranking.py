"""Ranking layers by what their removal changes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    PNDMScheduler,
)

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.layers import install_bypass
from autodiffusion_opt.sampling.load import denoiser_of, load_pipeline
from autodiffusion_opt.sampling.apply import apply
from autodiffusion_opt.sampling.ranking import rank_layers

PLMS = partial(PNDMScheduler, skip_prk_steps=True)
TINY = {"images": 2, "times_per_third": 1}


@pytest.fixture
def pipeline() -> Any:
    return load_pipeline("digits", device="cpu")


def state(pipeline: Any) -> tuple[Any, ...]:
    """All that a ranking could leave behind."""
    modules = {name: sorted(vars(module)) for name, module in pipeline.unet.named_modules()}
    return modules, dict(pipeline.unet._forward_pre_hooks), dict(vars(pipeline.scheduler)), dict(vars(pipeline))


def test_each_third_orders_every_removable_layer_and_leaves_no_trace(pipeline: Any) -> None:
    before, told = state(pipeline), []
    ranking = rank_layers(pipeline, **TINY, progress=lambda *counts: told.append(counts))
    assert [sorted(third) for third in ranking] == [list(range(18))] * 3
    assert told[:30] == [("sampling to rank layers", step, 30) for step in range(30)]
    assert told[30:] == [("ranking layers", layer + 1, 18) for layer in range(18)]
    assert state(pipeline) == before


def test_the_same_seed_gives_the_same_ranking(pipeline: Any) -> None:
    assert rank_layers(pipeline, **TINY) == rank_layers(pipeline, **TINY)


def test_a_layer_that_does_nothing_comes_first(pipeline: Any) -> None:
    """Its residual branch ends in zeros: removing it changes nothing."""
    idle = denoiser_of(pipeline).get_submodule("down_blocks.1.resnets.1").conv2
    torch.nn.init.zeros_(idle.weight)
    torch.nn.init.zeros_(idle.bias)
    assert [third[0] for third in rank_layers(pipeline, **TINY)] == [4, 4, 4]


def test_the_order_is_that_of_an_independent_measurement(pipeline: Any) -> None:
    """On pure noise at the noisiest time: what the first call of the pipeline sees is about that."""
    torch.manual_seed(0)
    noise, unet = torch.randn(16, 1, 8, 8), pipeline.unet
    changes = []
    with torch.no_grad():
        whole = unet(noise, 900).sample
        for layer in range(18):
            with install_bypass(unet, [[layer]], lambda: 0):
                changes.append(float((unet(noise, 900).sample - whole).norm() / whole.norm()))
    ranking = rank_layers(pipeline, images=16)[0]
    assert set(ranking[:3]) <= set(sorted(range(18), key=changes.__getitem__)[:6])
    assert set(ranking[-3:]) <= set(sorted(range(18), key=changes.__getitem__)[-6:])


class Classes:
    """Image i is of class i."""

    def arguments(self, pipeline: Any, indices: Any) -> dict[str, Any]:
        return {"class_labels": list(indices)}


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
def test_conditions_guidance_and_solvers_that_call_twice(scheduler: Any) -> None:
    """A layer made idle at its output comes first; the calls kept have both halves of the guidance batch."""
    pipeline, sizes = guided(scheduler()), set()
    idle = pipeline.transformer.transformer_blocks[1]
    for last in (idle.attn1.to_out[0], idle.ff.net[2]):
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    pipeline.transformer.register_forward_pre_hook(lambda _, args: sizes.add(len(args[0])))
    ranking = rank_layers(pipeline, **TINY, conditions=Classes())
    assert [third[0] for third in ranking] == [1, 1, 1]
    assert sizes == {4}


def test_a_pipeline_that_fails_is_left_as_it_was(pipeline: Any) -> None:
    before = state(pipeline)
    with pytest.raises(TypeError):
        rank_layers(pipeline, **TINY, call={"no_such_argument": 1})
    assert state(pipeline) == before


def test_a_pipeline_with_a_candidate_is_refused_and_keeps_it(pipeline: Any) -> None:
    apply(pipeline, Candidate.from_time_steps([900, 500, 100]))
    before = state(pipeline)
    with pytest.raises(UserError, match=r"remove\(pipeline\)"):
        rank_layers(pipeline, **TINY)
    assert state(pipeline) == before


@pytest.mark.parametrize("name", ["images", "times_per_third"])
def test_a_count_of_none_is_refused(pipeline: Any, name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be 1 or more; got 0"):
        rank_layers(pipeline, **(TINY | {name: 0}))
