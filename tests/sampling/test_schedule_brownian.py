"""Solvers whose noise follows a Brownian path: each image has its own, whatever it is sampled with."""

from __future__ import annotations

import importlib.util
from typing import Any

import diffusers
import pytest
import torch
from peers import pipelines
from peers.samples import load

from autodiffusion_opt import Candidate, UserError
from autodiffusion_opt.sampling.conditions import Prompts
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.load import scheduler_class
from autodiffusion_opt.sampling.schedule.brownian import BrownianSteps

NAMES = ["CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler"]
UNEVEN = Candidate.from_time_steps([901, 733, 404, 58])
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers' own
    pytest.mark.filterwarnings("ignore:__array_wrap__ must:DeprecationWarning"),
]


def sampler(name: str, **sizes: Any) -> ImageSampler:
    pytest.importorskip("torchsde")
    pipeline = load("stable_diffusion")
    pipeline.scheduler = getattr(diffusers, name)()
    return ImageSampler(pipeline, Prompts(pipelines.PROMPTS), micro_batch=2, **{"batch_size": 2, **sizes})


def images(sampler: ImageSampler, *indices: int, seed: int = 3) -> torch.Tensor:
    return torch.cat(list(sampler.images(UNEVEN, indices, seed)))


@pytest.mark.parametrize("name", NAMES)
def test_an_image_depends_on_its_seed_and_index_alone(name: str) -> None:
    all_of_them = images(sampler(name), 0, 1, 2, 3)
    assert torch.equal(images(sampler(name, batch_size=3), 3, 1, 2), all_of_them[[3, 1, 2]])
    assert not torch.equal(images(sampler(name), 0, 1, seed=4), all_of_them[:2])


def test_a_path_goes_on_where_a_step_begins_at_the_same_noise() -> None:
    """The covariance of two noises from one σ is that of a Brownian path: √(shorter / longer)."""
    draw = BrownianSteps(torch.empty(1, 40_000, dtype=torch.float64), torch.Generator().manual_seed(0))
    high, middle, low, least = torch.tensor([4.0, 3.0, 1.0, 0.5], dtype=torch.float64)
    half, whole, after = draw(high, middle), draw(high, low), draw(low, least)
    for noise in (half, whole, after):
        assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert float((half * whole).mean()) == pytest.approx((1 / 3) ** 0.5, abs=0.02)
    assert float((whole * after).mean()) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_without_torchsde_a_sentence_says_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"{name} needs torchsde: pip install 'autodiffusion-opt\[sde\]'"):
        scheduler_class(name)
