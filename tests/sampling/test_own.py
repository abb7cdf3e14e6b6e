"""What a pipeline does by itself, recorded from its own call: the baseline ``own``."""

from __future__ import annotations

import math
import warnings
from typing import Any

import diffusers
import pytest
import torch
from marks import slow_but
from peers import pipelines
from peers.samples import IMAGES, SEED, call_by_hand, images_of, load, sampler_of

from autodiffusion_opt import Candidate, UserError, applied, apply
from autodiffusion_opt.sampling.generate import to_uint8
from autodiffusion_opt.sampling.own import own_candidate, own_guidance_scale, own_shift, record_own_call

pytestmark = [
    # diffusers 0.42's own
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


def plain_images(pipeline: Any, name: str, steps: int) -> torch.Tensor:
    """The pipeline called by hand, in the batches of ``images_of``."""
    batches = [0, 1, 2], [3, 3, 3]
    return torch.cat([call_by_hand(pipeline, name, batch, num_inference_steps=steps) for batch in batches])[:IMAGES]


def test_a_pipeline_that_cannot_run_alone_has_its_times_all_the_same() -> None:
    """DDIMScheduler does not split the channels of ADM's variance: a plain call raises an error at its first step."""
    pipeline = load("adm")
    with pytest.raises(RuntimeError, match="size of tensor"):
        plain_images(pipeline, "adm", 3)
    assert own_candidate(sampler_of(pipeline, "adm"), 3) == Candidate.from_time_steps([666, 333, 0])


KINDS = [name for name in pipelines.BUILDERS if name != "adm"]


@pytest.mark.parametrize("name", slow_but(KINDS, "ddim", "dit", "stable_diffusion", "sd3", "flux"))
def test_the_own_candidate_gives_the_images_of_a_plain_call(name: str) -> None:
    pipeline = load(name)
    expected = to_uint8(plain_images(pipeline, name, 3))
    own = own_candidate(sampler_of(pipeline, name), 3)
    got = images_of(pipeline, name, own, seed=SEED)
    assert (got.int() - expected.int()).abs().max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        ("euler", {}),
        ("heun", {}),
        ("lms", {}),
        ("plms", {}),
        ("dpmsolver++", {}),
        ("dpmsolver-singlestep", {}),
        ("unipc", {}),
        ("deis", {}),
        ("ddim", {"timestep_spacing": "trailing"}),
        ("euler", {"use_karras_sigmas": True}),
        ("heun", {"use_karras_sigmas": True}),
    ],
)
def test_of_every_scheduler_as_well(scheduler: str, settings: dict[str, Any]) -> None:
    pipeline = load("stable_diffusion", scheduler=scheduler, scheduler_settings=settings)
    expected = to_uint8(plain_images(pipeline, "stable_diffusion", 4))
    own = own_candidate(sampler_of(pipeline, "stable_diffusion"), 4)
    assert len(own.times) == 4
    got = images_of(pipeline, "stable_diffusion", own, seed=SEED)
    assert (got.int() - expected.int()).abs().max() <= 1


def test_flux_samples_at_times_that_its_own_call_shifts_for_the_size_of_the_image() -> None:
    """FluxPipeline: σ from 1 to 1/4 in even steps, moved by exp(μ), with μ linear in the number of latents."""
    sampler = sampler_of(load("flux"), "flux")
    mu = 0.5 + (1.15 - 0.5) * (16 - 256) / (4096 - 256)  # 4 × 4 patches of a 16 × 16 image
    shift = math.exp(mu)
    own = own_candidate(sampler, 4)
    assert own.times == pytest.approx(
        [1000 * shift * s / (1 + (shift - 1) * s) for s in (1, 0.75, 0.5, 0.25)], abs=1e-2
    )
    assert own_shift(sampler) == pytest.approx(shift)


def test_the_shift_is_that_of_the_configuration_and_one_for_other_models() -> None:
    assert own_shift(sampler_of(load("sd3"), "sd3")) == 3.0
    assert own_shift(sampler_of(load("stable_diffusion"), "stable_diffusion")) == 1.0


def test_recording_leaves_no_trace_and_does_not_see_an_applied_candidate() -> None:
    pipeline = load("ddim")
    sampler = sampler_of(pipeline, "ddim")
    scheduler, before = pipeline.scheduler, dict(vars(pipeline.scheduler))
    first = own_candidate(sampler, 4)
    assert pipeline.scheduler is scheduler
    assert vars(scheduler) == before
    apply(pipeline, Candidate.from_time_steps([901, 3]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert own_candidate(sampler, 4) == first == Candidate.from_time_steps([750, 500, 250, 0])
    assert applied(pipeline) == Candidate.from_time_steps([901, 3])


def test_the_guidance_scale_is_the_calls_where_a_study_gives_one_and_else_its_default() -> None:
    pipeline = load("stable_diffusion")
    sampler = sampler_of(pipeline, "stable_diffusion")
    assert own_guidance_scale(sampler) == 7.5
    assert own_candidate(sampler, 2).guidance_scale is None
    given = sampler_of(pipeline, "stable_diffusion", call={"guidance_scale": 3})
    assert own_candidate(given, 2, with_guidance=True).guidance_scale == 3.0
    assert own_guidance_scale(sampler_of(load("ddim"), "ddim")) is None


class OneMore(diffusers.DDIMScheduler):
    """Makes a step more than it is asked for, as some spacings do."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps + 1, device)


def test_own_has_the_number_of_calls_that_is_wanted_also_where_the_scheduler_makes_one_more() -> None:
    pipeline = load("ddim")
    pipeline.scheduler = OneMore.from_config(pipeline.scheduler.config)
    OneMore.__name__ = "DDIMScheduler"
    assert record_own_call(sampler_of(pipeline, "ddim"), 4).times == (800, 600, 400, 200, 0)
    assert own_candidate(sampler_of(pipeline, "ddim"), 4) == Candidate.from_time_steps([750, 500, 250, 0])


def test_too_many_steps_are_refused_with_diffusers_words() -> None:
    with pytest.raises(UserError, match="no times of its own for 2000 steps"):
        record_own_call(sampler_of(load("ddim"), "ddim"), 2000)
