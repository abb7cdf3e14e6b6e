"""Candidates in diffusers' own caches: the written file, run by diffusers alone, and caches on a pipeline."""

from __future__ import annotations

import copy
import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from marks import slow_but
from peers import engine_pipelines, pipelines
from peers.engine_pipelines import traces

import autodiffusion_opt as ado
from autodiffusion_opt import Candidate, Step, UserError
from autodiffusion_opt.engine import Engine, FirstBlockCache, MagCache, TaylorSeerCache
from autodiffusion_opt.sampling.engines.difference import SAME_PIXELS, difference, pixels
from autodiffusion_opt.sampling.engines.diffusers_caches import whole_steps
from autodiffusion_opt.sampling.generate import ImageSampler, noise_generator
from autodiffusion_opt.study.engine_export import EngineExport, export_for, write_export

# Partial steps soon after full ones, where what the first block adds has changed little.
SOON = Candidate(tuple(Step(time, (), 1 if time in (880, 380) else None) for time in (901, 880, 404, 380, 58)))
LATE = Candidate(tuple(Step(time, (), 1 if time in (404, 58) else None) for time in (901, 733, 404, 200, 58)))
ENGINES = [FirstBlockCache(0.9), MagCache((2, 4)), TaylorSeerCache(2, 1, 1)]


def exported(sampler: ImageSampler, candidate: Candidate, folder: Path) -> tuple[EngineExport, dict[str, Any]]:
    made = export_for("diffusers-cache", sampler, candidate)
    write_export(made, folder)
    return made, json.loads((folder / "diffusers_cache.json").read_text())


def images_of_the_file(pipeline: Any, folder: Path, arguments: dict[str, Any]) -> torch.Tensor:
    """The first two images, as somebody makes them who has diffusers and the file."""
    script = runpy.run_path(str(folder / "diffusers_cache.py"))
    script["enable"](pipeline)
    generators = [noise_generator(0, index) for index in range(2)]
    made = pipeline(**arguments, **script["CALL"], generator=generators, output_type="pt").images
    return torch.as_tensor(made).cpu().float().clamp(0, 1)


def test_partial_steps_of_one_block_are_first_block_cache_exactly_where_a_threshold_makes_them(tmp_path: Path) -> None:
    sampler = engine_pipelines.flux()
    made, written = exported(sampler, SOON, tmp_path)
    assert written["class"] == "FirstBlockCacheConfig"
    assert written["times_in_call"]
    assert written["same_images"]
    assert made.difference is not None
    assert made.difference.greatest <= SAME_PIXELS
    call = {"prompt": list(pipelines.PROMPTS[:2]), **pipelines.CALLS["flux"]}
    ours = pixels(sampler, SOON, images=2)
    assert (
        float((images_of_the_file(engine_pipelines.flux().pipeline, tmp_path, call) - ours).abs().max()) < SAME_PIXELS
    )


def test_where_no_threshold_makes_the_steps_the_nearest_cache_and_its_difference_are_told(tmp_path: Path) -> None:
    sampler = engine_pipelines.flux()
    made, written = exported(sampler, LATE, tmp_path)
    assert written["class"] == "MagCacheConfig"
    assert any("first-block-cache: no threshold" in remark for remark in made.remarks)
    assert any("taylorseer-cache (interval 2, warm_up 2, order 1): images differ by" in told for told in made.remarks)
    call = {"prompt": list(pipelines.PROMPTS[:2]), **pipelines.CALLS["flux"]}
    theirs = images_of_the_file(engine_pipelines.flux().pipeline, tmp_path, call)
    apart = difference(theirs, pixels(sampler, LATE, images=2))
    assert 0 < apart.greatest <= written["difference"]["greatest"] + SAME_PIXELS


@pytest.mark.parametrize("name", ["flux", "dit", "sd3"])
def test_partial_steps_of_no_block_are_mag_cache_exactly(name: str, tmp_path: Path) -> None:
    sampler = getattr(engine_pipelines, name)()
    steps = tuple(replace(step, branch=None if step.branch is None else 0) for step in LATE.steps)
    made, written = exported(sampler, Candidate(steps), tmp_path)
    assert written["class"] == "MagCacheConfig"
    assert written["same_images"]
    assert not any("not run as such" in remark for remark in made.remarks)


def test_a_pipeline_that_takes_no_times_gets_them_applied_beside_diffusers_cache(tmp_path: Path) -> None:
    sampler = engine_pipelines.dit()
    made, written = exported(sampler, LATE, tmp_path)
    assert written["apply"] == "apply_mag_cache"
    assert not written["times_in_call"]
    assert any("times.json" in remark for remark in made.remarks)
    pipeline = ado.apply(engine_pipelines.dit().pipeline, tmp_path / "times.json")
    labels = {"class_labels": [sampler.conditions.label(index) for index in range(2)], "guidance_scale": 2.0}
    theirs = images_of_the_file(pipeline, tmp_path, labels)
    ours = pixels(sampler, whole_steps(LATE, MagCache((2, 4))), images=2)
    assert float((theirs - ours).abs().max()) < SAME_PIXELS


def test_an_engines_candidate_is_exported_as_it_is(tmp_path: Path) -> None:
    sampler = engine_pipelines.flux()
    candidate = whole_steps(LATE, TaylorSeerCache(2, 1, 1))
    _, written = exported(sampler, candidate, tmp_path)
    assert written["class"] == "TaylorSeerCacheConfig"
    assert written["same_images"]
    call = {"prompt": list(pipelines.PROMPTS[:2]), **pipelines.CALLS["flux"]}
    theirs = images_of_the_file(engine_pipelines.flux().pipeline, tmp_path, call)
    assert float((theirs - pixels(sampler, candidate, images=2)).abs().max()) < SAME_PIXELS


def test_layer_sets_and_deeper_branches_are_told_by_name() -> None:
    steps = (Step(901), Step(640, (1,)), Step(404, (), 2))
    made = export_for("diffusers-cache", engine_pipelines.flux(), Candidate(steps))
    assert "layer sets are left out (of the steps at 640)" in made.remarks[0]
    assert "branches 2 are not run as such" in made.remarks[1]
    assert made.difference is not None
    assert made.difference.greatest > SAME_PIXELS


def test_a_denoiser_that_diffusers_has_no_cache_for_is_refused(digits: Any) -> None:
    sampler = ImageSampler(digits, micro_batch=2, batch_size=2)
    with pytest.raises(UserError, match="diffusers has no cache for this candidate on this pipeline: mag-cache: "):
        export_for("diffusers-cache", sampler, LATE)


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("name", slow_but(["flux", "dit", "sd3"], "dit"))
def test_an_engines_cache_changes_images_the_same_way_in_every_call_and_leaves_no_trace(
    name: str, engine: Engine
) -> None:
    sampler = getattr(engine_pipelines, name)()
    if name == "sd3" and not isinstance(engine, MagCache):
        with pytest.raises(UserError, match="hands on no text stream"):
            pixels(sampler, whole_steps(LATE, engine))
        return
    whole = pixels(sampler, whole_steps(LATE))
    before = traces(sampler.pipeline.transformer)
    first = pixels(sampler, whole_steps(LATE, engine))
    assert not torch.equal(first, whole)
    assert torch.equal(first, pixels(sampler, whole_steps(LATE, engine)))
    assert traces(sampler.pipeline.transformer) == before
    assert torch.equal(pixels(sampler, whole_steps(LATE)), whole)


def test_an_engines_cache_is_removed_after_an_exception() -> None:
    sampler = engine_pipelines.dit()
    pipeline = ado.apply(sampler.pipeline, whole_steps(LATE, MagCache((2,))))

    def failing(*_: Any) -> None:
        raise ValueError("in the middle")

    handle = pipeline.transformer.transformer_blocks[2].register_forward_pre_hook(failing)
    with pytest.raises(ValueError, match="in the middle"):
        pipeline(class_labels=[1], num_inference_steps=5)
    handle.remove()
    assert traces(pipeline.transformer) == {}


def test_a_cache_that_never_leaves_a_block_out_changes_nothing() -> None:
    sampler = engine_pipelines.dit()
    whole = pixels(sampler, whole_steps(LATE))
    for engine in (FirstBlockCache(1e-6), MagCache(()), TaylorSeerCache(2, 5, 1)):
        assert torch.equal(pixels(sampler, whole_steps(LATE, engine)), whole)


def test_an_applied_engine_is_copied_with_the_pipeline_and_only_runs_in_its_calls() -> None:
    sampler = engine_pipelines.dit()
    pipeline = ado.apply(sampler.pipeline, whole_steps(LATE, MagCache((2, 4))))
    call = {"class_labels": [1], "num_inference_steps": 5, "output_type": "np"}
    first = pipeline(**call, generator=torch.Generator().manual_seed(1)).images
    again = copy.deepcopy(pipeline)(**call, generator=torch.Generator().manual_seed(1)).images
    assert (first == again).all()
    assert traces(pipeline.transformer) == {}


def test_a_solver_that_calls_twice_a_step_and_a_cache_of_the_users_own_are_refused() -> None:
    sampler = engine_pipelines.flux()
    sampler.pipeline.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(UserError, match="has a cache of diffusers"):
        ado.apply(sampler.pipeline, whole_steps(LATE, MagCache((2,))))
    sampler.pipeline.transformer.disable_cache()
    sampler = engine_pipelines.dit()
    sampler.pipeline.scheduler = diffusers.PNDMScheduler(skip_prk_steps=True)
    with pytest.raises(UserError, match="calls the denoiser twice a step"):
        ado.apply(sampler.pipeline, whole_steps(LATE, MagCache((2,))))
