"""Steps of our own, where diffusers' own looks up the wrong previous time or stops in the noise.

DDIM and PNDM: diffusers takes ``t - T // N`` for the previous time, which is right on even steps only.
DDPM: diffusers adds noise while ``t > 0``, so a last time above 0 leaves it in the image.
Everything else about the three (predictions, clipping, thresholding, results) is as diffusers documents it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.schedule.noise import Floats, alpha_bars_at
from autodiffusion_opt.sampling.schedule.state import ScheduleState

# Adams-Bashforth for even steps, newest slope first: PNDM, https://arxiv.org/abs/2202.09778, section 3.
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
LEARNED = ("learned", "learned_range")


def denoised(scheduler: Any, output: torch.Tensor, sample: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """The predicted image x̂_0, neither clipped nor thresholded; for any of the three prediction types."""
    kind, alpha, noise = scheduler.config.prediction_type, alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    if kind == "epsilon":
        return (sample - noise * output) / alpha
    if kind == "sample":
        return output
    if kind == "v_prediction":  # https://arxiv.org/abs/2202.00512, section 4: v = α ε - σ x
        return alpha * sample - noise * output
    raise UserError(f"prediction_type must be epsilon, sample or v_prediction; got {kind!r}")


def predicted_noise(
    scheduler: Any, output: torch.Tensor, sample: torch.Tensor, alpha_bar: torch.Tensor
) -> torch.Tensor:
    """The predicted noise ε̂, from the output as it came (not from a clipped image)."""
    kind, alpha, noise = scheduler.config.prediction_type, alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    if kind == "epsilon":
        return output
    if kind == "v_prediction":
        return alpha * output + noise * sample
    return (sample - alpha * denoised(scheduler, output, sample, alpha_bar)) / noise


def bounded(scheduler: Any, image: torch.Tensor) -> torch.Tensor:
    """x̂_0 thresholded or clipped, as the scheduler's config says."""
    if scheduler.config.thresholding:
        return scheduler._threshold_sample(image)  # type: ignore[no-any-return]
    if scheduler.config.clip_sample:
        reach = scheduler.config.clip_sample_range
        return image.clamp(-reach, reach)
    return image


def without_variance(output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """The first half of the channels where a model (ADM) predicts its variance in the second half."""
    if output.ndim > 1 and output.shape[1] == 2 * sample.shape[1]:
        return output[:, : sample.shape[1]]
    return output


def random_like(output: torch.Tensor, generator: Any) -> torch.Tensor:
    """Standard normal noise; a list of generators, one an image, keeps images apart from the batch size."""
    noise: torch.Tensor = randn_tensor(output.shape, generator=generator, device=output.device, dtype=output.dtype)
    return noise


def ddim_step(
    scheduler: Any,
    schedule: ScheduleState,
    model_output: torch.Tensor,
    timestep: Any,
    sample: torch.Tensor,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
    generator: Any = None,
    variance_noise: torch.Tensor | None = None,
    return_dict: bool = True,
) -> Any:
    """One DDIM step, https://arxiv.org/abs/2010.02502, equations (12) and (16), to the next time given."""
    now, then = schedule.alpha_bars_from(timestep)
    output = without_variance(model_output, sample)
    image = bounded(scheduler, denoised(scheduler, output, sample, now))
    noise = predicted_noise(scheduler, output, sample, now)
    if use_clipped_model_output:
        noise = (sample - now**0.5 * image) / (1 - now) ** 0.5
    spread = eta * ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5  # σ_t, equation (16)
    left = (1 - then - spread**2).clamp(min=0) ** 0.5  # rounding may take it below 0 where η = 1
    result = then**0.5 * image + left * noise
    if eta > 0:
        if variance_noise is not None and generator is not None:
            raise UserError("give a generator or the variance_noise, not both")
        result = result + spread * (random_like(output, generator) if variance_noise is None else variance_noise)
    return DDIMSchedulerOutput(prev_sample=result, pred_original_sample=image) if return_dict else (result, image)


def cogvideox_ddim_step(
    scheduler: Any,
    schedule: ScheduleState,
    model_output: torch.Tensor,
    timestep: Any,
    sample: torch.Tensor,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
    generator: Any = None,
    variance_noise: torch.Tensor | None = None,
    return_dict: bool = True,
) -> Any:
    """DDIM without clipping and without noise (η = 0), as CogVideoX samples, whatever its configuration says.

    Equation (12) of https://arxiv.org/abs/2010.02502; with the noise eliminated, so that it holds at ᾱ = 0 as well,
    where betas rescaled to zero terminal SNR begin.
    """
    now, then = schedule.alpha_bars_from(timestep)
    image = denoised(scheduler, without_variance(model_output, sample), sample, now)
    left = ((1 - then) / (1 - now)) ** 0.5
    result = left * sample + (then**0.5 - now**0.5 * left) * image
    return DDIMSchedulerOutput(prev_sample=result, pred_original_sample=image) if return_dict else (result, image)


def cogvideox_dpm_step(
    scheduler: Any,
    schedule: ScheduleState,
    model_output: torch.Tensor,
    old_pred_original_sample: torch.Tensor | None,
    timestep: Any,
    timestep_back: Any,
    sample: torch.Tensor,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
    generator: Any = None,
    variance_noise: torch.Tensor | None = None,
    return_dict: bool = False,
) -> Any:
    """SDE-DPM-Solver++(2M), https://arxiv.org/abs/2211.01095, section 5, on CogVideoX's noise levels.

    Without clipping, whatever the configuration says. Of order 1 where no image was predicted before, and in the last
    step. The image before is that of the time before in the schedule, not of ``timestep_back``, which is the same.
    diffusers draws a noise that it does not use before each step of order 2; so it is drawn here, for the same videos.
    """
    now, then = schedule.alpha_bars_from(timestep)
    image = denoised(scheduler, without_variance(model_output, sample), sample, now)
    step = _half_log_snr(then) - _half_log_snr(now)  # h
    noise, toward = random_like(sample, generator), image
    if old_pred_original_sample is not None and not schedule.at_last:
        noise = random_like(sample, generator)
        before = _half_log_snr(now) - _half_log_snr(schedule.alpha_bars[schedule.position - 1])
        toward = image + step / (2 * before) * (image - old_pred_original_sample)
    kept = ((1 - then) / (1 - now)) ** 0.5 * torch.exp(-step)
    reach = -torch.expm1(-2 * step)
    result = kept * sample + then**0.5 * reach * toward + ((1 - then) * reach) ** 0.5 * noise
    return DDIMSchedulerOutput(prev_sample=result, pred_original_sample=image) if return_dict else (result, image)


def _half_log_snr(alpha_bar: torch.Tensor) -> torch.Tensor:
    """λ = log(α/σ): infinite at the image, and at ᾱ = 0."""
    return (alpha_bar / (1 - alpha_bar)).log() / 2


def ddpm_step(
    scheduler: Any,
    schedule: ScheduleState,
    model_output: torch.Tensor,
    timestep: Any,
    sample: torch.Tensor,
    generator: Any = None,
    return_dict: bool = True,
) -> Any:
    """One step of the DDPM chain, thinned; https://arxiv.org/abs/2006.11239, equation (7)."""
    now, then = schedule.alpha_bars_from(timestep)
    output = without_variance(model_output, sample)
    learned = model_output[:, output.shape[1] :] if scheduler.variance_type in LEARNED else None
    image = bounded(scheduler, denoised(scheduler, output, sample, now))
    alpha = now / then  # what is left of the signal from the next time to this one; β = 1 - α
    result = (then**0.5 * (1 - alpha) / (1 - now)) * image + (alpha**0.5 * (1 - then) / (1 - now)) * sample
    if not schedule.at_last:
        result = result + ddpm_spread(scheduler, now, then, learned) * random_like(output, generator)
    return DDPMSchedulerOutput(prev_sample=result, pred_original_sample=image) if return_dict else (result, image)


def ddpm_spread(scheduler: Any, now: torch.Tensor, then: torch.Tensor, learned: torch.Tensor | None) -> torch.Tensor:
    """The standard deviation of the noise that a DDPM step adds, for each of diffusers' variance types."""
    upper = 1 - now / then  # β
    lower = ((1 - then) / (1 - now) * upper).clamp(min=1e-20)  # β̃, equation (7); its logarithm is taken
    kind = scheduler.variance_type
    if kind in LEARNED and (learned is None or not learned.shape[1]):
        raise UserError(f"variance_type {kind!r} needs a model that predicts its variance: twice the channels")
    if kind == "learned_range":  # https://arxiv.org/abs/2102.09672, equation (15), with v in [-1, 1]
        share = (learned + 1) / 2  # type: ignore[operator]
        return torch.exp(0.5 * (share * upper.log() + (1 - share) * lower.log()))
    if kind == "learned":
        return learned**0.5  # type: ignore[operator]
    if kind.startswith("fixed_large"):
        return upper**0.5
    return lower**0.5


def pndm_step(
    scheduler: Any,
    schedule: ScheduleState,
    model_output: torch.Tensor,
    timestep: Any,
    sample: torch.Tensor,
    return_dict: bool = True,
) -> Any:
    """One PLMS step; https://arxiv.org/abs/2202.09778, section 3.

    The first step is made twice, the second time with the mean of the slopes at its two ends (so N times are
    N + 1 calls); the further ones with up to four slopes.
    """
    call = scheduler.counter
    _check_order(scheduler, timestep, call)
    output = without_variance(model_output, sample)
    index = schedule.first + max(call - 1, 0)  # the candidate's step that this call belongs to
    now, then = schedule.alpha_bars[index], schedule.alpha_bars[index + 1]
    if call == 1:
        slope, sample = _first_again(scheduler, schedule, output, sample, now)
    else:
        scheduler.ets = [*scheduler.ets[-3:], _slope(scheduler, schedule, output, sample, now)]
        weights = _weights(schedule, index, len(scheduler.ets))
        slope = sum(weight * past for weight, past in zip(weights, reversed(scheduler.ets), strict=True))
        scheduler.cur_sample = sample if call == 0 else None
    if not schedule.uneven_coefficients:
        slope = predicted_noise(scheduler, slope, sample, now)
    scheduler.counter = call + 1
    shrink = (then / now) ** 0.5
    result = shrink * sample + ((1 - then) ** 0.5 - shrink * (1 - now) ** 0.5) * slope  # PNDM's transfer part
    return SchedulerOutput(prev_sample=result) if return_dict else (result,)


def _first_again(
    scheduler: Any, schedule: ScheduleState, output: torch.Tensor, sample: torch.Tensor, now: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of the slopes at both ends of the first step, and the sample it started from."""
    end = schedule.alpha_bars[schedule.first + 1]
    slope = (_slope(scheduler, schedule, output, sample, end) + scheduler.ets[-1]) / 2
    return slope, scheduler.cur_sample


def _slope(
    scheduler: Any, schedule: ScheduleState, output: torch.Tensor, sample: torch.Tensor, alpha_bar: torch.Tensor
) -> torch.Tensor:
    """What is combined over steps: the outputs as they are, as diffusers does (also v), or the noise."""
    return predicted_noise(scheduler, output, sample, alpha_bar) if schedule.uneven_coefficients else output


def _weights(schedule: ScheduleState, index: int, count: int) -> tuple[float, ...]:
    if not schedule.uneven_coefficients:
        return ADAMS_BASHFORTH[count - 1]
    times = (*schedule.times, schedule.end_time)
    nodes = np.array(times[index::-1][:count])
    return tuple(uneven_adams_bashforth(nodes, times[index + 1]).tolist())


def uneven_adams_bashforth(nodes: Floats, target: float) -> Floats:
    """Weights of slopes at ``nodes`` (newest first) that give their mean from ``nodes[0]`` to ``target``.

    The polynomial through the slopes is integrated: the weights are right for every power of time below
    ``len(nodes)``. On even times they are :data:`ADAMS_BASHFORTH` (Hairer, Nørsett, Wanner, section III.5).
    """
    unit = max(abs(nodes[0] - nodes[-1]), abs(target - nodes[0]), 1e-12)
    powers = np.arange(len(nodes))
    moments = ((target - nodes[0]) / unit) ** powers / (powers + 1)
    return np.linalg.solve(((nodes - nodes[0]) / unit) ** powers[:, None], moments)


def _check_order(scheduler: Any, timestep: Any, call: int) -> None:
    """PLMS builds on its earlier slopes, so it cannot start in the middle."""
    expected = float(scheduler.timesteps[call]) if call < len(scheduler.timesteps) else None
    if expected is None or abs(float(timestep) - expected) > 1e-3:
        raise UserError(
            f"PNDM runs its times from the first to the last; call {call} came at time {float(timestep):g}, "
            f"expected {expected}: for image to image use DDIM or DPMSolverMultistep"
        )


def add_noise(
    scheduler: Any, _: ScheduleState, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε for a batch; timesteps (N,), which may lie between integers."""
    listed = timesteps.detach().cpu().reshape(-1).tolist()
    alpha_bar = alpha_bars_at(scheduler, listed).to(original_samples.device, original_samples.dtype)
    alpha_bar = alpha_bar.reshape(-1, *[1] * (original_samples.ndim - 1))
    return alpha_bar**0.5 * original_samples + (1 - alpha_bar) ** 0.5 * noise


def scale_model_input(
    scheduler: Any, schedule: ScheduleState, sample: torch.Tensor, timestep: Any = None, **_: Any
) -> torch.Tensor:
    """The sample as it is; tells the schedule which time comes (image to image starts later)."""
    if timestep is not None:
        schedule.find(timestep)
    return sample


def scale_noise(
    scheduler: Any,
    _: ScheduleState,
    sample: torch.Tensor,
    timestep: Any,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """x = (1-σ) x_0 + σ ε; with ``invert_sigmas`` the scheduler's σ is the share of the image, not of the noise."""
    pair = (noise, sample) if scheduler.config.invert_sigmas else (sample, noise)
    noisy: torch.Tensor = type(scheduler).scale_noise(scheduler, pair[0], timestep, pair[1])
    return noisy
