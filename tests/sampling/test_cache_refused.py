"""Where partial steps are refused, and that nothing is changed then."""

from __future__ import annotations

from typing import Any

import pytest
from peers.denoisers import made

import autodiffusion_opt as ado
from autodiffusion_opt import Candidate, Step, UserError
from autodiffusion_opt.sampling.cache import install_cache


def test_a_branch_that_is_not_there_is_refused_and_the_pipeline_is_as_it_was(digits: Any) -> None:
    candidate = Candidate((Step(900, (2,)), Step(100, (), 6)))
    scheduler, kind = digits.scheduler, type(digits)
    with pytest.raises(UserError, match="has 6 branches, 0 to 5; got 6"):
        ado.apply(digits, candidate)
    assert digits.scheduler is scheduler
    assert type(digits) is kind
    assert not any("_diffusers_hook" in vars(module) for module in digits.unet.modules())


@pytest.mark.parametrize(("name", "reason"), [("NCSN++", "second skip path"), ("HunyuanDiT", "has no branches")])
def test_a_denoiser_without_branches_is_refused(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        install_cache(made(name)[0], [None, 0], lambda: 0, lambda: 0)


def test_freeu_is_refused() -> None:
    denoiser, _ = made("SD")
    denoiser.enable_freeu(s1=0.9, s2=0.2, b1=1.1, b2=1.2)
    with pytest.raises(UserError, match="disable_freeu"):
        install_cache(denoiser, [None, 0], lambda: 0, lambda: 0)


def test_a_cache_of_diffusers_is_refused() -> None:
    denoiser, _ = made("SD3")
    denoiser.is_cache_enabled = True
    with pytest.raises(UserError, match="disable_cache"):
        install_cache(denoiser, [None, 0], lambda: 0, lambda: 0)
