"""Compiled layers: one graph for equal layers, none for another candidate, images as without the compiler."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from peers import pipelines
from peers.counting_backend import MARKS, Counting, compiled
from peers.denoisers import NETWORKS, dit, made, output, unet
from peers.models_table import built
from peers.samples import BATCH, IMAGES, UNEVEN, call_by_hand, images_of, load, sampler_of

from autodiffusion_opt import Candidate, apply, compile_layers, load_pipeline
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.compile import MAX_GRAPHS
from autodiffusion_opt.sampling.config import PipelineConfig
from autodiffusion_opt.sampling.example_call import example_inputs, learn_layers
from autodiffusion_opt.sampling.fingerprint import fingerprint_object
from autodiffusion_opt.sampling.layers import install_bypass, list_layers
from autodiffusion_opt.sampling.layers.listing import known_layers
from autodiffusion_opt.sampling.load import load_configured
from autodiffusion_opt.sampling.ranking import rank_layers

pytestmark = MARKS


def sets_of(denoiser: Any, count: int) -> list[list[int]]:
    """Random sets of removable layers, the last one empty."""
    removable = [layer.index for layer in list_layers(denoiser) if layer.removable]
    draws = random.Random(0)
    return [*(draws.sample(removable, draws.randint(1, len(removable))) for _ in range(count)), []]


# --- graphs and images --------------------------------------------------------------------------------------

# All have schedulers that call the denoiser once a step, so that layer runs are known.
KINDS = ("ddim", "adm", "stable_diffusion", "sdxl", "sd3", "flux", "pixart_sigma", "dit")


def removing(layers: list[int]) -> list[Candidate]:
    """Candidates with other times, other numbers of steps and other layers; one removes none."""
    first = [layers[:1], layers[1:], layers, []]
    return [
        Candidate.from_time_steps([880, 501, 33, 2], removed=first),
        Candidate.from_time_steps([700, 20], removed=[layers[::2], layers[1::2]]),
        Candidate.from_time_steps([999, 650, 120, 40, 3]),
    ]


# In the default run one of each: a UNet, a transformer.
QUICK = ("flux", "SD")


def some_slow(cases: Iterable[tuple[str, str]]) -> list[Any]:
    """The cases of other kinds are for the slow run."""
    return [pytest.param(*case, marks=() if case[0] in QUICK else pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("name", "dtype"), some_slow([*((name, "float32") for name in KINDS), ("sd3", "bfloat16")]))
def test_candidates_share_few_graphs_and_give_the_images_of_the_uncompiled(
    name: str, dtype: str, backend: Counting
) -> None:
    scheduler = "ddim" if name == "stable_diffusion" else None
    pipeline, plain = (load(name, scheduler=scheduler, dtype=dtype) for _ in range(2))
    assert compile_layers(pipeline, backend) is pipeline
    layers, calls, graphs = list_layers(denoiser_of(plain)), -(-IMAGES // BATCH), []
    for candidate in (UNEVEN, *removing([layer.index for layer in layers if layer.removable])):
        backend.runs = 0
        difference = images_of(pipeline, name, candidate).int() - images_of(plain, name, candidate).int()
        assert difference.abs().max() <= (name == "adm")  # rounding, see ROUNDED
        assert backend.runs == calls * sum(len(layers) - len(gone) for gone in candidate.removed)
        graphs.append(backend.graphs)
    assert len(set(graphs)) == 1
    assert graphs[0] <= min(30, len(layers))


# Attention blocks of these hand on another memory format than they got, unless compiled: convolutions round otherwise.
ROUNDED = ("ADM", "NCSN++", "simple cross-attention")


FORMATS = [*((name, "contiguous_format") for name in NETWORKS), ("ADM", "channels_last"), ("SD", "channels_last")]


@pytest.mark.parametrize(("name", "format"), some_slow(FORMATS))
def test_layer_sets_compile_nothing_in_any_denoiser_and_memory_format(
    name: str, format: str, backend: Counting
) -> None:
    denoiser, inputs = made(name)
    denoiser.to(memory_format=getattr(torch, format))
    sets, count, now = sets_of(denoiser, 6), len(list_layers(denoiser)), [0]
    with install_bypass(denoiser, sets, lambda: now[0]):
        expected = [output(denoiser, inputs) for now[0] in range(len(sets))]
    compiled(denoiser, backend)
    output(denoiser, inputs)
    graphs = backend.graphs
    assert (backend.runs, graphs <= count) == (count, True)
    with install_bypass(denoiser, sets, lambda: now[0]):
        found = [output(denoiser, inputs) for now[0] in range(len(sets))]
    rounding = 1e-5 if name in ROUNDED or format == "channels_last" else 0.0
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
    assert backend.runs == count + sum(count - len(gone) for gone in sets)
    # HunyuanDiT's patches come transposed, and when all of its first half is removed its second half sees them.
    assert backend.graphs - graphs <= (name == "HunyuanDiT")


@pytest.mark.slow
def test_equal_layers_share_a_graph(backend: Counting) -> None:
    denoiser, inputs = made("DiT")
    deep = dit_of(12)
    output(compiled(denoiser, backend), inputs)
    shallow = backend.graphs
    torch._dynamo.reset()
    backend.graphs = 0
    output(compiled(deep, backend), inputs)
    assert backend.graphs == shallow < 3


def dit_of(layers: int) -> Any:
    config = {**dit().config, "num_layers": layers}
    return type(dit()).from_config(config).eval()


@pytest.mark.slow
def test_more_different_layers_of_one_class_than_torch_allows_are_all_compiled(backend: Counting) -> None:
    wide = unet(
        block_out_channels=(8, 16, 24, 32),
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        downsample_type="conv",
        upsample_type="conv",
    ).eval()
    layers = list_layers(wide)
    residual = [layer for layer in layers if layer.kind == "residual"]
    inputs = made("ADM")[1]
    output(compiled(wide, backend), inputs)
    assert backend.graphs > torch._dynamo.config.recompile_limit == 8 < len(residual)
    graphs, backend.runs = backend.graphs, 0
    output(wide, inputs)
    assert (backend.graphs, backend.runs) == (graphs, len(layers))


def test_torch_without_a_limit_for_one_function_gets_a_higher_one_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def earlier(function: Any, *, backend: str, dynamic: bool) -> Any:
        given.append((backend, dynamic))
        return function

    monkeypatch.setattr(torch, "compile", earlier)
    config = torch._dynamo.config
    for limit in (8, 2 * MAX_GRAPHS):
        with config.patch(recompile_limit=limit):
            compiled(made("Flux")[0], "inductor")
            assert config.recompile_limit == max(limit, MAX_GRAPHS)
    assert set(given) == {("inductor", False)}


@pytest.mark.slow
def test_calls_with_and_without_inference_mode_are_compiled_once_each(backend: Counting) -> None:
    pipeline, plain = load("dit"), load("dit")
    compile_layers(pipeline, backend)
    candidate = Candidate.from_time_steps([880, 33], removed=[[0], []])
    images_of(pipeline, "dit", candidate)  # in inference mode
    graphs = backend.graphs
    for _ in range(2):  # diffusers' own call is in no_grad
        by_hand = [
            call_by_hand(apply(each, candidate), "dit", [0, 1], num_inference_steps=2) for each in (pipeline, plain)
        ]
        assert torch.equal(*by_hand)
        assert graphs < backend.graphs <= 2 * graphs
    images_of(pipeline, "dit", UNEVEN)
    assert backend.graphs <= 2 * graphs


@pytest.mark.slow
def test_layers_that_see_the_time_are_compiled_once_for_whole_and_once_for_fractional_times(backend: Counting) -> None:
    """DiT's blocks embed the time themselves, and a scheduler's whole times are of another type."""
    pipeline, graphs = compile_layers(load("dit"), backend), []
    for times in ([901, 640], [901.5, 640.25], [880, 33], [3.5, 1.5]):
        images_of(pipeline, "dit", Candidate.from_time_steps(times))
        graphs.append(backend.graphs)
    assert graphs == [2, 4, 4, 4]


# --- beside the library's other rooms -----------------------------------------------------------------------


@pytest.mark.slow
def test_layers_are_ranked_as_without_the_compiler(backend: Counting) -> None:
    found = []
    for is_compiled in (False, True):
        pipeline = load_pipeline("digits", scheduler="ddim", device="cpu")
        if is_compiled:
            compile_layers(pipeline, backend)
        sampler = sampler_of(pipeline, "ddim", micro_batch=2, batch_size=2)
        found.append(rank_layers(sampler, images=2, times_per_third=1))
    assert found[0] == found[1]
    # 30 steps, then once whole and once without each of 18 layers, in each third.
    assert backend.runs == 18 * (30 + 3) + 3 * 18 * 17
    assert backend.graphs <= 18


def test_a_pipelines_fingerprint_does_not_change(backend: Counting) -> None:
    pipeline = load("stable_diffusion")
    before = fingerprint_object(pipeline)
    assert fingerprint_object(compile_layers(pipeline, backend)) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "dit"])
def test_compile_in_the_pipelines_table_takes_removed_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, real = Counting(), torch.compile

    @functools.wraps(real)  # with its parameters
    def counted(function: Any, **settings: Any) -> Any:
        assert settings["backend"] == "inductor"
        return real(function, **settings | {"backend": backend})

    monkeypatch.setattr(torch, "compile", counted)
    table = {"model": str(pipelines.saved(name)), "device": "cpu"}
    pipeline, plain = (load_configured(PipelineConfig(**table, compile=compile)) for compile in (True, False))
    candidate = Candidate.from_time_steps([900, 300], removed=[[0], []])
    assert torch.equal(images_of(pipeline, name, candidate), images_of(plain, name, candidate))
    assert backend.runs == 2 * (2 * len(list_layers(denoiser_of(plain))) - 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own, of its future
@pytest.mark.parametrize("name", ["z_image", "cogview4"])
def test_layers_that_only_their_form_tells_are_compiled_one_by_one(name: str, backend: Counting) -> None:
    pipeline, call = built(name)
    plain = built(name)[0]
    assert compile_layers(pipeline, backend, call) is pipeline
    learn_layers(plain, call)
    layers = list_layers(denoiser_of(plain))
    assert [layer.path for layer in known_layers(denoiser_of(pipeline))] == [layer.path for layer in layers]
    inputs = example_inputs(plain, call)
    with torch.no_grad():
        for removed in (set(), {0}, {layer.index for layer in layers}):
            found, expected = (result(denoiser_of(each), inputs, removed) for each in (pipeline, plain))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    graphs = backend.graphs
    assert 0 < graphs <= len(layers)
    with torch.no_grad():
        result(denoiser_of(pipeline), inputs, {1})
    assert backend.graphs == graphs, "another layer set compiles nothing"


def result(denoiser: Any, inputs: dict[str, Any], removed: set[int]) -> torch.Tensor:
    """The first tensor that a denoiser returns without some layers."""
    with install_bypass(denoiser, [removed], lambda: 0):
        value = denoiser(**inputs)
    while not isinstance(value, torch.Tensor):
        value = value[0]
    return value


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "ddim"])
def test_inductors_images_differ_by_a_grey_level_at_most(name: str) -> None:
    """With the compiler itself, which needs a C++ compiler: 20 to 40 seconds each on two cores."""
    pipeline, plain = load(name), load(name)
    compile_layers(pipeline)
    graphs = []
    for candidate in (UNEVEN, *removing([layer.index for layer in list_layers(denoiser_of(plain))])):
        difference = images_of(pipeline, name, candidate).int() - images_of(plain, name, candidate).int()
        assert difference.abs().max() <= 1
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(set(graphs)) == 1
