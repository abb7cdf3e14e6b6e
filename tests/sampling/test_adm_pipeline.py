"""Guided sampling of ADM: equal to algorithm 2 in float64, saved and loaded as any pipeline of diffusers'."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from marks import slow_but
from peers import adm

import autodiffusion_opt as ado
from autodiffusion_opt import Candidate, UserError
from autodiffusion_opt.sampling.conditions import Labels
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.layers import list_layers
from autodiffusion_opt.sampling.own import own_candidate

LABELS = [4, 1]
LAYERS = [name for name, kind, _, _ in adm.path(adm.small("new")[1]) if kind != "keep"]
EVEN, UNEVEN, FRACTIONAL = (750, 500, 250, 0), (990, 620, 611, 85), (937.25, 400.5, 399.75, 12.125)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small guided pipeline, saved."""
    place = tmp_path_factory.mktemp("adm") / "small"
    adm.small_pipeline()[0].save_pretrained(place)
    return place


@pytest.fixture
def precise(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """The pipeline in float64, and its weights under OpenAI's names."""
    monkeypatch.setattr("diffusers.models.embeddings.Timesteps.forward", adm.precise_waves)
    pipeline, unet, classifier = adm.small_pipeline(dtype=torch.float64)
    pipeline.scheduler.alphas_cumprod = torch.tensor(adm.cosine_alpha_bar(), dtype=torch.float64)
    pipeline.scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return pipeline, unet, classifier


def formula(states: Any, times: Sequence[float], scale: float, removed: Sequence[Sequence[int]]) -> torch.Tensor:
    """Images in 0..1 of the two labels, by algorithm 2."""
    unet, classifier = states
    _, shape, guide = adm.small("new")
    labels, levels = torch.tensor(LABELS), adm.cosine_alpha_bar()

    def predict(sample: torch.Tensor, time: float, index: int) -> torch.Tensor:
        gone = [LAYERS[layer] for layer in removed[index]]
        return adm.unet(unet, shape, "new", sample, torch.full((2,), time), labels, gone)[:, :3]

    def log_probability(sample: torch.Tensor, time: float) -> torch.Tensor:
        logits = adm.classifier(classifier, guide, sample, torch.full((2,), time))
        return logits.log_softmax(dim=1)[[0, 1], labels].sum()

    noise = [torch.randn((1, 3, 16, 16), generator=seeded, dtype=torch.float64) for seeded in seeds()]
    sample = adm.guided_ddim(
        predict, log_probability, torch.cat(noise), times, lambda time: adm.between(levels, time), scale
    )
    return (sample / 2 + 0.5).clamp(0, 1)


def seeds() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (7, 8)]


TIMES = {
    "even": (EVEN, [()] * 4),
    "uneven": (UNEVEN, [(), (1, 5), (0, 9), (3,)]),
    "fractional": (FRACTIONAL, [(2,), (), (4, 8), ()]),
}
CASES = [f"{times} {scale}" for times in TIMES for scale in (0, 1, 4)]


@pytest.mark.parametrize("case", slow_but(CASES, "uneven 1", "fractional 4"))
def test_guided_sampling_is_algorithm_2(case: str, precise: Any) -> None:
    pipeline, *states = precise
    name, scale = case.split()[0], float(case.split()[1])
    times, removed = TIMES[name]
    assert len(list_layers(pipeline.unet)) == len(LAYERS)
    candidate = Candidate.from_time_steps(times, removed=removed, guidance_scale=scale)
    modes = (torch.inference_mode, contextlib.nullcontext) if case == "uneven 1" else (torch.inference_mode,)
    theirs = formula(states, times, scale, removed)
    for mode in modes:
        with mode(), ado.install(pipeline, candidate):
            ours = pipeline(class_labels=LABELS, generator=seeds(), output_type="pt").images
        assert (ours - theirs).abs().max() < 1e-10
    assert ours.std() > 0.05


def test_the_guidance_scale_and_the_clipping_change_images(precise: Any) -> None:
    _, *states = precise
    weak, strong = (formula(states, EVEN, scale, [()] * 4) for scale in (0, 1))
    assert (weak - strong).abs().max() > 1e-3


def test_without_a_candidate_the_schedulers_own_times_are_used(precise: Any) -> None:
    pipeline, *states = precise
    ours = pipeline(class_labels=LABELS, generator=seeds(), num_inference_steps=4, output_type="pt").images
    assert (ours - formula(states, EVEN, 1, [()] * 4)).abs().max() < 1e-10


@pytest.mark.parametrize("scheduler", slow_but(["dpmsolver++", "euler", "ddpm"], "dpmsolver++"))
def test_other_schedulers_sample_with_guidance_too(scheduler: str, folder: Path) -> None:
    pipeline = ado.load_pipeline(str(folder), scheduler=scheduler, device="cpu")
    images = []
    for scale in (0.0, 3.0):
        with ado.install(pipeline, Candidate.from_time_steps(FRACTIONAL, guidance_scale=scale)):
            images.append(pipeline(class_labels=LABELS, generator=seeds(), output_type="pt").images)
    assert all(each.isfinite().all() for each in images)
    assert (images[0] - images[1]).abs().max() > 1e-4


def test_a_saved_pipeline_is_loaded_by_its_class_name_with_safetensors_alone(folder: Path) -> None:
    assert not {".bin", ".pt", ".pkl"} & {path.suffix for path in folder.rglob("*")}
    pipeline = ado.load_pipeline(str(folder), device="cpu")
    assert isinstance(pipeline, ado.ADMPipeline)
    assert isinstance(pipeline.classifier, ado.NoisyClassifier)
    before = adm.small_pipeline()[0]
    arguments = {"class_labels": LABELS, "num_inference_steps": 3, "output_type": "np"}
    images = [each(generator=seeds(), **arguments).images for each in (before, pipeline)]
    assert (images[0] == images[1]).all()


def test_a_pipeline_without_a_classifier_is_saved_and_loaded(tmp_path: Path) -> None:
    pipeline = ado.ADMPipeline(adm.small_pipeline()[0].unet, diffusers.DDIMScheduler(clip_sample=False))
    pipeline.save_pretrained(tmp_path / "plain")
    loaded = ado.load_pipeline(str(tmp_path / "plain"), device="cpu")
    assert loaded.classifier is None
    assert len(loaded(class_labels=3, batch_size=2, num_inference_steps=2).images) == 2


def test_image_i_does_not_depend_on_the_batch(folder: Path) -> None:
    pipeline = ado.load_pipeline(str(folder), device="cpu")
    candidate = Candidate.from_time_steps(UNEVEN, removed=[(), (1,), (), ()], guidance_scale=2.0)

    def images(indices: Sequence[int], batch_size: int) -> torch.Tensor:
        sampler = ImageSampler(pipeline, Labels(range(5)), micro_batch=3, batch_size=batch_size)
        return torch.cat(list(sampler.images(candidate, indices, 0)))

    together = images(range(5), 4)
    assert torch.equal(together, images(range(5), 2))
    assert torch.equal(together[[4, 1]], images([4, 1], 1))


def test_the_baseline_own_has_the_pipelines_guidance_scale(folder: Path) -> None:
    sampler = ImageSampler(ado.load_pipeline(str(folder), device="cpu"), Labels(range(5)))
    own = own_candidate(sampler, 4, with_guidance=True)
    assert own.times == EVEN
    assert own.guidance_scale == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "class_labels must be given: integers from 0 to 4"),
        ({"class_labels": [5]}, r"class_labels must be integers from 0 to 4; got \[5\]"),
        ({"class_labels": []}, "class_labels must be integers"),
        ({"class_labels": [1, 2], "generator": seeds()[:1]}, "one for each of 2 images; got 1"),
    ],
)
def test_calls_that_make_no_sense_are_refused(arguments: Any, message: str, folder: Path) -> None:
    pipeline = ado.load_pipeline(str(folder), device="cpu")
    with pytest.raises(UserError, match=message):
        pipeline(num_inference_steps=2, **arguments)


def test_a_scheduler_that_clips_after_the_guidance_is_refused(folder: Path) -> None:
    pipeline = ado.load_pipeline(str(folder), scheduler_settings={"clip_sample": True}, device="cpu")
    with pytest.raises(UserError, match="clip_sample = False: x̂_0 is clipped before the guidance; got True"):
        pipeline(class_labels=LABELS, num_inference_steps=2)
