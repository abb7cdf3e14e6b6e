"""Candidates in cache-dit: the written YAML, opened by cache-dit itself, and its cache on a pipeline."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from peers import engine_pipelines, pipelines

import autodiffusion_opt as ado
from autodiffusion_opt import Candidate, Step, UserError
from autodiffusion_opt.engine import CacheDiT, CacheDiTMask, Engine, MagCache
from autodiffusion_opt.sampling.conditions import Labels
from autodiffusion_opt.sampling.engines.cache_dit import block_lists, cache_dit
from autodiffusion_opt.sampling.engines.difference import SAME_PIXELS, pixels
from autodiffusion_opt.sampling.engines.diffusers_caches import whole_steps
from autodiffusion_opt.sampling.generate import ImageSampler, noise_generator
from autodiffusion_opt.study.engine_export import EngineExport, export_for, write_export

needs_cache_dit = pytest.mark.skipif(importlib.util.find_spec("cache_dit") is None, reason="cache-dit is not installed")
TIMES = (901, 733, 404, 200, 58)


def partial(branch: int, *at: float) -> Candidate:
    return Candidate(tuple(Step(time, (), branch if time in at else None) for time in TIMES))


LATE = partial(1, 404, 58)


def exported(sampler: ImageSampler, candidate: Candidate, folder: Path) -> tuple[EngineExport, dict[str, Any]]:
    made = export_for("cache-dit", sampler, candidate)
    write_export(made, folder)
    return made, json.loads((folder / "cache_dit.json").read_text())


@pytest.fixture
def opened() -> Iterator[Any]:
    """Opens the written YAML with cache-dit on a pipeline, as its readers do; closes it after the test."""
    package = cache_dit()
    pipelines_with_it = []

    def open_yaml(pipeline: Any, folder: Path) -> Any:
        package.enable_cache(pipeline, **package.load_configs(str(folder / "cache_dit.yaml")))
        pipelines_with_it.append(pipeline)
        return pipeline

    yield open_yaml
    for pipeline in pipelines_with_it:
        ado.remove(pipeline)
        package.disable_cache(pipeline)


def images_by_hand(pipeline: Any, sampler: ImageSampler, folder: Path) -> torch.Tensor:
    """The first two images, as somebody makes them who has the pipeline, cache-dit and the files."""
    call = json.loads((folder / "cache_dit.json").read_text())["call"]
    if not json.loads((folder / "cache_dit.json").read_text())["times_in_call"]:
        ado.apply(pipeline, folder / "times.json")
    if isinstance(sampler.conditions, Labels):
        call["class_labels"] = [sampler.conditions.label(index) for index in range(2)]
    else:
        call["prompt"] = list(pipelines.PROMPTS[:2])
    generators = [noise_generator(0, index) for index in range(2)]
    made = pipeline(**{**sampler.call, **call}, generator=generators, output_type="pt").images
    return torch.as_tensor(made).cpu().float().clamp(0, 1)


@needs_cache_dit
@pytest.mark.parametrize("branch", slow_but([1, 2], 1))
@pytest.mark.parametrize("name", ["dit", "sd3", "flux"])
def test_partial_steps_are_cache_dits_static_mask_exactly(name: str, branch: int, tmp_path: Path, opened: Any) -> None:
    sampler, candidate = getattr(engine_pipelines, name)(), partial(branch, 404, 58)
    made, written = exported(sampler, candidate, tmp_path)
    assert written["same_images"]
    assert written["cache_config"]["steps_computation_mask"] == [1, 1, 0, 1, 0]
    assert written["cache_config"]["Fn_compute_blocks"] == branch
    assert not any("partial" in remark or "layer" in remark for remark in made.remarks)
    ours = pixels(sampler, candidate, images=2)
    assert float((ours - pixels(sampler, whole_steps(candidate), images=2)).abs().max()) > SAME_PIXELS
    pipeline = opened(getattr(engine_pipelines, name)().pipeline, tmp_path)
    assert float((images_by_hand(pipeline, sampler, tmp_path) - ours).abs().max()) < SAME_PIXELS


@needs_cache_dit
@pytest.mark.slow
def test_a_pipeline_that_calls_its_denoiser_twice_a_step_has_a_cache_for_each(tmp_path: Path, opened: Any) -> None:
    sampler = engine_pipelines.cogview4()
    _, written = exported(sampler, LATE, tmp_path)
    assert written["same_images"]
    assert written["cache_config"]["enable_separate_cfg"] is True
    ours = pixels(sampler, LATE, images=2)
    pipeline = opened(engine_pipelines.cogview4().pipeline, tmp_path)
    assert float((images_by_hand(pipeline, sampler, tmp_path) - ours).abs().max()) < SAME_PIXELS


@needs_cache_dit
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "branch"), [("qwen_image", 1), ("z_image", 1), ("lumina", 1), ("lumina2", 1), ("cogview3_plus", 1)]
)
def test_one_list_of_blocks_after_refiners_is_exact_too(name: str, branch: int) -> None:
    made = export_for("cache-dit", engine_pipelines.current(name), partial(branch, 404, 58))
    assert made.settings["same_images"]
    assert made.settings["cache_config"]["Fn_compute_blocks"] == 1


@needs_cache_dit
def test_a_partial_step_of_no_block_is_told(tmp_path: Path) -> None:
    made, written = exported(engine_pipelines.dit(), partial(0, 404, 58), tmp_path)
    assert made.remarks[0].startswith("branch 0 runs no block of cache-dit's list")
    assert written["cache_config"]["Fn_compute_blocks"] == 1
    assert not written["same_images"]


@needs_cache_dit
def test_a_branch_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match="has 3 branches, 0 to 2; got 7"):
        export_for("cache-dit", engine_pipelines.dit(), partial(7, 404))


@needs_cache_dit
def test_what_cache_dit_cannot_express_is_told_by_name_with_its_difference(tmp_path: Path) -> None:
    steps = (Step(901), Step(733, (), 1), Step(640, (1,)), Step(404), Step(200, (), 2))
    made, written = exported(engine_pipelines.dit(), Candidate(steps), tmp_path)
    assert made.remarks[0] == "layer sets are left out (of the steps at 640): cache-dit runs every layer"
    assert made.remarks[1].startswith("branches 1, 2 are not run each at its steps")
    assert sum("images differ by" in remark for remark in made.remarks) == 2
    assert not written["same_images"]
    assert written["difference"]["greatest"] > SAME_PIXELS


@needs_cache_dit
@pytest.mark.slow
def test_two_lists_of_blocks_are_told(tmp_path: Path) -> None:
    made, written = exported(engine_pipelines.flux2(), LATE, tmp_path)
    assert made.remarks[0].startswith("partial steps are not run as such: cache-dit runs the front blocks of each list")
    assert "of 2 and 3 blocks" in made.remarks[0]
    assert not written["same_images"]


@needs_cache_dit
def test_a_dynamic_threshold_is_exported_as_it_is(tmp_path: Path, opened: Any) -> None:
    sampler = engine_pipelines.sd3()
    candidate = whole_steps(LATE, CacheDiT(1, 1, 0.5, 2, 1))
    _, written = exported(sampler, candidate, tmp_path)
    assert written["same_images"]
    assert "steps_computation_mask" not in written["cache_config"]
    ours = pixels(sampler, candidate, images=2)
    assert float((ours - pixels(sampler, whole_steps(LATE), images=2)).abs().max()) > SAME_PIXELS
    pipeline = opened(engine_pipelines.sd3().pipeline, tmp_path)
    assert float((images_by_hand(pipeline, sampler, tmp_path) - ours).abs().max()) < SAME_PIXELS


@needs_cache_dit
def test_a_candidate_with_full_steps_alone_is_a_mask_of_ones(tmp_path: Path) -> None:
    _, written = exported(engine_pipelines.dit(), whole_steps(LATE), tmp_path)
    assert written["same_images"]
    assert written["cache_config"]["steps_computation_mask"] == [1] * 5


@needs_cache_dit
def test_a_denoiser_that_cache_dit_does_not_know_and_another_engines_cache_are_refused(digits: Any) -> None:
    with pytest.raises(UserError, match="cache-dit has no adapter for"):
        export_for("cache-dit", ImageSampler(digits, micro_batch=2, batch_size=2), LATE)
    with pytest.raises(UserError, match="cache-dit cannot run mag-cache"):
        export_for("cache-dit", engine_pipelines.dit(), whole_steps(LATE, MagCache((2,))))


def test_without_the_package_a_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"cache-dit is not installed: pip install 'autodiffusion-opt\[cache-dit\]'"):
        export_for("cache-dit", engine_pipelines.dit(), LATE)
    with pytest.raises(UserError, match="cache-dit is not installed"):
        ado.apply(engine_pipelines.dit().pipeline, whole_steps(LATE, CacheDiTMask(1, 0, (2,))))


def attributes(denoiser: Any) -> dict[str, tuple[list[str], list[str]]]:
    """The names of all that is on each module, and its children in their order."""
    return {name: (sorted(vars(module)), list(module._modules)) for name, module in denoiser.named_modules()}


@needs_cache_dit
@pytest.mark.parametrize("engine", [CacheDiT(1, 1, 0.5, 2, 1), CacheDiTMask(2, 1, (2, 4))], ids=str)
@pytest.mark.parametrize("name", slow_but(["dit", "sd3", "flux", "flux2"], "dit"))
def test_cache_dits_cache_changes_images_the_same_way_in_every_call_and_leaves_no_trace(
    name: str, engine: Engine
) -> None:
    sampler = getattr(engine_pipelines, name)()
    if name == "flux2":
        engine = CacheDiTMask(1, 0, (2, 4))  # of two blocks in its first list
    denoiser, kind = sampler.pipeline.transformer, type(sampler.pipeline)
    whole, call = pixels(sampler, whole_steps(LATE)), kind.__call__
    before = attributes(denoiser)
    first = pixels(sampler, whole_steps(LATE, engine))
    assert not torch.equal(first, whole)
    assert torch.equal(first, pixels(sampler, whole_steps(LATE, engine)))
    assert attributes(denoiser) == before
    assert type(sampler.pipeline).__call__ is call
    assert torch.equal(pixels(sampler, whole_steps(LATE)), whole)


@needs_cache_dit
def test_cache_dits_cache_is_removed_after_an_exception() -> None:
    pipeline = engine_pipelines.dit().pipeline
    before = attributes(pipeline.transformer)
    ado.apply(pipeline, whole_steps(LATE, CacheDiTMask(1, 0, (2,))))

    def failing(*_: Any) -> None:
        raise ValueError("in the middle")

    handle = pipeline.transformer.transformer_blocks[2].register_forward_pre_hook(failing)
    with pytest.raises(ValueError, match="in the middle"):
        pipeline(class_labels=[1], num_inference_steps=5)
    handle.remove()
    assert attributes(pipeline.transformer) == before


@needs_cache_dit
def test_a_cache_that_never_leaves_a_block_out_changes_nothing() -> None:
    sampler = engine_pipelines.dit()
    whole = pixels(sampler, whole_steps(LATE))
    for engine in (
        CacheDiT(1, 0, 1e-6, 1, 1),
        CacheDiT(1, 0, 0.9, 5, 1),
        CacheDiTMask(1, 0, ()),
        CacheDiTMask(2, 2, (2,)),
    ):
        assert torch.equal(pixels(sampler, whole_steps(LATE, engine)), whole)


@needs_cache_dit
def test_warm_up_and_steps_in_a_row_bound_the_steps_at_which_blocks_are_left_out() -> None:
    sampler = engine_pipelines.dit()
    block, runs = sampler.pipeline.transformer.transformer_blocks[2], []
    block.register_forward_pre_hook(lambda *_: runs.append(1))
    for warm_up, in_a_row, expected in ((1, 5, 1), (1, 1, 3), (2, 2, 3), (4, 1, 4)):
        runs.clear()
        pixels(sampler, whole_steps(LATE, CacheDiT(1, 0, 1.0, warm_up, in_a_row)), images=2)
        assert len(runs) == expected


@needs_cache_dit
def test_more_front_and_back_blocks_than_there_are_and_a_cache_of_the_users_own_are_refused() -> None:
    pipeline, package = engine_pipelines.dit().pipeline, cache_dit()
    assert [len(blocks) for blocks in block_lists(pipeline)] == [4]
    with pytest.raises(UserError, match=r"at most the 4 blocks .* got 3 front and 2 back ones"):
        ado.apply(pipeline, whole_steps(LATE, CacheDiTMask(3, 2, (2,))))
    package.enable_cache(pipeline)
    try:
        with pytest.raises(UserError, match="has a cache of cache-dit"):
            ado.apply(pipeline, whole_steps(LATE, CacheDiTMask(1, 0, (2,))))
    finally:
        package.disable_cache(pipeline)
