"""Compiled layers beside what else is done with a denoiser, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from peers.counting_backend import MARKS, Counting, compiled, forwards
from peers.denoisers import made, output
from peers.samples import call_by_hand, load

from autodiffusion_opt import Candidate, UserError, apply, compile_layers
from autodiffusion_opt.sampling.layers import install_bypass, list_layers
from autodiffusion_opt.sampling.layers.kinds import find_blocks

pytestmark = MARKS


@pytest.mark.slow
def test_a_bypass_leaves_the_compiled_layers_as_they_were(backend: Counting) -> None:
    denoiser, inputs = made("SD")
    compiled(denoiser, backend)
    before, modules = forwards(denoiser), [sorted(vars(module)) for module in denoiser.modules()]
    whole = output(denoiser, inputs)
    with install_bypass(denoiser, [range(len(before))], lambda: 0):
        assert all(now is not then for now, then in zip(forwards(denoiser), before, strict=True))
        assert not torch.equal(output(denoiser, inputs), whole)
    assert all(now is then for now, then in zip(forwards(denoiser), before, strict=True))
    assert [sorted(vars(module)) for module in denoiser.modules()] == modules
    backend.runs = 0
    assert torch.equal(output(denoiser, inputs), whole)
    assert backend.runs == len(before)


@pytest.mark.slow
def test_a_deep_copy_runs_its_own_weights_and_compiles_nothing(backend: Counting) -> None:
    denoiser, inputs = made("Flux")
    compiled(denoiser, backend)
    whole = output(denoiser, inputs)
    graphs, backend.runs = backend.graphs, 0
    changed = copy.deepcopy(denoiser)
    for block in find_blocks(changed).values():
        for weight in block.parameters():
            torch.nn.init.zeros_(weight)
    assert not torch.equal(output(changed, inputs), whole)
    assert (backend.graphs, backend.runs) == (graphs, len(forwards(denoiser)))
    assert torch.equal(output(denoiser, inputs), whole)


def test_a_deep_copy_of_a_pipeline_keeps_the_candidate_and_the_compiled_layers(backend: Counting) -> None:
    pipeline = compile_layers(load("dit"), backend)
    apply(pipeline, Candidate.from_time_steps([880, 33], removed=[[0], [1]]))
    once, again = (
        call_by_hand(each, "dit", [0], num_inference_steps=2) for each in (pipeline, copy.deepcopy(pipeline))
    )
    assert torch.equal(once, again)
    assert backend.runs == 2 * 2  # one of two layers at each of two steps, of each pipeline


@pytest.mark.parametrize("name", ["ADM", "Flux"])
def test_layers_are_listed_the_same_before_and_after(name: str, backend: Counting) -> None:
    expected = list_layers(made(name)[0])
    denoiser = compiled(made(name)[0], backend)
    assert list_layers(denoiser) == expected
    assert backend.graphs == 0


@pytest.mark.slow
def test_layers_of_a_denoiser_that_is_not_its_configs_are_listed_without_the_compiler(backend: Counting) -> None:
    """The copy on the meta device is then one of the modules, and not of what hangs on them."""
    denoiser, inputs = made("Flux")
    del denoiser.single_transformer_blocks[0]
    compiled(denoiser, backend)
    assert len(list_layers(denoiser)) == 3
    assert backend.graphs == 0
    output(denoiser, inputs)
    assert backend.runs == 3


# --- what others put on the denoiser, and what is refused ---------------------------------------------------


@pytest.mark.slow
def test_what_is_around_the_whole_denoiser_stays(backend: Counting) -> None:
    """accelerate's offload sets a ``forward`` on it that loads the weights."""
    denoiser, inputs = made("SD")
    inner, calls = denoiser.forward, []
    denoiser.forward = wrapper = lambda *args, **kwargs: (calls.append(1), inner(*args, **kwargs))[1]
    output(compiled(denoiser, backend), inputs)
    assert denoiser.forward is wrapper
    assert (len(calls), backend.runs) == (1, len(forwards(denoiser)))


@pytest.mark.slow
def test_a_hook_that_came_and_went_does_not_count(backend: Counting) -> None:
    denoiser, inputs = made("Flux")
    block = denoiser.transformer_blocks[0]
    registry = HookRegistry.check_if_exists_or_initialize(block)
    registry.register_hook(ModelHook(), "theirs")
    registry.remove_hook("theirs")
    assert "forward" in vars(block)
    output(compiled(denoiser, backend), inputs)
    assert backend.runs == 4


def test_layers_with_hooks_or_compiled_already_are_refused_and_left_as_they_are(backend: Counting) -> None:
    denoiser, _ = made("Flux")
    message = "the layers of FluxTransformer2DModel must be as they were loaded, and have hooks or are compiled already"
    with install_bypass(denoiser, [[2]], lambda: 0):
        before = forwards(denoiser)
        with pytest.raises(UserError, match=message):
            compiled(denoiser, backend)
        assert forwards(denoiser) == before
    before = forwards(compiled(denoiser, backend))
    with pytest.raises(UserError, match=message):
        compiled(denoiser, backend)
    assert forwards(denoiser) == before


def test_a_denoiser_without_known_layers_is_compiled_as_a_whole(backend: Counting) -> None:
    denoiser = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU()).eval()
    x = torch.randn(2, 3)
    expected = denoiser(x)
    assert torch.equal(compiled(denoiser, backend)(x), expected)
    assert (backend.graphs, backend.runs) == (1, 1)
