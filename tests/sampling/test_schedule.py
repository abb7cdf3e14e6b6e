"""Every accepted scheduler: against a formula of its own, an exact solution, and diffusers itself."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peers.scheduler_cases import CASES
from peers.scheduler_runs import Stepper, called, curved, difference, formula, sample_with, set_own_times, start
from peers.schedulers import INTEGERS, Case
from peers.solvers import level

from autodiffusion_opt.sampling import schedule as schedules

# diffusers 0.42 with NumPy 2 and its own future: nothing of ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*algorithm_type.*is deprecated:FutureWarning"),
]

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def close(case: Case, got: torch.Tensor, expected: np.ndarray) -> None:
    assert difference(got, expected) <= (1e-5 if case.float32 or case.flow else 1e-9)


@pytest.mark.parametrize(
    ("case", "kind"), [(case, kind) for case in CASES for kind in case.kinds], ids=lambda value: str(value)
)
def test_uneven_steps_follow_the_formula(case: Case, kind: str) -> None:
    scheduler = case.make(kind, double=True)
    schedules.install_schedule(scheduler, case.times, **case.install)
    scheduler.set_timesteps(len(case.times), device="cpu")
    close(case, sample_with(scheduler, case, curved, start(), kind)[-1], formula(case, scheduler, start()))


def test_untouched_ddim_on_uneven_steps_does_not() -> None:
    """The test above can fail: this is the error that it is there to find."""
    case = CASES[0]
    scheduler = case.make("epsilon", double=True)
    expected = formula(dataclasses.replace(case), scheduler, start())
    scheduler.set_timesteps(len(INTEGERS))
    scheduler.timesteps = torch.tensor(INTEGERS)
    sample = start()
    for k, time in enumerate(scheduler.timesteps):
        sample = scheduler.step(curved(sample, k), time, sample).prev_sample
    with pytest.raises(AssertionError):
        close(case, sample, expected)


def gaussian(case: Case, alpha: np.ndarray, sigma: np.ndarray, mean: float, spread: float) -> Any:
    """The best possible noise prediction for data N(mean, spread²); x_t is N(α mean, α² spread² + σ²)."""

    def noise(x: Any, k: float) -> Any:
        a, b = level(alpha, sigma, k)
        return b * (x - a * mean) / (a**2 * spread**2 + b**2)

    return noise


def alternating(count: int, top: float = 840.0, bottom: float = 120.0) -> tuple[float, ...]:
    """Times whose steps are long, short, long, short: as uneven for any number of them."""
    sizes = np.where(np.arange(count) % 2, 1.0, 2.0)
    return tuple(np.round(top - (top - bottom) * np.append(0, np.cumsum(sizes)) / sizes.sum(), 4).tolist())


def exact_error(case: Case, count: int) -> float:
    """The error to the exact solution after all uneven steps but the last, which is of order 1."""
    kind = case.kinds[0]
    scheduler = case.make(kind, double=True)
    times = alternating(count)
    schedules.install_schedule(scheduler, times, **case.install)
    alpha, sigma = case.levels(scheduler, times)
    mean, spread, x = 0.3, 0.5, start()
    got = sample_with(scheduler, case, gaussian(case, alpha, sigma, mean, spread), x, kind)[-2]
    width = np.sqrt(alpha**2 * spread**2 + sigma**2)  # x keeps its place in the distribution along the ODE
    exact = alpha[-2] * mean + width[-2] / width[0] * (x - alpha[0] * mean)
    return float((got - exact).abs().max())


@pytest.mark.parametrize("case", [case for case in CASES if case.order], ids=str)
def test_error_falls_at_the_order_of_the_solver(case: Case) -> None:
    slope = math.log2(exact_error(case, 48) / exact_error(case, 96))
    assert slope > case.order - 0.35, f"order {slope:.2f}"


def test_sa_solver_without_noise_is_of_order_two() -> None:
    case = next(case for case in CASES if case.name == "SASolverScheduler")
    quiet = dataclasses.replace(case, config={"tau_func": lambda time: 0})
    slope = math.log2(exact_error(quiet, 48) / exact_error(quiet, 96))
    assert slope > 2 - 0.35, f"order {slope:.2f}"


def test_uneven_coefficients_pay_on_uneven_steps() -> None:
    published, fitted, _ = (case for case in CASES if case.name == "PNDMScheduler")
    assert exact_error(fitted, 48) < exact_error(published, 48) / 10


def nearly_to_zero(case: Case) -> Case:
    """The cosine DPM-Solver's own σ, 0.3 to 500, are too far from the spread of the images below."""
    if not case.name.startswith("Cosine"):
        return case
    least, most = 0.01, 50.0
    config = {**case.config, "sigma_min": least, "sigma_max": most}
    return dataclasses.replace(case, config=config, log_sigma=(least, most))


STOCHASTIC = [case for case in CASES if not case.order and case.name != "TCDScheduler" and case.options != {"order": 1}]


@pytest.mark.parametrize(
    "case",
    [nearly_to_zero(case) for case in STOCHASTIC],
    ids=str,
)
def test_stochastic_solvers_end_in_the_distribution(case: Case) -> None:
    """The exact noise prediction of N(0.3, 0.5²) gives back its mean and spread, up to the steps' error."""
    kind = case.kinds[0]
    scheduler = case.make(kind, double=True)
    cuts = np.cumsum(np.tile([2.0, 1.0], 40))
    times = tuple(float(round(time)) for time in 985 * (1 - cuts / cuts[-1]) ** 1.5 + 5)
    is_lcm = case.name.endswith(("LCMScheduler", "SCMScheduler"))
    if is_lcm:
        times = tuple(float(time) for time in INTEGERS)
    schedules.install_schedule(scheduler, times)
    alpha, sigma = case.levels(scheduler, times)
    best = gaussian(case, alpha, sigma, 0.3, 0.5)

    def consistent(x: torch.Tensor, k: int) -> torch.Tensor:
        """LCM's model maps to the end of the ODE, not to the mean of the images."""
        end = 0.3 + 0.5 * (x - alpha[k] * 0.3) / math.hypot(alpha[k] * 0.5, sigma[k])
        return (x - alpha[k] * end) / sigma[k]

    x = start((20_000, 1, 1, 1))
    got = sample_with(scheduler, case, consistent if is_lcm else best, x, kind)[-1]
    assert float(got.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(got.std()) == pytest.approx(0.5, rel=0.06)


def plain_run(scheduler: Any, kind: str, first: int = 0, calls: int | None = None, **step: Any) -> torch.Tensor:
    """A scheduler run on its own timesteps, in float32, by a made-up model that looks at time and sample.

    From the call ``first`` on, as image to image does, and so many calls.
    """
    if first:
        scheduler.set_begin_index(first)
    sample, make_step = start().float() * getattr(scheduler, "init_noise_sigma", 1.0), Stepper(scheduler)
    if "generator" in inspect.signature(scheduler.step).parameters:
        step["generator"] = torch.Generator().manual_seed(7)
    for call, time in enumerate(called(scheduler)[first:][:calls]):
        seen = scheduler.scale_model_input(sample, time) if hasattr(scheduler, "scale_model_input") else sample
        sample = make_step(torch.sin(1.3 * seen + 0.4 * call), time, sample, **step)
    return sample


@pytest.mark.parametrize(
    ("case", "kind"),
    [(case, kind) for case in CASES for kind in case.kinds if not case.install],
    ids=lambda value: str(value),
)
def test_default_times_give_what_diffusers_gives(case: Case, kind: str) -> None:
    config = {"use_karras_sigmas": False} if "use_karras_sigmas" in case.config and not case.log_sigma else {}
    scheduler, copied = (case.make(kind, **config) for _ in range(2))
    set_own_times(copied, 8)
    schedules.install_schedule(scheduler, schedules.default_times(scheduler, 8))
    for each in (copied, scheduler) if case.brownian else ():  # on the same noises
        draws = iter(torch.randn(16, *start().shape, generator=torch.Generator().manual_seed(3)))
        each.noise_sampler = lambda *_, draws=draws: next(draws)
    expected, got = plain_run(copied, kind, **case.step), plain_run(scheduler, kind, **case.step)
    # Rounding in float32: σ through its time and back; sums in another order.
    reordered = case.name in ("CogVideoXDPMScheduler", "KDPM2AncestralDiscreteScheduler")
    share = 4e-6 if case.log_sigma or reordered else 1e-6
    assert (expected - got).abs().max() <= share * expected.abs().max()
    if "use_flow_sigmas" not in case.config:  # those that diffusers cuts to integers, but not their sigmas
        assert torch.allclose(copied.timesteps.double(), scheduler.timesteps.double())
        assert copied.timesteps.dtype == scheduler.timesteps.dtype or case.name == "DPMSolverSDEScheduler"  # float64


@every_case
def test_a_run_remembers_nothing_of_the_run_before(case: Case) -> None:
    """Also of one that was broken off; from the first step on, and (image to image) from the third."""
    kind = case.kinds[0]

    def installed() -> Any:
        scheduler = case.make(kind)
        schedules.install_schedule(scheduler, case.times, **case.install)
        return scheduler

    used = installed()
    starts = (0, 2 * used.order) if hasattr(used, "set_begin_index") else (0,)
    for calls, first in itertools.product((None, 5, 4), starts):
        plain_run(used, kind, calls=calls, **case.step)
        used.set_timesteps(len(case.times))
        again, expected = (plain_run(scheduler, kind, first=first, **case.step) for scheduler in (used, installed()))
        assert torch.equal(again, expected)
        used.set_timesteps(len(case.times))


@pytest.mark.parametrize(
    "config",
    [
        {"clip_sample": True, "clip_sample_range": 0.7},
        {"thresholding": True, "sample_max_value": 2.0},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"steps_offset": 1, "set_alpha_to_one": False},
    ],
)
@pytest.mark.parametrize("step", [{}, {"use_clipped_model_output": True}, {"eta": 1.0}])
def test_ddim_settings_do_what_they_do_in_diffusers(config: dict[str, Any], step: dict[str, Any]) -> None:
    scheduler, copied = (diffusers.DDIMScheduler(**config) for _ in range(2))
    copied.set_timesteps(8)
    schedules.install_schedule(scheduler, schedules.default_times(scheduler, 8))
    got, expected = plain_run(scheduler, "", **step), plain_run(copied, "", **step)
    if step == {"eta": 1.0} and "rescale_betas_zero_snr" in config:  # diffusers' root of a rounded 0 is NaN
        assert torch.isfinite(got).all()
    else:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variance", ["fixed_small_log", "fixed_large", "learned_range", "learned"])
def test_ddpm_variances_are_those_of_diffusers(variance: str) -> None:
    scheduler, copied = (diffusers.DDPMScheduler(variance_type=variance) for _ in range(2))
    copied.set_timesteps(8)
    schedules.install_schedule(scheduler, schedules.default_times(scheduler, 8))
    results = []
    for run in (scheduler, copied):
        sample, generator = start().float(), torch.Generator().manual_seed(7)
        for time in run.timesteps:
            output = torch.sin(sample)
            output = torch.cat([output, output.cos().abs()], dim=1) if variance.startswith("learned") else output
            sample = run.step(output, time, sample, generator=generator).prev_sample
        results.append(sample)
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


@every_case
def test_predicted_variance_is_left_out(case: Case) -> None:
    """ADM predicts it in channels of its own; most schedulers do not know."""
    kind = case.kinds[0]
    results = []
    for extra in (0, 1):
        scheduler = case.make(kind)
        schedules.install_schedule(scheduler, case.times, **case.install)
        sample, step = start().float(), Stepper(scheduler)
        for time in called(scheduler):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(sample, time)
            generator = {"generator": torch.Generator().manual_seed(7)}
            if "generator" not in inspect.signature(scheduler.step).parameters:
                generator = {}
            output = torch.cat([torch.sin(sample)] * (1 + extra), dim=1)
            sample = step(output, time, sample, **generator)
        results.append(sample)
    assert torch.equal(*results)


@every_case
def test_noise_added_at_a_time_is_that_of_the_time(case: Case) -> None:
    kind = case.kinds[0]
    scheduler = case.make(kind, double=True)
    times = case.times
    schedules.install_schedule(scheduler, times, **case.install)
    image, noise = start(), torch.ones(2, 3, 4, 4, dtype=torch.float64)
    first = scheduler.timesteps[:1].repeat(2)
    if not hasattr(scheduler, "add_noise") and not hasattr(scheduler, "scale_noise"):
        pytest.skip(f"{case.name} adds no noise to an image")
    if hasattr(scheduler, "add_noise"):
        got = scheduler.add_noise(image, noise, first)
    else:
        got = scheduler.scale_noise(image, first[0] if "Heun" in case.name else first, noise)
    alpha, sigma = case.levels(scheduler, times)
    unit = 1 / alpha[0] if case.linear else 1.0
    torch.testing.assert_close(got, unit * (alpha[0] * image + sigma[0] * noise), rtol=1e-4, atol=1e-4)
