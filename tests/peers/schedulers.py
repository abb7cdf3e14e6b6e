"""Every accepted scheduler in the settings that are proved, and the formula that each must equal."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from peers import as_computed, dpm_solvers, solvers

INTEGERS = (961, 900, 551, 540, 260, 30, 7)
# Two calls in each step but the last, the second at its end or in its middle.
MIDDLE = ("KDPM2DiscreteScheduler",)
TWO_CALLS = (
    *MIDDLE,
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)
AT_INTEGERS = ("LCMScheduler", "TCDScheduler")
DISTILLED = (*AT_INTEGERS, "FlowMatchLCMScheduler", "SCMScheduler")
# Kinds of prediction that are no setting of prediction_type.
WITHOUT_SETTING = (None, "flow", "inverted", "cosine")
BETWEEN = (961.0, 900.25, 551.5, 540.0, 260.75, 30.5, 7.0)


@dataclasses.dataclass(frozen=True)
class Paper:
    """A formula that a case does not equal, and why not: the paper's, where the scheduler computes something else."""

    formula: Callable[..., Any]
    why: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    between: str | None = None  # how levels between integer times are read


@dataclasses.dataclass(frozen=True)
class Case:
    """A scheduler, the formula that it must equal, and the order at which its error falls (0: stochastic)."""

    name: str
    formula: Callable[..., Any]
    order: float = 0
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the formula
    step: dict[str, Any] = dataclasses.field(default_factory=dict)  # of scheduler.step
    install: dict[str, Any] = dataclasses.field(default_factory=dict)
    linear: bool = False  # σ linear in time, and samples are x/α
    float32: bool = False  # diffusers computes in float32 whatever it is given
    last: str = "zero"  # or "least": ends at σ of time 0
    kinds: tuple[str, ...] = ("epsilon", "v_prediction", "sample")
    flow: bool = False
    log_sigma: tuple[float, float] | None = None  # log σ is linear in time, from and to these
    data: float | None = None  # EDM's σ_data
    papers: tuple[Paper, ...] = ()

    def __str__(self) -> str:
        detail = "-".join(str(value) for value in (*self.config.values(), *self.step.values(), *self.install))
        return f"{self.name.removesuffix('Scheduler')}{'-' + detail if detail else ''}"

    @property
    def settings(self) -> str:
        """What is set, as one writes it."""
        return ", ".join(f"{key}={value}" for key, value in {**self.config, **self.step, **self.install}.items())

    @property
    def continuous(self) -> bool:
        """Takes times between integers."""
        return self.name not in AT_INTEGERS

    @property
    def stops(self) -> bool:
        """Takes an end time."""
        return self.name not in DISTILLED

    @property
    def times(self) -> tuple[float, ...]:
        return BETWEEN if self.continuous else INTEGERS

    def make(self, kind: str | None = None, double: bool = False, **config: Any) -> Any:
        """The scheduler; ``kind``: of prediction; ``double``: with ᾱ (or what it is of), or EDM's σ, in float64."""
        chosen = {**self.config, **config} | ({"prediction_type": kind} if kind not in WITHOUT_SETTING else {})
        made = getattr(diffusers, self.name)(**chosen)
        if double and hasattr(made, "alphas_cumprod"):
            made.alphas_cumprod = made.alphas_cumprod.double()
            if hasattr(made, "final_alpha_cumprod") and made.final_alpha_cumprod < 1:
                made.final_alpha_cumprod = made.alphas_cumprod[0]
        if double and self.data:
            made.sigmas = made.sigmas.double()
        if double and self.name == "DDPMWuerstchenScheduler":
            made.s = torch.tensor([made.config.s], dtype=torch.float64)
            made._init_alpha_cumprod = torch.cos(made.s / (1 + made.s) * torch.pi / 2) ** 2
        return made

    def levels(
        self, scheduler: Any, times: tuple[float, ...], end_time: float | None = None, between: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """α and σ at the times, then at the end. A last step of no length is given the 10⁻⁹th part of σ."""
        if self.log_sigma:
            return self._log_levels(times, end_time)
        if self.name == "SCMScheduler":  # its angle a: tan(a) = σ/(1 - σ)
            flow = np.append(times, 0.0) / 1000
            return (1 - flow) / np.hypot(flow, 1 - flow), scheduler.config.sigma_data * flow / np.hypot(flow, 1 - flow)
        if self.name == "DDPMWuerstchenScheduler":
            return self._cosine_levels(np.append(times, end_time or 0.0) / 999, scheduler.config)
        if self.flow:
            sigma = np.append(times, end_time or 0.0) / 1000
            return 1 - sigma, sigma
        alpha_bar = scheduler.alphas_cumprod.double().numpy()
        between = between or ("ratio" if self.linear else "log_ratio")
        if end_time is not None:
            return solvers.levels(alpha_bar, np.append(times, end_time), between)
        least = 0.0 if self.last == "zero" else math.sqrt(1 / alpha_bar[0] - 1)
        alpha, sigma = solvers.levels(alpha_bar, np.array(times), between)
        return solvers.levels(alpha_bar, np.array(times), between, min(least, sigma[-1] / alpha[-1] * (1 - 1e-9)))

    def _log_levels(self, times: tuple[float, ...], end_time: float | None) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.log(self.log_sigma or ())
        ratios = np.exp(low + (high - low) * np.array(times) / 999)
        if end_time is None:
            last = 0.0 if self.last == "zero" else min(math.exp(low), ratios[-1] * (1 - 1e-9))
        else:
            last = math.exp(low + (high - low) * end_time / 999)
        ratios = np.append(ratios, last)
        alpha = 1 / np.hypot(1, ratios)
        return alpha, ratios * alpha

    def _cosine_levels(self, shares: np.ndarray, config: Any) -> tuple[np.ndarray, np.ndarray]:
        """ᾱ = cos²((t + s)/(1 + s) π/2), 1 at t = 0 but for the bounds (arXiv 2102.09672, equation 17)."""
        shares = 1 - (1 - shares) ** config.scaler if config.scaler > 1 else shares**config.scaler
        cosine = np.cos((shares + config.s) / (1 + config.s) * math.pi / 2) / math.cos(
            config.s / (1 + config.s) * math.pi / 2
        )
        alpha_bar = (cosine**2).clip(1e-4, 0.9999)
        return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)

    def arguments(
        self, formula: Callable[..., Any], scheduler: Any, times: tuple[float, ...], end_time: float | None
    ) -> dict[str, Any]:
        """What a formula takes beyond the levels: the times, ᾱ, the orders of calls."""
        to_zero = self.last == "zero" and (end_time is None or (self.flow and end_time == 0))
        end = {"zero": -1.0, "least": 0.0}[self.last] if end_time is None else end_time
        known = {
            "times": np.append(times, end),
            "alpha_bar": scheduler.alphas_cumprod.double().numpy() if hasattr(scheduler, "alphas_cumprod") else None,
            "orders": as_computed.block_orders(
                scheduler.config.get("solver_order", 1),
                len(times),
                to_zero,
                scheduler.config.get("lower_order_final", False),
            ),
        }
        return {name: known[name] for name in inspect.signature(formula).parameters if name in known}


def dpm(**config: Any) -> dict[str, Any]:
    return {"solver_order": 2, **config}


def noise_dpm(**config: Any) -> dict[str, Any]:
    return dpm(algorithm_type="dpmsolver", final_sigmas_type="sigma_min", **config)


def deis_papers(order: int) -> tuple[Paper, ...]:
    why = "polynomials in log ρ, order lowered at the end"
    return tuple(Paper(formula, why, {"order": order}) for formula in (solvers.deis_rho, solvers.deis_t))


BH1 = {"final_sigmas_type": "sigma_min", "solver_type": "bh1"}
UNCLIPPED = {"clip_sample": False}
EPSILON = ("epsilon",)
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
EDM: dict[str, Any] = {
    "kinds": ("epsilon", "v_prediction"),
    "log_sigma": (0.002, 80.0),
    "data": 0.5,
    "linear": True,
    "float32": True,
}
SVD = {"timestep_type": "continuous", "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0}
CASES = [
    Case("DDIMScheduler", solvers.ddim, 1, UNCLIPPED),
    Case("DDIMScheduler", solvers.ddim, 0, UNCLIPPED, {"eta": 0.7}, {"eta": 0.7}),
    Case("DDIMScheduler", solvers.ddim, 1, {**UNCLIPPED, "set_alpha_to_one": False}, last="least"),
    Case("DDPMScheduler", solvers.ddpm, 0, UNCLIPPED),
    Case("DDPMScheduler", solvers.ddpm, 0, {**UNCLIPPED, "variance_type": "fixed_large"}, {"large": True}),
    Case("PNDMScheduler", solvers.plms, 1, {"skip_prk_steps": True}, last="least", kinds=EPSILON),
    Case(
        "PNDMScheduler",
        solvers.plms_uneven,
        2,
        {"skip_prk_steps": True},
        install={"uneven_coefficients": True},
        last="least",
        kinds=("epsilon", "v_prediction"),
    ),
    Case(  # the last step goes to ᾱ = 1, one time below 0
        "PNDMScheduler",
        solvers.plms_uneven,
        2,
        {"skip_prk_steps": True, "set_alpha_to_one": True},
        install={"uneven_coefficients": True},
        kinds=EPSILON,
    ),
    Case(
        "DEISMultistepScheduler", as_computed.deis_log_rho, 2, dpm(), last="least", float32=True, papers=deis_papers(2)
    ),
    Case(
        "DEISMultistepScheduler",
        as_computed.deis_log_rho,
        3,
        {"solver_order": 3},
        {"order": 3},
        last="least",
        float32=True,
        papers=deis_papers(3),
    ),
    Case(
        "DPMSolverMultistepScheduler",
        dpm_solvers.dpm_multistep,
        1,
        {"solver_order": 1},
        {"order": 1},
        float32=True,
    ),
    Case(
        "DPMSolverMultistepScheduler",
        dpm_solvers.dpm_multistep,
        2,
        dpm(),
        float32=True,
        papers=(Paper(dpm_solvers.dpm_multistep, "the authors' log α is linear between integers", {}, "log_alpha"),),
    ),
    Case(
        "DPMSolverMultistepScheduler",
        dpm_solvers.dpm_multistep_authors_third,
        2,
        {"solver_order": 3},
        float32=True,
        papers=(Paper(dpm_solvers.dpm_multistep, "its last term is halved", {"order": 3}),),
    ),
    Case("DPMSolverMultistepScheduler", dpm_solvers.dpm_multistep, 2, dpm(use_karras_sigmas=True), float32=True),
    Case(
        "DPMSolverMultistepScheduler",
        dpm_solvers.dpm_multistep,
        2,
        noise_dpm(),
        {"form": "noise"},
        float32=True,
        last="least",
    ),
    Case(
        "DPMSolverMultistepScheduler",
        dpm_solvers.sde_dpm_multistep,
        0,
        dpm(algorithm_type="sde-dpmsolver++"),
        float32=True,
    ),
    Case(
        "DPMSolverMultistepScheduler",
        dpm_solvers.dpm_multistep,
        2,
        FLOW,
        float32=True,
        flow=True,
        kinds=("flow_prediction",),
    ),
    Case("DPMSolverSinglestepScheduler", dpm_solvers.dpm_singlestep, 2, dpm()),
    Case("DPMSolverSinglestepScheduler", dpm_solvers.dpm_singlestep, 2, noise_dpm(), {"form": "noise"}, last="least"),
    Case(
        "DPMSolverSinglestepScheduler",
        as_computed.dpm_singlestep_as_computed,
        3,
        {"solver_order": 3},
        papers=(Paper(dpm_solvers.dpm_singlestep, "h/2 in its second call, not φ₂"),),
    ),
    Case(
        "DPMSolverSinglestepScheduler",
        as_computed.dpm_singlestep_as_computed,
        3,
        {"solver_order": 3, "final_sigmas_type": "sigma_min", "lower_order_final": True},
        last="least",
        papers=(Paper(dpm_solvers.dpm_singlestep, "h/2 in its second call, not φ₂"),),
    ),
    Case("DPMSolverSinglestepScheduler", dpm_solvers.dpm_singlestep, 2, FLOW, flow=True, kinds=("flow_prediction",)),
    Case(
        "EulerAncestralDiscreteScheduler",
        solvers.ancestral,
        linear=True,
        kinds=("epsilon", "v_prediction"),
        float32=True,
    ),
    Case(
        "EulerDiscreteScheduler",
        solvers.euler,
        1,
        linear=True,
        float32=True,
        papers=(Paper(solvers.euler, "k-diffusion's log σ is linear between integers", {}, "log_ratio"),),
    ),
    Case("EulerDiscreteScheduler", solvers.euler, 1, {"use_karras_sigmas": True}, linear=True, float32=True),
    Case("FlowMatchEulerDiscreteScheduler", solvers.flow_euler, 1, {"shift": 3.0}, flow=True, kinds=("flow",)),
    Case(
        "FlowMatchEulerDiscreteScheduler",
        solvers.flow_euler,
        1,
        {"use_dynamic_shifting": True},
        flow=True,
        kinds=("flow",),
    ),
    Case("FlowMatchHeunDiscreteScheduler", solvers.flow_heun, 2, {"shift": 3.0}, flow=True, kinds=("flow",)),
    Case("HeunDiscreteScheduler", solvers.heun, 2, linear=True),
    Case("LCMScheduler", solvers.lcm, 0, UNCLIPPED, float32=True),
    Case("LMSDiscreteScheduler", solvers.lms, 4, linear=True),
    Case("TCDScheduler", solvers.tcd, 0, UNCLIPPED),
    Case("UniPCMultistepScheduler", dpm_solvers.unipc, 1, {"solver_order": 1}, {"order": 1}),
    Case("UniPCMultistepScheduler", dpm_solvers.unipc, 2, dpm()),
    Case("UniPCMultistepScheduler", dpm_solvers.unipc, 3, {"solver_order": 3}, {"order": 3}),
    Case("UniPCMultistepScheduler", dpm_solvers.unipc, 2, dpm(**BH1), {"kind": "bh1"}, last="least"),
    Case(
        "UniPCMultistepScheduler",
        dpm_solvers.unipc,
        3,
        {"solver_order": 3, **BH1, "predict_x0": False},
        {"order": 3, "kind": "bh1", "form": "noise"},
        last="least",
    ),
    Case(
        "UniPCMultistepScheduler",
        dpm_solvers.unipc,
        2,
        dpm(final_sigmas_type="sigma_min", predict_x0=False),
        {"form": "noise"},
        last="least",
    ),
    Case("UniPCMultistepScheduler", dpm_solvers.unipc, 2, FLOW, flow=True, kinds=("flow_prediction",)),
    Case("CogVideoXDDIMScheduler", solvers.ddim, 1),
    Case(
        "CogVideoXDDIMScheduler",
        solvers.ddim,
        1,
        {"snr_shift_scale": 1.0},
        kinds=("v_prediction",),
    ),
    Case("FlowMatchLCMScheduler", solvers.flow_lcm, 0, {"shift": 3.0}, flow=True, kinds=("flow",), float32=True),
    Case(
        "FlowMatchEulerDiscreteScheduler",
        solvers.flow_euler,
        1,
        {"invert_sigmas": True},
        flow=True,
        kinds=("inverted",),
    ),
    Case(
        "EulerDiscreteScheduler",
        solvers.euler,
        1,
        SVD,
        linear=True,
        float32=True,
        kinds=("v_prediction",),
        log_sigma=(0.002, 700.0),
    ),
    Case("EDMEulerScheduler", solvers.euler, 1, **EDM),
    Case("EDMEulerScheduler", solvers.euler, 1, {"final_sigmas_type": "sigma_min"}, last="least", **EDM),
    Case(
        "EDMEulerScheduler",
        solvers.euler,
        1,
        {"sigma_max": 120.0, "sigma_data": 1.0, "sigma_schedule": "exponential"},
        **{**EDM, "log_sigma": (0.002, 120.0), "data": 1.0},
    ),
    Case("EDMDPMSolverMultistepScheduler", dpm_solvers.dpm_multistep, 1, {"solver_order": 1}, {"order": 1}, **EDM),
    Case("EDMDPMSolverMultistepScheduler", dpm_solvers.dpm_multistep, 2, dpm(), **EDM),
    Case("EDMDPMSolverMultistepScheduler", dpm_solvers.dpm_multistep_authors_third, 2, {"solver_order": 3}, **EDM),
    Case(
        "EDMDPMSolverMultistepScheduler",
        dpm_solvers.dpm_multistep,
        2,
        dpm(final_sigmas_type="sigma_min"),
        last="least",
        **EDM,
    ),
    Case(
        "EDMDPMSolverMultistepScheduler",
        dpm_solvers.sde_dpm_multistep,
        0,
        dpm(algorithm_type="sde-dpmsolver++"),
        **EDM,
    ),
    Case("KDPM2DiscreteScheduler", solvers.kdpm2, 2, linear=True, kinds=("epsilon", "v_prediction")),
    Case("KDPM2AncestralDiscreteScheduler", solvers.kdpm2_ancestral, linear=True, kinds=("epsilon", "v_prediction")),
    Case("CogVideoXDPMScheduler", dpm_solvers.sde_dpm_multistep, options={"idle_draws": True}),
    Case(
        "CogVideoXDPMScheduler",
        dpm_solvers.sde_dpm_multistep,
        0,
        {"set_alpha_to_one": False, "snr_shift_scale": 1.0},
        {"idle_draws": True},
        last="least",
        kinds=("v_prediction",),
    ),
    Case("SCMScheduler", solvers.consistency, flow=True, kinds=("trigflow",), float32=True),
    Case("DDPMWuerstchenScheduler", solvers.ddpm_to_end, kinds=("cosine",), float32=True),
    Case("DDPMWuerstchenScheduler", solvers.ddpm_to_end, 0, {"scaler": 2.0}, kinds=("cosine",), float32=True),
    Case("DDPMWuerstchenScheduler", solvers.ddpm_to_end, 0, {"scaler": 0.8}, kinds=("cosine",), float32=True),
    Case("SASolverScheduler", dpm_solvers.sa_solver, last="least"),
    Case(
        "SASolverScheduler",
        dpm_solvers.sa_solver,
        0,
        {"predictor_order": 3, "corrector_order": 4},
        {"predictor": 3, "corrector": 4},
        last="least",
    ),
    Case(
        "SASolverScheduler",
        dpm_solvers.sa_solver,
        0,
        {"algorithm_type": "noise_prediction"},
        {"form": "noise"},
        last="least",
    ),
]
