"""Where partial steps are refused, and that nothing is changed then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peers.denoisers import dit, dit_inputs, made, output
from peers.models_table import built

import autodiffusion_opt as ado
from autodiffusion_opt import Candidate, Step, UserError
from autodiffusion_opt.sampling.cache import install_cache
from autodiffusion_opt.sampling.introspect import read_model_info


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


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("latte", "temporal_transformer_blocks.0"), ("wan_vace", "blocks.1"), ("hidream", "single_stream_blocks.1")],
)
def test_a_denoiser_that_changes_features_between_its_blocks_is_refused(name: str, blocks: str) -> None:
    pipeline, call = built(name)
    with pytest.raises(UserError, match=f"changes features between its blocks .* and {blocks}, so that"):
        read_model_info(pipeline, need_layers=True, need_branches=True, call=call)


def dit_with_more_before_its_second_block(added: Callable[[], float]) -> Any:
    torch.manual_seed(0)
    denoiser = dit().eval()
    denoiser.transformer_blocks[1].register_forward_pre_hook(lambda _, args: (args[0] + added(), *args[1:]))
    return denoiser


def test_features_that_are_copied_between_blocks_are_the_same_and_changed_ones_are_not() -> None:
    added, step = 0.0, 0
    denoiser, inputs = dit_with_more_before_its_second_block(lambda: added), dit_inputs()
    full = output(denoiser, inputs)
    installed = install_cache(denoiser, [None, 0], lambda: step, lambda: 0)
    assert torch.equal(output(denoiser, inputs), full)
    step = 1
    assert torch.equal(output(denoiser, inputs), full)
    added, step = 1.0, 0
    with pytest.raises(UserError, match=r"between its blocks transformer_blocks\.0 and transformer_blocks\.1"):
        output(denoiser, inputs)
    installed.remove()


def test_what_changes_features_before_the_gap_is_run_in_partial_steps_too() -> None:
    added, step = 1.0, 0
    denoiser, inputs = dit_with_more_before_its_second_block(lambda: added), dit_inputs()
    full = output(denoiser, inputs)
    installed = install_cache(denoiser, [None, 1], lambda: step, lambda: 0)
    assert torch.equal(output(denoiser, inputs), full)
    step = 1
    assert torch.equal(output(denoiser, inputs), full)
    added = 2.0
    assert not torch.equal(output(denoiser, inputs), full)
    installed.remove()


@pytest.mark.parametrize("name", ["qwen_image", "z_image", "ovis_image", "wan"])
def test_branches_are_counted_where_inputs_come_from_the_pipelines_own_call(name: str) -> None:
    pipeline, call = built(name)
    info = read_model_info(pipeline, need_layers=True, need_branches=True, call=call)
    assert 0 < info.branch_shares[0] < 1
    assert list(info.branch_shares) == sorted(info.branch_shares)
