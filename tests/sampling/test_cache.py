"""Partial steps: what is not computed is taken from the full step before, and nothing else changes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from marks import slow_but
from peers import partial_steps
from peers.denoisers import (
    NETWORKS,
    condition_inputs,
    dit_inputs,
    made,
    output,
    sd3_inputs,
    simple_attention,
    unet,
    unet_condition,
    unet_inputs,
)
from peers.denoisers import dit as small_dit
from peers.denoisers import sd3 as small_sd3
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import autodiffusion_opt as ado
from autodiffusion_opt import UserError
from autodiffusion_opt.sampling.branch_costs import branch_costs
from autodiffusion_opt.sampling.branches import branches_of
from autodiffusion_opt.sampling.cache import install_cache
from autodiffusion_opt.sampling.layers import Layer, install_bypass, list_layers

WARNS = pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")  # diffusers' own, in 0.42
PRODUCTS = (torch.nn.Linear, torch.nn.Conv2d)
WITH_BRANCHES = [name for name in NETWORKS if name not in ("NCSN++", "HunyuanDiT")]


class Calls:
    """A denoiser with a cache, called by hand: step i of one generation."""

    def __init__(self, denoiser: Any, at_steps: list[int | None]) -> None:
        self.step = self.generation = 0
        self.denoiser = denoiser
        self.installed = install_cache(denoiser, at_steps, lambda: self.step, lambda: self.generation)

    def at(self, step: int, inputs: dict[str, Any]) -> torch.Tensor:
        self.step = step
        return output(self.denoiser, inputs)

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self.installed.remove()


def changed(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same call a step later: another sample."""
    name = "sample" if "sample" in inputs else "hidden_states"
    return inputs | {name: inputs[name] * 0.7 + 0.1}


def branches(denoiser: Any) -> range:
    return range(len(branches_of(denoiser).cuts))


# --- the network ---------------------------------------------------------------------------------------------


@WARNS
@pytest.mark.parametrize("name", slow_but(WITH_BRANCHES, "ADM", "SD", "DiT", "Flux"))
def test_with_a_fresh_cache_a_partial_step_is_a_full_one_bit_for_bit_at_every_branch(name: str) -> None:
    denoiser, inputs = made(name)
    full, full_later = output(denoiser, inputs), output(denoiser, changed(inputs))
    before = {path: set(vars(module)) for path, module in denoiser.named_modules()}
    for branch in branches(denoiser):
        with Calls(denoiser, [None, branch]) as calls:
            assert torch.equal(calls.at(0, inputs), full)
            assert torch.equal(calls.at(1, inputs), full)
            assert not torch.equal(calls.at(1, changed(inputs)), full_later)
    assert {path: set(vars(module)) for path, module in denoiser.named_modules()} == before
    assert torch.equal(output(denoiser, inputs), full)


def three_levels() -> Any:
    """Two residual blocks a level, attention in the middle one: more than one skip a level."""
    return unet(
        block_out_channels=(8, 8, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_type="conv",
        upsample_type="conv",
    )


# A denoiser, its inputs, and its pass written straight down.
PEERS: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]], Callable[..., Any]]] = {
    "ADM": (unet, unet_inputs, partial_steps.unet2d),
    "three levels": (three_levels, unet_inputs, partial_steps.unet2d),
    "SD": (unet_condition, condition_inputs, partial_steps.unet_condition),
    "simple cross-attention": (simple_attention, condition_inputs, partial_steps.unet_condition),
    "DiT": (small_dit, dit_inputs, partial_steps.dit),
    "SD3": (small_sd3, sd3_inputs, partial_steps.sd3),
}


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", PEERS)
def test_every_branch_is_the_pass_written_straight_down(name: str, dtype: torch.dtype, close: float) -> None:
    make, make_inputs, peer = PEERS[name]
    torch.manual_seed(2)
    denoiser = make().eval().to(dtype)
    inputs = {
        key: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in make_inputs().items()
    }
    keep: partial_steps.Kept = {}
    with torch.no_grad():
        torch.testing.assert_close(output(denoiser, inputs), peer(denoiser, keep, None, **inputs), rtol=0, atol=close)
        for branch in branches(denoiser):
            expected = peer(denoiser, keep, branch, **changed(inputs))
            with Calls(denoiser, [None, branch]) as calls:
                calls.at(0, inputs)
                torch.testing.assert_close(calls.at(1, changed(inputs)), expected, rtol=0, atol=close)


@WARNS
@pytest.mark.parametrize("name", ["ADM", "SD", "DiT", "Flux"])
def test_what_is_left_out_is_not_computed(name: str) -> None:
    denoiser, inputs = made(name)
    costs = branch_costs(denoiser)
    layers = list_layers(denoiser, inputs)
    assert [cost.flops for cost in costs] == sorted(cost.flops for cost in costs)
    for branch in branches(denoiser):
        with Calls(denoiser, [None, branch]) as calls:
            calls.at(0, inputs)
            with noted(denoiser, layers) as ran:
                calls.at(1, inputs)
        assert tuple(sorted(ran)) == costs[branch].layers


@contextlib.contextmanager
def noted(denoiser: Any, layers: list[Layer]) -> Iterator[set[int]]:
    """The layers of which the last product was called: a DiT takes the embedding of its first block at its end too."""
    ran: set[int] = set()
    with contextlib.ExitStack() as stack:
        for layer in layers:
            block = denoiser.get_submodule(layer.path)
            *_, product = (module for module in block.modules() if isinstance(module, PRODUCTS))
            handle = product.register_forward_pre_hook(lambda *_, index=layer.index: ran.add(index))
            stack.callback(handle.remove)
        yield ran


def test_flops_of_a_branch_are_those_that_are_measured() -> None:
    denoiser = unet().eval()
    inputs = {"sample": torch.zeros(1, 3, 8, 8), "timestep": 3}
    for branch, cost in enumerate(branch_costs(denoiser)):
        with Calls(denoiser, [None, branch]) as calls:
            calls.at(0, inputs)
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                calls.at(1, inputs)
        assert counter.get_total_flops() == cost.flops


class Concatenations(TorchDispatchMode):
    """How many there were."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.cat.default
        return func(*args, **(kwargs or {}))


def test_blocks_that_are_left_out_as_a_whole_concatenate_nothing() -> None:
    denoiser, inputs = made("ADM")
    with Calls(denoiser, [None, 0]) as calls:
        with torch.no_grad(), Concatenations() as full:
            calls.at(0, inputs)
        with torch.no_grad(), Concatenations() as partial:
            calls.at(1, inputs)
    in_last_block = len(denoiser.up_blocks[-1].resnets)
    elsewhere = full.count - sum(len(block.resnets) for block in denoiser.up_blocks)
    assert partial.count == elsewhere + in_last_block + 1  # one more with what is kept


def test_shares_of_the_embedded_model_are_those_of_its_layers(digits: Any) -> None:
    """Measured with a prototype of its own: .085 .219 .380 .570 .721 .883."""
    info = ado.Study(
        "s",
        pipeline=digits,
        space={"kind": "segments", "steps": 8, "segments": 4},
        objective={"kind": "fid", "images": 4, "features": "digits", "reference": "digits"},
    ).problem.info
    assert info.branch_shares == pytest.approx([0.085, 0.219, 0.380, 0.570, 0.721, 0.883], abs=0.0015)
    assert [len(layers) for layers in info.branch_layers] == [1, 3, 5, 7, 11, 15]


def test_a_controlnet_is_refused_at_its_first_call() -> None:
    denoiser, inputs = made("SD")
    residuals = {"down_block_additional_residuals": (), "mid_block_additional_residual": torch.zeros(1)}
    with Calls(denoiser, [None, 0]) as calls, pytest.raises(UserError, match="ControlNet or an adapter"):
        calls.at(0, inputs | residuals)


# --- what is kept ---------------------------------------------------------------------------------------------


def test_each_call_of_a_step_has_a_cache_of_its_own() -> None:
    denoiser, inputs = made("ADM")
    prompt, none = inputs, changed(changed(inputs))
    alone = []
    for called in (prompt, none):
        with Calls(denoiser, [None, 0]) as calls:
            calls.at(0, called)
            alone.append(calls.at(1, changed(called)))
    with Calls(denoiser, [None, 0]) as calls:
        for called in (prompt, none):
            calls.at(0, called)
        together = [calls.at(1, changed(called)) for called in (prompt, none)]
    assert all(map(torch.equal, alone, together))
    assert not torch.equal(*alone)


def test_a_full_step_keeps_anew_and_partial_steps_do_not() -> None:
    denoiser, inputs = made("ADM")
    later = changed(changed(inputs))
    with Calls(denoiser, [None, 0, 0]) as calls:
        calls.at(0, inputs)
        expected = calls.at(1, later)
    with Calls(denoiser, [None, 1, 0, None, 0]) as calls:
        calls.at(0, inputs)
        calls.at(1, changed(inputs))
        assert torch.equal(calls.at(2, later), expected)
        calls.at(3, later)
        assert torch.equal(calls.at(4, later), output(denoiser, later))


def test_a_full_step_keeps_only_what_the_steps_before_the_next_full_one_take() -> None:
    denoiser, inputs = made("ADM")
    with Calls(denoiser, [None, 1, None, 0]) as calls:
        state = calls.installed._state
        assert state is not None
        calls.at(0, inputs)
        assert [*state._kept[0]] == [1]
        calls.at(2, inputs)
        assert [*state._kept[0]] == [0]


def test_a_generation_that_stopped_in_its_first_step_leaves_nothing_to_the_next() -> None:
    denoiser, inputs = made("ADM")
    with Calls(denoiser, [None, 0]) as calls:
        calls.at(0, changed(inputs))
        calls.generation += 1
        calls.at(0, inputs)
        assert torch.equal(calls.at(1, inputs), output(denoiser, inputs))


def test_a_generation_that_begins_at_a_partial_step_takes_nothing_of_the_one_before() -> None:
    denoiser, inputs = made("ADM")
    with Calls(denoiser, [None, 0]) as calls:
        calls.at(0, changed(inputs))
        calls.generation += 1
        assert torch.equal(calls.at(1, inputs), _plain(inputs))


def test_a_call_that_is_none_of_the_pipelines_runs_everything_and_disturbs_nothing() -> None:
    denoiser, inputs = made("ADM")
    with Calls(denoiser, [None, 0]) as calls:
        calls.at(0, inputs)
        calls.step = None  # type: ignore[assignment]
        assert torch.equal(output(denoiser, changed(inputs)), _plain(changed(inputs)))
        assert torch.equal(calls.at(1, inputs), _plain(inputs))


def _plain(inputs: dict[str, Any]) -> torch.Tensor:
    return output(made("ADM")[0], inputs)


@pytest.mark.parametrize("name", ["ADM", "SD"])
def test_removed_layers_are_left_out_of_both(name: str) -> None:
    denoiser, inputs = made(name)
    removed = [layer.index for layer in list_layers(denoiser, inputs) if layer.removable][::2]
    with install_bypass(denoiser, [removed], lambda: 0):
        expected = output(denoiser, inputs)
        for branch in branches(denoiser):
            with Calls(denoiser, [None, branch]) as calls:
                calls.at(0, inputs)
                assert torch.equal(calls.at(1, inputs), expected)
