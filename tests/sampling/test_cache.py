"""Partial steps: what is not computed is taken from the full step before, and nothing else changes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from marks import slow_but
from peers import partial_steps, pipelines
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
from autodiffusion_opt import Candidate, Step, UserError
from autodiffusion_opt.sampling.branch_costs import branch_costs
from autodiffusion_opt.sampling.branches import branches_of
from autodiffusion_opt.sampling.cache import install_cache
from autodiffusion_opt.sampling.conditions import Labels, Prompts, Unconditional
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.layers import Layer, install_bypass, list_layers
from autodiffusion_opt.sampling.schedule.state import steps_of_calls

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


# --- the pipeline ---------------------------------------------------------------------------------------------

CANDIDATE = Candidate((Step(900), Step(700, (), 1), Step(600, (), 0), Step(420), Step(150.0, (), 0), Step(20, (), 1)))
SCHEDULERS = ("ddim", "heun", "KDPM2DiscreteScheduler", "pndm", "dpmsolver++")


@contextlib.contextmanager
def straight_down(pipeline: Any, candidate: Candidate, peer: Callable[..., Any], layout: str) -> Iterator[None]:
    """The denoiser's forward replaced by a pass written straight down, full or partial by the number of its call."""
    steps = steps_of_calls(len(candidate.steps), layout)  # type: ignore[arg-type]
    calls = [(step, sum(earlier == step for earlier in steps[:index])) for index, step in enumerate(steps)]
    number, kept, own = [0], {}, pipeline.unet.forward  # kept: call within its step -> branch -> features

    def forward(sample: Any, timestep: Any, **given: Any) -> Any:
        step, call = calls[number[0] % len(calls)]
        number[0] += 1
        branch = candidate.branches[step]
        if branch is None and call == 0:
            kept.clear()
        keep = kept.setdefault(call, {}) if branch is None else kept[min(call, max(kept))]
        taken = {key: given[key] for key in ("encoder_hidden_states", "class_labels") if given.get(key) is not None}
        made = peer(pipeline.unet, keep, branch, sample, timestep, **taken)
        return (made,) if given.get("return_dict") is False else diffusers.models.unets.unet_2d.UNet2DOutput(made)

    pipeline.unet.forward = forward
    try:
        yield
    finally:
        pipeline.unet.forward = own
        del pipeline.unet.forward


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_images_with_guidance_and_any_solver_are_those_of_the_pass_written_straight_down(scheduler: str) -> None:
    pipeline = ado.load_pipeline(pipelines.saved("stable_diffusion"), scheduler=scheduler, device="cpu")
    whole = Candidate.from_time_steps([round(time) for time in CANDIDATE.times])
    candidate = Candidate(
        tuple(Step(time, (), branch) for time, branch in zip(whole.times, CANDIDATE.branches, strict=True))
    )
    sampler = ImageSampler(pipeline, Prompts(("a cat", "rain")), {"guidance_scale": 4.0}, micro_batch=2)
    layout = {"heun": "heun", "KDPM2DiscreteScheduler": "heun", "pndm": "plms"}.get(scheduler, "once")
    (images,) = sampler.images(candidate, [0, 1], seed=0)
    with straight_down(pipeline, candidate, partial_steps.unet_condition, layout):
        (expected,) = sampler.images(whole, [0, 1], seed=0)
    (full,) = sampler.images(whole, [0, 1], seed=0)
    assert (images.int() - expected.int()).abs().max() <= 1  # of 255: sums in another order
    assert not torch.equal(images, full)


def test_images_do_not_depend_on_what_was_made_before(digits: Any) -> None:
    fresh = ado.load_pipeline("digits", scheduler="ddim", device="cpu")
    (expected,) = ImageSampler(fresh, Unconditional(), micro_batch=4).images(CANDIDATE, range(4), seed=1)
    sampler = ImageSampler(digits, Unconditional(), micro_batch=4)
    list(sampler.images(CANDIDATE, range(4), seed=0))
    (images,) = sampler.images(CANDIDATE, range(4), seed=1)
    assert torch.equal(images, expected)
    (one,) = sampler.images(CANDIDATE, [2], seed=1)
    assert torch.equal(one[0], expected[2])


def test_an_exception_in_the_middle_of_a_call_leaves_nothing_behind(digits: Any) -> None:
    sampler = ImageSampler(digits, Unconditional(), micro_batch=4)
    (expected,) = sampler.images(CANDIDATE, range(4), seed=1)
    ado.apply(digits, CANDIDATE)
    try:
        handle = digits.unet.mid_block.register_forward_hook(_fail_second())
        with pytest.raises(RuntimeError, match="the second full step"):
            digits(batch_size=2, num_inference_steps=6)
        handle.remove()
        call = {"batch_size": 4, "output_type": "pt", "num_inference_steps": 6}
        first = digits(generator=torch.Generator().manual_seed(0), **call).images
        again = digits(generator=torch.Generator().manual_seed(0), **call).images
        assert (first == again).all()
    finally:
        ado.remove(digits)
    (images,) = sampler.images(CANDIDATE, range(4), seed=1)
    assert torch.equal(images, expected)


def _fail_second() -> Callable[..., None]:
    seen: list[int] = []

    def hook(*_: Any) -> None:
        seen.append(1)
        if len(seen) == 2:
            raise RuntimeError("the second full step")

    return hook


def test_a_dit_with_guidance_runs_partial_steps() -> None:
    pipeline = ado.load_pipeline("digits-dit", scheduler="ddim", device="cpu")
    sampler = ImageSampler(pipeline, Labels(range(10)), {"guidance_scale": 1.5}, micro_batch=4)
    (images,) = sampler.images(CANDIDATE, range(4), seed=0)
    (full,) = sampler.images(Candidate.from_time_steps(CANDIDATE.times), range(4), seed=0)
    assert not torch.equal(images, full)
    assert images.float().std() > 10


def test_compiled_layers_leave_the_decision_outside_of_what_is_compiled(digits: Any) -> None:
    (expected,) = ImageSampler(digits, Unconditional(), micro_batch=2).images(CANDIDATE, [0, 1], seed=0)
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = ado.load_pipeline("digits", scheduler="ddim", device="cpu")
    ado.compile_layers(compiled, backend=count)
    sampler = ImageSampler(compiled, Unconditional(), micro_batch=2)
    list(sampler.images(Candidate.from_time_steps([900, 500, 100]), [0, 1], seed=0))
    before = len(graphs)
    (images,) = sampler.images(CANDIDATE, [0, 1], seed=0)
    assert len(graphs) == before > 0
    assert (images.int() - expected.int()).abs().max() <= 1


def test_from_image_to_image_a_partial_step_that_comes_first_is_run_in_full() -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    plain = ado.load_pipeline(pipelines.saved("stable_diffusion"), scheduler="dpmsolver++", device="cpu")
    pipeline = StableDiffusionImg2ImgPipeline(**plain.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def image(candidate: Candidate) -> Any:
        ado.apply(pipeline, candidate)
        seed = torch.Generator().manual_seed(0)
        with pytest.warns(UserWarning, match="of the candidate's"):
            images = pipeline("rain", image=picture, strength=0.5, output_type="np", generator=seed).images
        ado.remove(pipeline)
        return images

    partial = Candidate((Step(900), Step(400, (), 0), Step(100, (), 0)))
    first_full = Candidate((Step(900), Step(400), Step(100, (), 0)))
    assert (image(partial) == image(first_full)).all()
    assert (image(partial) != image(Candidate.from_time_steps([900, 400, 100]))).any()


def test_a_controlnet_is_refused_at_its_first_call() -> None:
    denoiser, inputs = made("SD")
    residuals = {"down_block_additional_residuals": (), "mid_block_additional_residual": torch.zeros(1)}
    with Calls(denoiser, [None, 0]) as calls, pytest.raises(UserError, match="ControlNet or an adapter"):
        calls.at(0, inputs | residuals)
