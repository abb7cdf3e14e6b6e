"""A scheduler in settings that are proved, and the formula that it must equal; ``scheduler_cases`` has all of them."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from peers import as_computed, solvers

INTEGERS = (961, 900, 551, 540, 260, 30, 7)
# Two calls in each step but the last, the second at its end or in its middle.
MIDDLE = ("DPMSolverSDEScheduler", "KDPM2DiscreteScheduler")
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
    brownian: bool = False  # diffusers itself reads its noises off a path that is made in advance
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
        return self.name not in (*DISTILLED, "DPMSolverSDEScheduler")

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
