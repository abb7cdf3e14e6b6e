"""Every accepted scheduler in the settings that are proved, and the formula that each must equal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
from peers import solvers

from autodiffusion_opt.sampling import schedule as schedules

INTEGERS = (961, 900, 551, 540, 260, 30, 7)
BETWEEN = (961.0, 900.25, 551.5, 540.0, 260.75, 30.5, 7.0)


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

    def __str__(self) -> str:
        detail = "-".join(str(value) for value in (*self.config.values(), *self.step.values(), *self.install))
        return f"{self.name.removesuffix('Scheduler')}{'-' + detail if detail else ''}"

    @property
    def times(self) -> tuple[float, ...]:
        return BETWEEN if schedules.takes_continuous(self.make()) else INTEGERS

    def make(self, kind: str | None = None, double: bool = False, **config: Any) -> Any:
        chosen = {**self.config, **config} | ({"prediction_type": kind} if kind else {})
        made = getattr(diffusers, self.name)(**chosen)
        if double and hasattr(made, "alphas_cumprod"):
            made.alphas_cumprod = made.alphas_cumprod.double()
            if hasattr(made, "final_alpha_cumprod") and made.final_alpha_cumprod < 1:
                made.final_alpha_cumprod = made.alphas_cumprod[0]
        return made

    def levels(self, scheduler: Any, times: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        if self.flow:
            sigma = np.append(np.array(times) / 1000, 0.0)
            return 1 - sigma, sigma
        alpha_bar = scheduler.alphas_cumprod.double().numpy()
        last = 0.0 if self.last == "zero" else math.sqrt(1 / alpha_bar[0] - 1)
        return solvers.levels(alpha_bar, times, self.linear, last)


def dpm(**config: Any) -> dict[str, Any]:
    return {"solver_order": 2, **config}


def noise_dpm(**config: Any) -> dict[str, Any]:
    return dpm(algorithm_type="dpmsolver", final_sigmas_type="sigma_min", **config)


UNCLIPPED = {"clip_sample": False}
EPSILON = ("epsilon",)
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
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
        {"times": np.append(BETWEEN, 0.0)},
        install={"uneven_coefficients": True},
        last="least",
        kinds=("epsilon", "v_prediction"),
    ),
    Case(  # the last step goes to ᾱ = 1, one time below 0
        "PNDMScheduler",
        solvers.plms_uneven,
        2,
        {"skip_prk_steps": True, "set_alpha_to_one": True},
        {"times": np.append(BETWEEN, -1.0)},
        install={"uneven_coefficients": True},
        kinds=EPSILON,
    ),
    Case("DEISMultistepScheduler", solvers.deis, 2, dpm(), last="least", float32=True),
    Case(
        "DEISMultistepScheduler",
        solvers.deis,
        3,
        {"solver_order": 3},
        {"order": 3},
        last="least",
        float32=True,
    ),
    Case(
        "DPMSolverMultistepScheduler",
        solvers.dpm_multistep,
        1,
        {"solver_order": 1},
        {"order": 1},
        float32=True,
    ),
    Case("DPMSolverMultistepScheduler", solvers.dpm_multistep, 2, dpm(), float32=True),
    Case(
        "DPMSolverMultistepScheduler",
        solvers.dpm_multistep,
        2,
        {"solver_order": 3},
        {"order": 3},
        float32=True,
    ),
    Case("DPMSolverMultistepScheduler", solvers.dpm_multistep, 2, dpm(use_karras_sigmas=True), float32=True),
    Case(
        "DPMSolverMultistepScheduler",
        solvers.dpm_noise_multistep,
        2,
        noise_dpm(),
        float32=True,
        last="least",
    ),
    Case(
        "DPMSolverMultistepScheduler",
        solvers.sde_dpm_multistep,
        0,
        dpm(algorithm_type="sde-dpmsolver++"),
        float32=True,
    ),
    Case(
        "DPMSolverMultistepScheduler",
        solvers.dpm_multistep,
        2,
        FLOW,
        float32=True,
        flow=True,
        kinds=("flow_prediction",),
    ),
    Case("DPMSolverSinglestepScheduler", solvers.dpm_singlestep, 2, dpm(), {"orders": (1, 2, 1, 2, 1, 2, 1)}),
    Case(
        "DPMSolverSinglestepScheduler",
        solvers.dpm_singlestep,
        3,
        {"solver_order": 3},
        {"orders": (1, 2, 3, 1, 2, 3, 1)},
    ),
    Case(
        "EulerAncestralDiscreteScheduler",
        solvers.ancestral,
        linear=True,
        kinds=("epsilon", "v_prediction"),
        float32=True,
    ),
    Case("EulerDiscreteScheduler", solvers.euler, 1, linear=True, float32=True),
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
    Case("LCMScheduler", solvers.lcm, 0, UNCLIPPED, {"times": INTEGERS}, float32=True),
    Case("LMSDiscreteScheduler", solvers.lms, 4, linear=True),
    Case("TCDScheduler", solvers.tcd, 0, UNCLIPPED, {"times": INTEGERS}),
    Case("UniPCMultistepScheduler", solvers.unipc, 2, dpm()),
    Case("UniPCMultistepScheduler", solvers.unipc, 3, {"solver_order": 3}, {"order": 3}),
    Case("UniPCMultistepScheduler", solvers.unipc, 2, FLOW, flow=True, kinds=("flow_prediction",)),
]
