"""``lpips`` with torchmetrics, or with a module that stands in for it; without either, what to install."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peers.samples import load, sampler_of

from autodiffusion_opt import Candidate, ModelInfo, UserError
from autodiffusion_opt.config import build
from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.sampling.teacher import Teacher

pytestmark = pytest.mark.usefixtures("cache")

CANDIDATE = Candidate.from_time_steps([900, 300])


class Distance(torch.nn.Module):
    """In place of torchmetrics' class, with its arguments and its checks: the mean squared difference."""

    made: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, net_type: str = "alex", reduction: str = "mean", normalize: bool = False) -> None:
        super().__init__()
        Distance.made.append({"net_type": net_type, "reduction": reduction, "normalize": normalize})

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        for images in (one, other):
            assert images.shape[1] == 3
            assert images.dtype == torch.float32
            assert 0 <= images.min() <= images.max() <= 1
        if one.shape[-1] < 16:
            raise RuntimeError("Kernel size can't be greater than actual input size\nmore")
        return (one - other).square().mean()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[Distance]:
    """A module ``torchmetrics`` with the one class."""
    package, image, lpip = (types.ModuleType(f"torchmetrics{rest}") for rest in ("", ".image", ".image.lpip"))
    package.__version__ = "9.9"  # type: ignore[attr-defined]
    lpip.LearnedPerceptualImagePatchSimilarity = Distance  # type: ignore[attr-defined]
    for module in (package, image, lpip):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    Distance.made.clear()
    return Distance


def sampler() -> Any:
    return sampler_of(load("stable_diffusion", scheduler="ddim"), "stable_diffusion")


def objective(given: Any, **more: Any) -> Any:
    table = {"kind": "lpips", "images": 5, "teacher_steps": 4} | more
    return build(METRICS["lpips"].Config, table, "here").objective(given, ModelInfo(train_steps=1000), Path())


def value(measured: Any, candidate: Candidate = CANDIDATE) -> float:
    *_, score = measured.measure(candidate)
    return float(score.values["lpips"])


def test_it_is_the_networks_mean_over_images_of_blocks_of_any_size(stand_in: Any) -> None:
    given = sampler()
    measured = objective(given, network="vgg")  # blocks of 3 and 2
    theirs = torch.cat(list(given.images(CANDIDATE, range(5), 0))).double() / 255
    teacher = torch.cat(list(Teacher(given, 4).images(range(5), 0))).double() / 255
    assert value(measured) == pytest.approx(float((theirs - teacher).square().mean()), rel=1e-5)
    assert value(measured, Teacher(given, 4).candidate) == 0
    assert stand_in.made == [{"net_type": "vgg", "reduction": "mean", "normalize": True}]  # loaded once


def test_grey_images_become_three_channels_and_small_ones_are_refused(stand_in: Any, digits: Any) -> None:
    with pytest.raises(UserError, match=r"lpips cannot compare images of 8 x 8: Kernel size can't be .* input size$"):
        value(objective(sampler_of(digits, "digits")))


def test_its_identity_is_that_of_the_teacher_and_the_package(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = sampler()
    identity = objective(given).identity
    assert identity.endswith("-torchmetrics-9.9")
    assert objective(given, teacher_steps=5).identity != identity
    monkeypatch.setattr(sys.modules["torchmetrics"], "__version__", "9.10")
    assert objective(given).identity != identity


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(UserError, match=r"lpips needs torchmetrics, .*: pip install 'autodiffusion-opt\[metrics\]'$"):
        objective(sampler())


@pytest.mark.slow
def test_a_network_that_cannot_be_downloaded_is_told(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, **_: Any) -> None:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(stand_in, "__init__", fail)
    with pytest.raises(UserError, match=r"lpips: the network 'alex' cannot be had: no route to host$"):
        objective(sampler())


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(UserError, match="network must be one of: alex, squeeze, vgg; got 'vg'"):
        objective(None, network="vg")


def test_it_equals_torchmetrics_own_value_where_that_is_installed() -> None:
    lpip = pytest.importorskip("torchmetrics.image.lpip")
    pytest.importorskip("torchvision")
    from autodiffusion_opt.objective.metrics.lpips import load_network

    try:
        network, _ = load_network("squeeze", torch.device("cpu"))
    except UserError:
        pytest.skip("the weights are downloaded at first use")
    one, other = (torch.from_numpy(np.random.default_rng(seed).random((2, 3, 64, 64), np.float32)) for seed in (0, 1))
    theirs = lpip.LearnedPerceptualImagePatchSimilarity("squeeze", normalize=True)(one, other)
    assert float(network(one, other)) == pytest.approx(float(theirs), rel=1e-6)
