"""A pipeline's numbers as a space needs them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from peers.samples import load

from autodiffusion_opt import Candidate, UserError
from autodiffusion_opt.sampling.conditions import Prompts
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.introspect import read_model_info
from autodiffusion_opt.sampling.layers import list_layers
from autodiffusion_opt.space import cost
from autodiffusion_opt.zoo import EMBEDDED

# diffusers' own set_timesteps, with NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]
LAYERS = Candidate.from_time_steps([926, 690, 424, 153], removed=[[1, 2], [], [5], [0, 1, 2, 3]])


def test_the_numbers_of_digits(digits: Any) -> None:
    info = read_model_info(digits)
    assert (info.train_steps, info.lowest, info.highest, info.continuous) == (1000, 0.0, 999.0, True)
    assert (info.layout, info.layers, info.removable, info.steps_offset) == ("once", 18, tuple(range(18)), 0)
    assert (info.ranking, info.ays) == ((), ())
    alphas = digits.scheduler.alphas_cumprod.double()
    assert info.sigmas == pytest.approx(((1 - alphas) / alphas).sqrt().tolist())
    saved = info.layer_flops
    assert saved == tuple(layer.saved_flops for layer in list_layers(digits.unet))
    assert len(saved) == 18
    assert saved != saved[::-1]
    assert 0 < sum(info.layer_flops) < info.flops


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [
        # lowest, highest, continuous, steps_offset, number of sigmas, layout, layers, times of AYS
        ("stable_diffusion", {}, (0, 999, True, 1, 1000, "plms", 12, 10)),
        ("stable_diffusion", {"scheduler": "heun"}, (0, 999, True, 1, 1000, "heun", 12, 10)),
        ("sdxl", {}, (0, 999, True, 0, 1000, "once", 12, 10)),
        ("sd3", {}, (1, 1000, True, 0, 0, "once", 2, 0)),
        ("sd3", {"scheduler": "flow-heun"}, (1, 1000, True, 0, 0, "heun", 2, 0)),
        ("flux", {}, (1, 1000, True, 0, 0, "once", 2, 0)),
        ("consistency", {}, (0, 999, False, 0, 1000, "once", 12, 0)),
        ("dit", {}, (0, 999, True, 0, 1000, "once", 2, 0)),
    ],
)
def test_the_numbers_of_each_kind(name: str, settings: dict[str, str], wanted: tuple[Any, ...]) -> None:
    info = read_model_info(load(name, **settings))
    found = (info.lowest, info.highest, info.continuous, info.steps_offset, len(info.sigmas), info.layout)
    assert (*found, info.layers, len(info.ays)) == wanted
    assert info.train_steps == 1000


def test_align_your_steps_are_the_papers_times_of_each_model() -> None:
    """Sabour et al., 2024, as diffusers lists them."""
    sd = read_model_info(load("stable_diffusion")).ays
    assert sd == (999, 850, 736, 645, 545, 455, 343, 233, 124, 24)
    xl = read_model_info(load("sdxl")).ays
    assert xl == (999, 845, 730, 587, 443, 310, 193, 116, 53, 13)


def heun_of_digits() -> Any:
    """The embedded network with a scheduler that calls it twice a step; only its numbers are read."""
    unet = diffusers.UNet2DModel.from_pretrained(EMBEDDED["digits"].pipeline / "unet")
    return SimpleNamespace(unet=unet, scheduler=diffusers.HeunDiscreteScheduler(beta_schedule="linear"))


def test_the_costs_of_heun_on_digits() -> None:
    """7 calls in 4 steps: 2·(18 - 2) + 2·18 + 2·(18 - 1) + 1·(18 - 4) layer runs."""
    info = read_model_info(heun_of_digits())
    assert (cost.nfe(info, LAYERS), cost.layer_runs(info, LAYERS)) == (7, 116)


@pytest.mark.parametrize(
    ("scheduler", "calls"), [("ddim", [1, 1, 1, 1]), ("heun", [2, 2, 2, 1]), ("plms", [2, 1, 1, 1])]
)
def test_the_costs_are_what_the_networks_are_seen_to_do(scheduler: str, calls: list[int]) -> None:
    """Counted by hooks on the parts of the layers that a bypassed layer does not run."""
    settings = {"timestep_spacing": "leading"} if scheduler == "ddim" else {}
    pipeline = load("stable_diffusion", scheduler=scheduler, scheduler_settings=settings)
    ran = {"network": 0, "residual": 0, "attention": 0}

    def count(what: str) -> Any:
        return lambda *_: ran.__setitem__(what, ran[what] + 1)

    pipeline.unet.conv_in.register_forward_hook(count("network"))
    for module in pipeline.unet.modules():
        if type(module).__name__ == "ResnetBlock2D":
            module.conv1.register_forward_hook(count("residual"))
        elif type(module).__name__ == "Transformer2DModel":
            module.proj_in.register_forward_hook(count("attention"))
    info = read_model_info(pipeline)
    ran.update(dict.fromkeys(ran, 0))
    sampler = ImageSampler(pipeline, Prompts(["a cat"]), micro_batch=1, batch_size=1)
    torch.cat(list(sampler.images(LAYERS, [0], 0)))
    assert ran["network"] == cost.nfe(info, LAYERS) == sum(calls)
    wanted = sum(number * (12 - gone) for number, gone in zip(calls, (2, 0, 1, 4), strict=True))
    assert ran["residual"] + ran["attention"] == cost.layer_runs(info, LAYERS) == wanted


class Strange(torch.nn.Module):
    """A denoiser with no layer of a known kind."""

    config = {"sample_size": 4, "in_channels": 1}  # noqa: RUF012

    def forward(self, sample: torch.Tensor, timestep: Any) -> Any:
        return sample


def test_layers_that_cannot_be_counted_are_none_unless_they_are_needed(digits: Any) -> None:
    strange = SimpleNamespace(unet=Strange(), scheduler=digits.scheduler)
    info = read_model_info(strange)
    assert (info.layers, info.flops, info.layer_flops, info.removable) == (0, 0, (), ())
    assert info.train_steps == 1000
    with pytest.raises(UserError):
        read_model_info(strange, need_layers=True)


def test_a_ranking_is_kept_as_it_is(digits: Any) -> None:
    assert read_model_info(digits, ranking=[[2, 1], [1, 2], [2, 1]]).ranking == ((2, 1), (1, 2), (2, 1))
