"""A candidate stays in force, or says that it is not: copies, other schedulers, shared parts, threads, files."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from peers import pipelines
from peers.samples import call_by_hand, load

from autodiffusion_opt import Candidate, UserError, applied, apply, install, remove
from autodiffusion_opt.sampling.layers import list_layers

TIMES = Candidate.from_time_steps([901, 640, 222])
OTHER = Candidate.from_time_steps([950, 100, 3])
LAYERS = Candidate.from_time_steps([901, 640, 222], removed=[[0], [], [2]])
OTHER_LAYERS = Candidate.from_time_steps([901, 640, 222], removed=[[], [1], []])
# diffusers' own set_timesteps, with NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


def images(pipeline: Any, name: str = "ddim", steps: int = 3) -> torch.Tensor:
    return call_by_hand(pipeline, name, [0, 1], num_inference_steps=steps)


def expected(candidate: Candidate, name: str = "ddim", **settings: Any) -> torch.Tensor:
    return images(apply(load(name, **settings), candidate), name)


# Visibly.


def test_what_is_applied_can_be_asked_for_and_is_in_the_repr() -> None:
    pipeline = load("ddim")
    plain = repr(pipeline)
    assert applied(pipeline) is None
    apply(pipeline, TIMES)
    assert applied(pipeline) == TIMES
    assert repr(pipeline) == f"{plain}\nwith the candidate [901, 640, 222] applied by autodiffusion_opt"
    remove(pipeline)
    assert applied(pipeline) is None
    assert repr(pipeline) == plain


@pytest.mark.parametrize(("name", "argument"), [("sdxl", "timesteps"), ("sdxl", "sigmas"), ("flux", "sigmas")])
def test_times_given_in_the_call_are_not_used_and_that_is_told_once(name: str, argument: str) -> None:
    pipeline = apply(load(name), TIMES)
    wanted = images(pipeline, name)
    given: Any = {argument: [0.9, 0.5]} if argument == "sigmas" else {argument: [900, 500]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert torch.equal(call_by_hand(pipeline, name, [0, 1], **given), wanted)
    told = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    assert told == [f"{argument} is not used: the pipeline samples with the candidate [901, 640, 222]"]


def test_a_guidance_scale_that_the_candidate_leaves_to_the_call_is_used_without_a_word() -> None:
    pipeline = apply(load("stable_diffusion"), TIMES)
    made = [
        call_by_hand(pipeline, "stable_diffusion", [0], num_inference_steps=3, guidance_scale=scale)
        for scale in (2.0, 9.0)
    ]
    assert not torch.equal(*made)


# Copies.


@pytest.mark.parametrize("candidate", [TIMES, LAYERS], ids=["times", "layers"])
def test_a_deep_copy_carries_the_whole_candidate_and_remove_works_on_it(candidate: Candidate) -> None:
    pipeline = load("ddim")
    plain, wanted = images(pipeline), expected(candidate)
    apply(pipeline, candidate)
    copied = copy.deepcopy(pipeline)
    assert applied(copied) == candidate
    assert torch.equal(images(copied), wanted)
    remove(pipeline)
    assert torch.equal(images(copied), wanted)
    assert torch.equal(images(pipeline), plain)
    remove(copied)
    assert torch.equal(images(copied), plain)
    assert type(copied) is diffusers.DDIMPipeline
    assert not any("forward" in vars(module) for module in copied.unet.modules())


def test_a_shallow_copy_and_pickling_are_refused_with_what_to_do() -> None:
    pipeline = apply(load("ddim"), LAYERS)
    with pytest.raises(UserError, match=r"use copy.deepcopy, or ado.remove\(pipeline\) first"):
        copy.copy(pipeline)
    with pytest.raises(UserError, match=r"cannot be pickled: ado.remove\(pipeline\) first"):
        pickle.dumps(pipeline)
    again = pickle.loads(pickle.dumps(remove(pipeline)))
    assert torch.equal(images(again), images(pipeline))


# Other parts put on the pipeline.


@pytest.mark.parametrize("candidate", [TIMES, LAYERS], ids=["times", "layers"])
def test_a_scheduler_put_on_the_pipeline_later_gets_the_candidate_with_the_next_call(candidate: Candidate) -> None:
    pipeline = apply(load("stable_diffusion"), candidate)
    pipeline.scheduler = new = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    before = dict(vars(new))
    wanted = expected(candidate, "stable_diffusion", scheduler="dpmsolver++")
    assert torch.equal(images(pipeline, "stable_diffusion"), wanted)
    remove(pipeline)
    assert pipeline.scheduler is new
    assert vars(new) == before


def test_a_scheduler_that_is_not_accepted_is_refused_at_the_next_call() -> None:
    pipeline = apply(load("stable_diffusion"), TIMES)
    pipeline.scheduler = diffusers.RePaintScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(UserError, match="the scheduler must be one of"):
        images(pipeline, "stable_diffusion")


def test_another_denoiser_put_on_the_pipeline_gets_the_candidate_too() -> None:
    pipeline, new = apply(load("ddim"), LAYERS), load("ddim").unet
    old = pipeline.unet
    pipeline.unet = new
    assert torch.equal(images(pipeline), expected(LAYERS))
    assert not any("forward" in vars(module) for module in old.modules())
    remove(pipeline)
    assert not any("forward" in vars(module) for module in new.modules())


def test_removed_layers_and_a_cache_of_diffusers_are_refused_together_in_either_order() -> None:
    config = diffusers.FirstBlockCacheConfig(threshold=0.2)
    pipeline = load("flux")
    plain = images(pipeline, "flux")
    removed = Candidate.from_time_steps([901, 640, 222], removed=[[0], [], []])
    pipeline.transformer.enable_cache(config)
    with pytest.raises(UserError, match=r"FluxTransformer2DModel has a cache .* call disable_cache\(\) before"):
        apply(pipeline, removed)
    assert applied(pipeline) is None
    apply(pipeline, TIMES)  # times and a cache go together
    assert torch.isfinite(images(pipeline, "flux")).all()
    pipeline.transformer.disable_cache()
    apply(pipeline, removed)
    wanted = images(pipeline, "flux")
    pipeline.transformer.enable_cache(config)
    with pytest.raises(UserError, match="has a cache of diffusers"):
        images(pipeline, "flux")
    pipeline.transformer.disable_cache()
    assert torch.equal(images(pipeline, "flux"), wanted)
    assert torch.equal(images(remove(pipeline), "flux"), plain)


# Parts that pipelines share.


def test_pipelines_that_share_scheduler_and_denoiser_do_not_see_each_others_candidates() -> None:
    first = load("ddim")
    plain = images(first)
    second = diffusers.DDIMPipeline(first.unet, first.scheduler)
    third = diffusers.DDIMPipeline(first.unet, first.scheduler)
    for pipeline in (second, third):
        pipeline.set_progress_bar_config(disable=True)
    apply(first, LAYERS)
    apply(second, OTHER_LAYERS)
    for _ in range(2):
        assert torch.equal(images(first), expected(LAYERS))
        assert torch.equal(images(second), expected(OTHER_LAYERS))
        assert torch.equal(images(third), plain)
    remove(first)
    assert torch.equal(images(first), plain)
    assert torch.equal(images(second), expected(OTHER_LAYERS))
    remove(second)
    assert not any("forward" in vars(module) for module in first.unet.modules())


def test_a_pipeline_made_from_one_with_a_candidate_says_what_to_do_and_can_have_it_applied() -> None:
    """It shares the scheduler that has the candidate on it."""
    pipeline = apply(load("stable_diffusion"), LAYERS)
    made = diffusers.StableDiffusionPipeline.from_pipe(pipeline)
    made.set_progress_bar_config(disable=True)
    assert applied(made) is None
    with pytest.raises(UserError, match="used outside of a call of that pipeline"):
        images(made, "stable_diffusion")
    apply(made, OTHER)
    assert torch.equal(images(made, "stable_diffusion"), expected(OTHER, "stable_diffusion"))
    assert torch.equal(images(pipeline, "stable_diffusion"), expected(LAYERS, "stable_diffusion"))


def test_a_pipeline_around_another_is_told_that_the_candidate_was_not_used() -> None:
    class Around(SimpleNamespace):
        """Its inner pipeline samples with a scheduler of its own."""

        __hash__ = object.__hash__

        def __call__(self, num_inference_steps: int = 50) -> Any:
            return self.inner(num_inference_steps=num_inference_steps, output_type="pt")

    inner = load("ddim")
    around = apply(Around(inner=inner, scheduler=copy.deepcopy(inner.scheduler), unet=inner.unet), TIMES)
    with pytest.raises(UserError, match="ended without using the candidate"):
        around()


def test_a_loop_of_ones_own_has_the_candidate_inside_of_install_and_is_refused_outside() -> None:
    pipeline = load("ddim")
    wanted = images(apply(pipeline, LAYERS))
    with pytest.raises(UserError, match=r"be inside `with ado.install\(pipeline, candidate\):`"):
        pipeline.scheduler.set_timesteps(3)
    remove(pipeline)
    noise = call_noise()
    with install(pipeline, LAYERS), torch.no_grad():
        pipeline.scheduler.set_timesteps(3)
        sample = noise
        for time in pipeline.scheduler.timesteps:
            sample = pipeline.scheduler.step(pipeline.unet(sample, time).sample, time, sample).prev_sample
    assert torch.equal((sample / 2 + 0.5).clamp(0, 1), wanted)


def call_noise() -> torch.Tensor:
    from autodiffusion_opt.sampling.generate import noise_generator

    return torch.cat([torch.randn(1, 3, 16, 16, generator=noise_generator(5, index)) for index in (0, 1)])


# Threads.


def in_threads(*functions: Any, times: int = 6) -> list[list[torch.Tensor]]:
    """The results of each function, called over and over at the same time as the others."""
    results: list[list[torch.Tensor]] = [[] for _ in functions]
    begin = threading.Barrier(len(functions))

    def work(index: int) -> None:
        begin.wait()
        for _ in range(times):
            results[index].append(functions[index]())

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.slow
def test_two_threads_with_pipelines_that_share_a_denoiser_get_the_right_images() -> None:
    first = load("ddim")
    second = diffusers.DDIMPipeline(first.unet, first.scheduler)
    second.set_progress_bar_config(disable=True)
    apply(first, LAYERS)
    apply(second, OTHER_LAYERS)
    ones, others = in_threads(lambda: images(first), lambda: images(second))
    assert len(ones) == len(others) == 6
    assert all(torch.equal(made, expected(LAYERS)) for made in ones)
    assert all(torch.equal(made, expected(OTHER_LAYERS)) for made in others)


def test_two_threads_on_a_pipeline_with_a_candidate_get_the_right_images() -> None:
    """The calls wait for each other."""
    pipeline = apply(load("ddim"), LAYERS)
    wanted = images(pipeline)
    assert all(torch.equal(made, wanted) for results in in_threads(*[lambda: images(pipeline)] * 3) for made in results)


def test_a_call_inside_a_call_of_the_same_pipeline_is_refused() -> None:
    pipeline = apply(load("stable_diffusion"), TIMES)

    def again(*_: Any) -> dict[str, Any]:
        pipeline("a dog", num_inference_steps=3)
        return {}

    with pytest.raises(UserError, match="cannot call inside a call of its own"):
        pipeline("a cat", num_inference_steps=3, callback_on_step_end=again)
    with pytest.raises(UserError, match="cannot remove inside a call of its own"):
        pipeline("a cat", num_inference_steps=3, callback_on_step_end=lambda *_: remove(pipeline))
    assert torch.equal(images(pipeline, "stable_diffusion"), expected(TIMES, "stable_diffusion"))


# For good.


def test_a_candidate_that_cannot_be_applied_leaves_the_one_before() -> None:
    pipeline = apply(load("ddim"), LAYERS)
    wrong = Candidate.from_time_steps([900, 3], removed=[[999], []])
    for candidate in (wrong, Candidate.from_time_steps([1000]), Candidate.from_time_steps([9], guidance_scale=2.0)):
        with pytest.raises(UserError):
            apply(pipeline, candidate)
        assert applied(pipeline) == LAYERS
    assert torch.equal(images(pipeline), expected(LAYERS))
    remove(pipeline)
    assert not any("forward" in vars(module) for module in pipeline.unet.modules())


@pytest.mark.parametrize("name", ["ddim", "stable_diffusion", "flux"])
def test_a_saved_pipeline_is_loaded_with_its_candidate_and_searched_without(name: str, tmp_path: Any) -> None:
    from autodiffusion_opt import load_pipeline
    from autodiffusion_opt.sampling.config import PipelineConfig
    from autodiffusion_opt.sampling.load import load_configured

    pipeline = load(name)
    layer = next(layer.index for layer in list_layers(getattr(pipeline, "unet", None) or pipeline.transformer))
    candidate = Candidate.from_time_steps([901, 640, 222], removed=[[layer], [], []], end_time=3)
    apply(pipeline, candidate).save_pretrained(tmp_path / "saved")
    again = load_pipeline(str(tmp_path / "saved"), device="cpu")
    assert applied(again) == candidate
    assert torch.equal(images(again, name), images(pipeline, name))
    searched = load_configured(PipelineConfig(model=str(tmp_path / "saved"), device="cpu"))
    assert applied(searched) is None
    pipelines.BUILDERS[name]().save_pretrained(tmp_path / "plain")
    assert applied(load_pipeline(str(tmp_path / "plain"), device="cpu")) is None
