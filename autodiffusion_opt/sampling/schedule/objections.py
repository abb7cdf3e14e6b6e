"""Why a scheduler of an accepted class, as it is configured, cannot be accepted: a sentence's end, None if it can."""

from __future__ import annotations

from typing import Any

from autodiffusion_opt.sampling.schedule.noise import is_log_linear


def cosine_dpm_objection(scheduler: Any) -> str | None:
    if scheduler.config.solver_order > 2:
        return f"has no solver_order={scheduler.config.solver_order}: use 1 or 2"
    return prediction_objection(scheduler)


def pndm_objection(scheduler: Any) -> str | None:
    if scheduler.config.skip_prk_steps:
        return None
    return "needs skip_prk_steps=True: its Runge-Kutta start has times of its own, between those given"


def continuous_v_objection(scheduler: Any) -> str | None:
    if not is_log_linear(scheduler) or scheduler.config.final_sigmas_type == "zero":
        return None
    return "with timestep_type='continuous' needs final_sigmas_type='zero': it would end at the least σ of its betas"


def prediction_objection(scheduler: Any) -> str | None:
    kind = scheduler.config.prediction_type
    return None if kind in ("epsilon", "v_prediction") else f"has no prediction_type={kind!r}"


def deis_objection(scheduler: Any) -> str | None:
    if not scheduler.config.use_flow_sigmas:
        return None
    return "with use_flow_sigmas=True leaves noise in the image: use UniPCMultistepScheduler"


def dpm_objection(scheduler: Any) -> str | None:
    config = scheduler.config
    if not config.use_flow_sigmas or config.final_sigmas_type == "zero":
        return None
    return "with use_flow_sigmas=True needs final_sigmas_type='zero': it leaves noise in the image otherwise"


def unipc_objection(scheduler: Any) -> str | None:
    config = scheduler.config
    to_zero = config.final_sigmas_type == "zero" or config.use_flow_sigmas
    if scheduler.solver_p is not None:
        return "with solver_p is two schedulers: leave solver_p out"
    if to_zero and not (scheduler.predict_x0 and config.lower_order_final):
        setting = "predict_x0=False" if not scheduler.predict_x0 else "lower_order_final=False"
        return f"with {setting} divides by zero at σ = 0: set final_sigmas_type='sigma_min'"
    if to_zero and scheduler.config.solver_type == "bh1":  # B(h) = h, and h is infinite
        return "with solver_type='bh1' gives NaN where it ends at σ = 0: use solver_type='bh2'"
    return None


def scale_wise_objection(scheduler: Any) -> str | None:
    if scheduler.config.invert_sigmas:
        return "with invert_sigmas=True runs time the other way round"
    return "with scale_factors changes the size of its sample between steps" if scheduler.config.scale_factors else None
