"""Blocks of classes that nobody registered: found by their form, and left out as if their branches were zero."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from marks import slow_but
from peers import models_table
from peers.current_pipelines import CURRENT
from peers.models_table import built, equal_to_zeroed, row_of, with_layers

import autodiffusion_opt as ado
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.branch_costs import branch_costs
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.example_call import example_inputs, learn_layers
from autodiffusion_opt.sampling.layers import install_bypass, list_layers
from autodiffusion_opt.sampling.layers.residual_form import Call, ReturnsInputs, returned_inputs

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of its future


class Block(torch.nn.Module):
    """Two streams, the second of which comes out first."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.mix, self.add, self.gate = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Parameter(torch.ones(4))
        self.gain = gain

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return text + self.add(text), self.gain * x + self.gate * self.mix(x)


class Gated(torch.nn.Module):
    """Not a residual block: its input is scaled by a weight that no linear map makes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.mix = torch.nn.Parameter(torch.ones(4)), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x + self.mix(x)


class Denoiser(torch.nn.Module):
    def __init__(self, *gains: float) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block(gain) for gain in gains)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            text, x = block(x, text)
        return x + text


INPUTS = {"x": torch.randn(2, 4), "text": torch.randn(2, 4)}


def test_a_block_that_returns_its_inputs_where_its_branches_are_zero_is_a_layer() -> None:
    denoiser = Denoiser(1.0, 1.0)
    layers = list_layers(denoiser, INPUTS)
    assert [(layer.path, layer.removable) for layer in layers] == [("blocks.0", True), ("blocks.1", True)]
    with install_bypass(denoiser, [{0, 1}], lambda: 0):
        assert torch.equal(denoiser(**INPUTS), INPUTS["x"] + INPUTS["text"])


def test_such_blocks_are_layers_of_a_copy_too_so_that_their_partial_steps_can_be_counted() -> None:
    denoiser = Denoiser(1.0, 1.0, 1.0)
    list_layers(denoiser, INPUTS, as_own=True)
    a_block = 2 * 2 * (2 * 4 * 4)  # two matrix products, of two rows
    assert [cost.flops for cost in branch_costs(denoiser, INPUTS)] == [0, a_block]


def test_a_block_that_scales_its_input_is_none() -> None:
    with pytest.raises(UserError, match="of the form of a residual block; Denoiser has none"):
        list_layers(Denoiser(0.5), INPUTS)


@pytest.mark.parametrize("block", [Gated(), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)])
def test_what_is_no_residual_sum_returns_none_of_its_inputs(block: torch.nn.Module) -> None:
    x = torch.randn(2, 4)
    assert returned_inputs(block.to("meta"), Call((x,), {}, x)) is None


def test_which_stream_comes_out_where_is_found_though_their_shapes_are_equal() -> None:
    x = torch.empty(2, 4, device="meta")
    bypass = returned_inputs(Block().to("meta"), Call((x,), {"text": x}, (x, x)))
    assert isinstance(bypass, ReturnsInputs)
    assert bypass.leaves == (("text", 0), ("x", 0))
    assert bypass(Block(), 1, text=2) == (2, 1)


def test_finding_blocks_leaves_the_denoiser_and_the_random_state_as_they_were() -> None:
    denoiser = Denoiser(1.0)
    before, state = copy.deepcopy(denoiser.state_dict()), torch.get_rng_state()
    traces = models_table.traces(denoiser)
    list_layers(denoiser, INPUTS)
    assert torch.equal(torch.get_rng_state(), state)
    assert models_table.traces(denoiser) == traces
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())


def test_example_inputs_are_those_of_the_pipelines_first_call_and_leave_no_trace() -> None:
    pipeline, call = built("z_image")
    before, scheduler, state = dict(vars(pipeline)), dict(vars(pipeline.scheduler)), torch.get_rng_state()
    seen: list[Any] = []
    inputs = example_inputs(pipeline, call)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: value for name, value in vars(pipeline).items() if name in before} == before
    assert dict(vars(pipeline.scheduler)) == scheduler
    handle = denoiser_of(pipeline).register_forward_pre_hook(lambda _, args: seen.append(args))
    pipeline("a", num_inference_steps=2, **call)
    handle.remove()
    assert [part.shape for part in inputs["x"]] == [part.shape for part in seen[0][0]][:1] * len(inputs["x"])


def test_a_pipeline_whose_call_fails_says_so() -> None:
    pipeline, call = built("z_image")
    with pytest.raises(UserError, match="ZImagePipeline could not be called for the inputs of its denoiser"):
        example_inputs(pipeline, call | {"height": 3})


def test_a_candidate_without_layers_is_applied_to_a_copy_of_the_pipeline_too() -> None:
    pipeline, call = built("qwen_image")
    learn_layers(pipeline, call)
    candidate = with_layers(ado.Candidate.from_time_steps((900, 500)), denoiser_of(pipeline))
    assert candidate.steps[0].removed == (0,)
    copied = copy.deepcopy(pipeline)
    for each in (pipeline, copied):
        vars(each)["encode_prompt"] = vars(pipeline)["encode_prompt"]
        ado.apply(each, candidate)
    first, second = (
        each("a", generator=torch.Generator().manual_seed(0), output_type="pt", **call).images
        for each in (pipeline, copied)
    )
    assert torch.equal(first, second)
    ado.remove(pipeline)


QUICK = ("qwen_image", "flux2", "ltx")
FEW = ("lumina2", "cogview4", "hidream", "hunyuan_image", "kandinsky3", "wan", "cogvideox", "mochi")


@pytest.mark.parametrize("name", slow_but(QUICK + FEW, *QUICK))
def test_each_layer_left_out_is_its_branch_at_zero(name: str) -> None:
    pipeline, call = built(name)
    learn_layers(pipeline, call)
    assert equal_to_zeroed(pipeline, call) == "all"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["z_image", "skyreels_v2"])
def test_the_page_has_the_row_that_is_computed(name: str) -> None:
    line = "| " + " | ".join(row_of(name).cells) + " |"
    assert line in models_table.PAGE.read_text(encoding="utf-8").splitlines()


def test_every_current_pipeline_is_on_the_page() -> None:
    page = models_table.PAGE.read_text(encoding="utf-8")
    assert page.count("\n| ") - 2 >= len(CURRENT)
