"""What the papers have: the orders of their formulas, the published DPM-Solver lists, ADM's own DDIM."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peers import as_computed, dpm_solvers, solvers
from peers.samples import SEED, UNEVEN, load, sampler_of
from peers.scheduler_runs import curved, difference, mixture, start

import autodiffusion_opt as ado
from autodiffusion_opt.sampling import schedule as schedules
from autodiffusion_opt.sampling.conditions import Labels
from autodiffusion_opt.sampling.generate import noise_generator, to_uint8

CANDIDATES = Path(__file__).parent.parent.parent / "studies" / "candidates"
ALPHA_BAR = diffusers.DDIMScheduler().alphas_cumprod.double().numpy()


def error(formula: Callable[..., Any], steps: int, options: dict[str, Any]) -> float:
    """To the exact solution for data N(0.3, 0.5²), over steps of uneven length from time 840 to 120."""
    cuts = np.append(0, np.cumsum(np.tile([2.0, 1.0, 1.5], steps)[:steps]))
    times = 840 - 720 * cuts / cuts[-1]
    alpha, sigma = solvers.levels(ALPHA_BAR, times, "log_ratio")

    def noise(x: np.ndarray, k: int) -> np.ndarray:
        return sigma[k] * (x - alpha[k] * 0.3) / (alpha[k] ** 2 / 4 + sigma[k] ** 2)

    needed = {"times": times, "alpha_bar": ALPHA_BAR} if formula is solvers.deis_t else {}
    needed |= {"orders": (1, 2, 3) * (steps // 3)} if "singlestep" in formula.__name__ else {}
    x = start().numpy()
    got = formula(noise, alpha, sigma, x, iter(()), **needed, **options)
    width = np.sqrt(alpha**2 / 4 + sigma**2)
    exact = alpha[-1] * 0.3 + width[-1] / width[0] * (x - alpha[0] * 0.3)
    return float(np.abs(got - exact).max())


@pytest.mark.parametrize(
    ("formula", "options", "order"),
    [
        (solvers.deis_rho, {"order": 2}, 2),
        (solvers.deis_rho, {"order": 3}, 3),
        (solvers.deis_t, {"order": 2}, 2),
        (dpm_solvers.dpm_multistep, {"order": 2, "ends_low": False}, 2),
        (dpm_solvers.dpm_multistep, {"order": 3, "ends_low": False}, 3),
        (dpm_solvers.dpm_multistep, {"order": 2, "ends_low": False, "form": "noise"}, 2),
        (dpm_solvers.dpm_multistep, {"order": 3, "ends_low": False, "authors_third": True}, 2),
        (dpm_solvers.dpm_singlestep, {}, 3),
        (dpm_solvers.dpm_singlestep, {"form": "noise"}, 3),
        (as_computed.dpm_singlestep_as_computed, {}, 3),
        (dpm_solvers.unipc, {"order": 2, "ends_low": False, "kind": "bh1"}, 3),
        (dpm_solvers.unipc, {"order": 3, "ends_low": False, "form": "noise"}, 4),
    ],
)
def test_the_error_of_a_formula_falls_at_its_order(
    formula: Callable[..., Any], options: dict[str, Any], order: int
) -> None:
    """Not compared with diffusers at all. Half of the series' last term costs 3M its order; UniPC corrects to p + 1."""
    slope = math.log2(error(formula, 192, options) / error(formula, 384, options))
    assert order - 0.35 < slope < order + 0.5, f"order {slope:.2f}"


def published(steps: int) -> tuple[ado.Candidate, Any]:
    """A published DPM-Solver list, and the scheduler that it is for with Stable Diffusion's betas, in float64."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, solver_order=2
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return ado.Candidate.load(CANDIDATES / f"sd15-dpmsolver-{steps}.json"), scheduler


def authors(alpha_bar: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels of the authors' code: t = (n + 1)/1000 in (0, 1], log α linear between those of the model."""
    known = (np.arange(len(alpha_bar)) + 1) / len(alpha_bar)
    log_alpha = np.interp((times + 1) / 1000, known, np.log(alpha_bar) / 2)
    return np.exp(log_alpha), np.sqrt(-np.expm1(2 * log_alpha))


def compared(steps: int, end_time: float | None, model: str) -> tuple[float, float]:
    """Greatest and rms difference from the authors' loop: DPM-Solver++(2M), of order 1 at first and at last."""
    candidate, scheduler = published(steps)
    assert candidate.end_time is not None
    alpha_bar = scheduler.alphas_cumprod.numpy()
    levels = authors(alpha_bar, np.array([*candidate.times, candidate.end_time]))
    noise = mixture(*levels) if model == "mixture" else curved
    expected = dpm_solvers.dpm_multistep(
        lambda x, k: noise(torch.from_numpy(x), k).numpy(), *levels, start().numpy(), iter(())
    )
    schedules.install_schedule(scheduler, candidate.times, end_time=end_time)
    sample = start()
    for k, time in enumerate(scheduler.timesteps):
        sample = scheduler.step(noise(sample, k), time, sample).prev_sample
    rms = np.sqrt(np.mean((sample.numpy() - expected) ** 2) / np.mean(expected**2))
    return difference(sample, expected), float(rms)


@pytest.mark.parametrize("steps", [4, 6])
@pytest.mark.parametrize("model", ["mixture", "curved"])
def test_published_dpm_solver_lists_are_sampled_as_their_authors_do(steps: int, model: str) -> None:
    assert compared(steps, published(steps)[0].end_time, model)[0] < 1e-5


@pytest.mark.parametrize(("steps", "rms"), [(4, 0.05), (6, 0.01)])
def test_published_dpm_solver_lists_without_their_end_are_off_by_percents(steps: int, rms: float) -> None:
    assert compared(steps, None, "mixture")[1] > rms


def test_published_ends_are_the_papers_last_numbers() -> None:
    for steps, last in ((4, 0.0150), (6, 0.0120)):
        candidate, _ = published(steps)
        assert candidate.end_time == pytest.approx(1000 * last - 1)
        assert f"{last:.4f}" in json.loads((CANDIDATES / f"sd15-dpmsolver-{steps}.json").read_text())["comment"]


def adm_images(scheduler: Any, pipeline: Any, count: int) -> torch.Tensor:
    """Images of ADM's DDIM by its formula, in float64 around the denoiser, with the classes of ``sampler_of``."""
    noise = torch.cat([torch.randn(1, 3, 16, 16, generator=noise_generator(SEED, index)) for index in range(count)])
    labels = torch.tensor([Labels((0, 2, 1)).label(index) for index in range(count)])
    alpha, sigma = solvers.levels(scheduler.alphas_cumprod.double().numpy(), np.array(UNEVEN.times), "log_ratio", 0.0)

    def predicted(x: np.ndarray, k: int) -> np.ndarray:
        with torch.inference_mode():
            output = pipeline.unet(torch.from_numpy(x).float(), UNEVEN.times[k], class_labels=labels).sample
        return output[:, :3].double().numpy()

    image = solvers.ddim(predicted, alpha, sigma, noise.double().numpy(), iter(()), clip=1.0)
    return to_uint8(torch.from_numpy(image / 2 + 0.5).clamp(0, 1)).int()


def test_adm_clips_and_derives_the_noise_from_the_clipped_image() -> None:
    """``[pipeline.call] use_clipped_model_output = true`` with ``clip_sample``: guided-diffusion's own DDIM."""
    pipeline = load("adm", scheduler="ddim", scheduler_settings={"clip_sample": True})
    expected = adm_images(pipeline.scheduler, pipeline, 3)

    def images(**call: Any) -> torch.Tensor:
        return torch.cat(list(sampler_of(pipeline, "adm", call=call).images(UNEVEN, range(3), SEED))).int()

    assert (images(use_clipped_model_output=True) - expected).abs().max() <= 1  # of 255
    assert (images() - expected).abs().max() > 10


@pytest.mark.parametrize(("inside", "clips", "equal"), [(True, False, True), (False, True, False)])
def test_with_a_classifier_adm_clips_before_the_guidance(inside: bool, clips: bool, equal: bool) -> None:
    """A denoiser that clips, then guides, under a scheduler that does not clip; not a scheduler that clips after it."""
    times = (926.0, 690.0, 424.0, 153.0)
    scheduler = diffusers.DDIMScheduler(clip_sample=clips)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    schedules.install_schedule(scheduler, times)
    alpha, sigma = solvers.levels(scheduler.alphas_cumprod.numpy(), np.array(times), "log_ratio", 0.0)

    def gradient(x: Any, k: int) -> Any:
        return 0.3 * x / (1 + x * x)

    def plain(x: np.ndarray, k: int) -> np.ndarray:
        return curved(torch.from_numpy(x), k).numpy()

    expected = solvers.ddim(plain, alpha, sigma, start().numpy(), iter(()), clip=1.0, gradient=gradient)
    sample = start()
    for k, time in enumerate(scheduler.timesteps):
        noise = curved(sample, k)
        if inside:
            image = ((sample - sigma[k] * noise) / alpha[k]).clamp(-1, 1)
            noise = (sample - alpha[k] * image) / sigma[k]
        guided = noise - sigma[k] * gradient(sample, k)
        sample = scheduler.step(guided, time, sample, use_clipped_model_output=clips).prev_sample
    assert (difference(sample, expected) < 1e-9) is equal
