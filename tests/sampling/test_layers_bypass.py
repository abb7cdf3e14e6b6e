"""Bypass: a network with a layer removed is the network without it, and afterwards nothing has happened."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor2_0
from marks import slow_but
from peers.denoisers import GIVEN, NETWORKS, condition_inputs, made, output

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.layers import install_bypass, list_layers
from autodiffusion_opt.sampling.layers.kinds import kind_of

WARNS = pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")  # diffusers' own, in 0.42


def step_zero() -> int:
    return 0


# --- a removed layer is a network without it ----------------------------------------------------------------

# The last projection of every branch that a block adds to its skip path.
BRANCH_ENDS = (
    "conv2",  # ResnetBlock2D
    "to_out.0",  # Attention
    "to_add_out",  # its text stream
    "ff.net.2",
    "ff_context.net.2",
    "ff.conv_point",  # Sana
    "ff.linear_2.out_projection",
    "ff.out_projection",  # AuraFlow
    "ff_context.out_projection",
    "channelwise_linear_2",  # UVit
    "channelwise.4",  # Stable Cascade
    "attention.to_out.0",
    "proj_out",  # Transformer2DModel, Flux's and Chroma's single blocks
)


def without_branches(denoiser: Any, path: str) -> Any:
    """A copy in which the residual branches of one block give zero."""
    changed = copy.deepcopy(denoiser)
    block = changed.get_submodule(path)
    is_unet_transformer = isinstance(block, diffusers.models.Transformer2DModel)
    ends = ("proj_out",) if is_unet_transformer else BRANCH_ENDS
    for name, inner in block.named_modules():
        if name in {*ends, *(f"{part}.{end}" for part in ("attn", "attn1", "attn2") for end in ends)}:
            for weight in inner.parameters():
                torch.nn.init.zeros_(weight)
    return changed


@WARNS
@pytest.mark.parametrize("name", slow_but([*NETWORKS, *GIVEN], "ADM", "SD", "DiT", "Flux", *GIVEN))
def test_removing_a_layer_is_zeroing_its_residual_branch(name: str) -> None:
    denoiser, inputs = made(name)
    whole = output(denoiser, inputs)
    layers = list_layers(denoiser, inputs if name in GIVEN else None)
    assert all(layer.removable for layer in layers)
    for layer in layers:
        expected = output(without_branches(denoiser, layer.path), inputs)
        with install_bypass(denoiser, [{layer.index}], step_zero):
            bypassed = output(denoiser, inputs)
        torch.testing.assert_close(bypassed, expected, rtol=1e-6, atol=1e-6)
        assert (bypassed - whole).abs().max() > 1e-4, f"{layer} makes no difference here: the test shows nothing"
    assert torch.equal(output(denoiser, inputs), whole)


DELETABLE = ("DiT", "PixArt", "SD3", "Flux", "Sana", "AuraFlow")


@pytest.mark.parametrize("name", DELETABLE)
def test_removing_a_transformer_block_is_deleting_it(name: str) -> None:
    denoiser, inputs = made(name)
    for layer in list_layers(denoiser):
        if (name, layer.index) == ("DiT", 0):
            continue  # its embedding of the time serves the output layer as well
        changed = copy.deepcopy(denoiser)
        blocks, _, place = layer.path.rpartition(".")
        del changed.get_submodule(blocks)[int(place)]
        with install_bypass(denoiser, [{layer.index}], step_zero):
            bypassed = output(denoiser, inputs)
        torch.testing.assert_close(bypassed, output(changed, inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sees_text", [True, False])
def test_an_attention_that_sees_text_adds_its_input_undivided(sees_text: bool) -> None:
    """Unlike those with a ``residual_connection``. Compared with the block itself, its branch at zero."""
    sample, text = torch.randn(1, 8, 2, 2), torch.randn(1, 5, 8)
    settings = {"query_dim": 8, "heads": 1, "dim_head": 8, "norm_num_groups": 4, "rescale_output_factor": 2.0}
    if sees_text:
        block = Attention(**settings, added_kv_proj_dim=8, processor=AttnAddedKVProcessor2_0())
    else:
        block = Attention(**settings, residual_connection=True)
    for weight in block.to_out.parameters():
        torch.nn.init.zeros_(weight)
    arguments = {"encoder_hidden_states": text} if sees_text else {}
    kind = kind_of(block)
    assert kind is not None
    expected = sample if sees_text else sample / 2
    torch.testing.assert_close(block(sample, **arguments), expected)
    assert torch.equal(kind.bypass(block, sample, **arguments), expected)


def test_the_residual_blocks_tried_have_every_form() -> None:
    denoiser, _ = made("ADM")
    blocks = [denoiser.get_submodule(layer.path) for layer in list_layers(denoiser) if layer.kind == "residual"]
    forms = {(block.up, block.down, block.conv_shortcut is not None) for block in blocks}
    assert forms >= {(False, False, False), (False, False, True), (True, False, False), (False, True, False)}


@pytest.mark.parametrize("name", ["ADM", "SD", "Flux"])
def test_a_bypassed_layer_is_not_computed(name: str) -> None:
    denoiser, inputs = made(name)
    layers = list_layers(denoiser)
    for layer in layers:
        block = denoiser.get_submodule(layer.path)
        for inner in block.modules():
            if inner is not block and inner is not getattr(block, "conv_shortcut", None):
                inner.register_forward_pre_hook(_never if _has_weights(inner) else _fine)
    with install_bypass(denoiser, [range(len(layers))], step_zero):
        output(denoiser, inputs)


def _has_weights(module: torch.nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _never(*_: Any) -> None:
    raise AssertionError("computed")


def _fine(*_: Any) -> None: ...


# --- steps --------------------------------------------------------------------------------------------------


def test_the_layers_removed_follow_the_step_counter() -> None:
    denoiser, inputs = made("ADM")
    sets = [(), {0, 3}, {1}, {0, 1, 2, 3, 4}]
    expected = []
    for layers in sets:
        with install_bypass(denoiser, [layers], step_zero):
            expected.append(output(denoiser, inputs))
    now = [0]
    with install_bypass(denoiser, sets, lambda: now[0]):
        for now[0] in (2, 0, 0, 3, 1, 3):  # a step may have two calls, and the order is the sampler's
            assert torch.equal(output(denoiser, inputs), expected[now[0]])


def test_a_pipeline_runs_without_the_layers_removed_step_by_step() -> None:
    denoiser, _ = made("ADM")
    pipeline = diffusers.DDIMPipeline(denoiser, diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    calls: list[int] = []
    step = iter([0, 1, 2, 3])
    now = [0]
    denoiser.register_forward_pre_hook(lambda *_: now.__setitem__(0, next(step)))
    first = denoiser.get_submodule(list_layers(denoiser)[0].path)
    first.conv1.register_forward_pre_hook(lambda *_: calls.append(now[0]))
    with install_bypass(denoiser, [(), {0}, {1}, {0, 1}], lambda: now[0]):
        pipeline(num_inference_steps=4, output_type="np")
    assert calls == [0, 2]


def test_a_step_outside_the_candidate_is_an_error() -> None:
    denoiser, inputs = made("ADM")
    for step in (2, -1):
        with (
            install_bypass(denoiser, [{0}, ()], lambda step=step: step),
            pytest.raises(UserError, match=f"the candidate has 2 steps, 0 to 1; the sampler is at step {step}"),
        ):
            output(denoiser, inputs)


def test_guidance_batches_are_bypassed_as_single_images_are() -> None:
    denoiser, _ = made("SD")
    inputs = condition_inputs(batch=2)
    with install_bypass(denoiser, [{1, 4, 5}], step_zero):
        together = output(denoiser, inputs)
        for i in range(2):
            alone = {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            torch.testing.assert_close(together[i : i + 1], output(denoiser, alone), rtol=1e-5, atol=1e-5)


# --- what others put on the denoiser ------------------------------------------------------------------------


class Counting:
    """An attention processor of the user's."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.inner(*args, **kwargs)


def test_attention_processors_and_adapters_go_on_working() -> None:
    denoiser, inputs = made("ADM")
    layers = [layer for layer in list_layers(denoiser) if layer.kind == "attention"]
    blocks = [denoiser.get_submodule(layer.path) for layer in layers]
    processors = [Counting(block.processor) for block in blocks]
    for block, processor in zip(blocks, processors, strict=True):
        block.set_processor(processor)
    wrapped = next(m for m in denoiser.modules() if getattr(m, "conv_shortcut", None) is not None)
    wrapped.conv_shortcut = torch.nn.Sequential(wrapped.conv_shortcut)  # as an adapter wraps a layer
    everything = [layer.index for layer in list_layers(denoiser) if layer not in layers[1:]]
    with install_bypass(denoiser, [everything], step_zero):
        output(denoiser, inputs)
    assert [processor.calls for processor in processors] == [0] + [1] * (len(layers) - 1)
    assert [block.processor for block in blocks] == processors


Trace = list[tuple[str, list[str], int | None]]


def trace(denoiser: torch.nn.Module) -> Trace:
    """Of every module: its path, the names in its ``__dict__``, and the ``forward`` that is set on it."""
    return [
        (path, sorted(vars(module)), id(vars(module)["forward"]) if "forward" in vars(module) else None)
        for path, module in denoiser.named_modules()
    ]


def test_removal_leaves_no_trace_and_may_be_repeated() -> None:
    denoiser, inputs = made("SD")
    before = trace(denoiser)
    everything = range(len(list_layers(denoiser)))
    bypass = install_bypass(denoiser, [everything], step_zero)
    assert trace(denoiser) != before
    output(denoiser, inputs)
    bypass.remove()
    bypass.remove()
    assert trace(denoiser) == before


def test_removal_leaves_no_trace_after_an_exception() -> None:
    denoiser, inputs = made("SD")
    before, whole = trace(denoiser), output(denoiser, inputs)

    def stopped() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), install_bypass(denoiser, [{2, 3}], stopped):
        output(denoiser, inputs)
    assert trace(denoiser) == before
    assert torch.equal(output(denoiser, inputs), whole)


@pytest.mark.parametrize("removed", [[], [(), ()]])
def test_nothing_to_remove_installs_nothing(removed: list[tuple[int, ...]]) -> None:
    denoiser, _ = made("ADM")
    before = trace(denoiser)
    with install_bypass(denoiser, removed, step_zero):
        assert trace(denoiser) == before


class Add(ModelHook):
    """A hook of somebody else's on a block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


@pytest.fixture
def hooked() -> Iterator[tuple[Any, dict[str, Any], Any, Add]]:
    denoiser, inputs = made("ADM")
    block, hook = denoiser.get_submodule(list_layers(denoiser)[0].path), Add()
    HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, "earlier")
    return denoiser, inputs, block, hook


def test_hooks_that_were_there_stay_and_are_called_when_the_layer_runs(hooked: Any) -> None:
    denoiser, inputs, block, hook = hooked
    before, now = trace(denoiser), [0]
    with install_bypass(denoiser, [(), {0}], lambda: now[0]):
        for now[0] in range(2):
            output(denoiser, inputs)
    assert hook.calls == 1
    assert trace(denoiser) == before
    assert list(block._diffusers_hook.hooks) == ["earlier"]


def test_hooks_that_come_later_stay(hooked: Any) -> None:
    denoiser, inputs, block, hook = hooked
    whole = output(denoiser, inputs)
    later = Add()
    with install_bypass(denoiser, [{0}], step_zero):
        block._diffusers_hook.register_hook(later, "later")
    assert torch.equal(output(denoiser, inputs), whole)
    assert (hook.calls, later.calls) == (2, 1)


def test_a_forward_that_was_wrapped_later_stays_and_runs_the_layer() -> None:
    denoiser, inputs = made("ADM")
    whole, block = output(denoiser, inputs), denoiser.get_submodule(list_layers(denoiser)[0].path)
    with install_bypass(denoiser, [{0}], step_zero):
        inner = block.forward
        block.forward = wrapper = lambda *args, **kwargs: inner(*args, **kwargs)  # accelerate does so
    assert block.forward is wrapper
    assert torch.equal(output(denoiser, inputs), whole)
    with install_bypass(denoiser, [{0}], step_zero):
        assert not torch.equal(output(denoiser, inputs), whole)
    assert torch.equal(output(denoiser, inputs), whole)


def test_a_second_bypass_is_refused_and_the_first_is_kept() -> None:
    denoiser, _ = made("ADM")
    with install_bypass(denoiser, [{0}], step_zero):
        during = trace(denoiser)
        with pytest.raises(UserError, match="has a bypass already"):
            install_bypass(denoiser, [{0, 1}], step_zero)
        assert trace(denoiser) == during


# --- what is refused ----------------------------------------------------------------------------------------


def test_a_layer_that_is_not_there_is_named() -> None:
    denoiser, _ = made("Flux")
    before = trace(denoiser)
    with pytest.raises(UserError, match="FluxTransformer2DModel has 4 layers, 0 to 3; got 4, 57"):
        install_bypass(denoiser, [{1, 4}, {57}], step_zero)
    assert trace(denoiser) == before


@pytest.mark.parametrize("part", ["", "mid_block", "conv_out"])
def test_a_compiled_denoiser_is_refused_unless_nothing_is_removed(part: str) -> None:
    """The whole, or any part of it, also one that has no layer."""
    denoiser, _ = made("ADM")
    denoiser.get_submodule(part).compile(backend="eager")
    before = trace(denoiser)
    install_bypass(denoiser, [()], step_zero)
    with pytest.raises(UserError, match="UNet2DModel is compiled: it would be compiled anew at every step"):
        install_bypass(denoiser, [{0}], step_zero)
    assert trace(denoiser) == before


def test_what_torch_compile_returns_is_known_for_compiled() -> None:
    denoiser, _ = made("ADM")
    compiled = torch.compile(denoiser, backend="eager")
    assert [layer.path for layer in list_layers(compiled)][:2] == [
        "down_blocks.0.resnets.0",
        "down_blocks.0.downsamplers.0",
    ]
    with pytest.raises(
        UserError, match=r"UNet2DModel is compiled.*use ado.compile_layers\(pipeline\), or compile = true"
    ):
        install_bypass(compiled, [{0}], step_zero)


def test_group_offloading_is_refused() -> None:
    denoiser, _ = made("SD3")
    denoiser.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(UserError, match="group offloading"):
        install_bypass(denoiser, [{0}], step_zero)
