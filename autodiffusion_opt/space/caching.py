"""What the spaces with partial steps share: their budget, and the uniform schedules that they are compared with."""

from __future__ import annotations

from dataclasses import dataclass

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import cost
from autodiffusion_opt.space.baselines import leading, shifted
from autodiffusion_opt.space.model_info import ModelInfo
from autodiffusion_opt.space.scalars import Scalars

# DeepCache's uniform schedules: a full step, then partial ones, every so many steps.
INTERVALS = (2, 3, 5)
# Dearer branches save too little to be worth a cache, and are offered where they are asked for only.
MOST_SHARE = 0.6


@dataclass(frozen=True)
class CostBudget:
    """Bounds of the cost; None: no bound.

    Attributes:
        max_flops: in whole networks.
        nfe: calls of the denoiser, full and partial ones.
    """

    max_flops: float | None = None
    nfe: int | None = None

    def is_kept(self, info: ModelInfo, candidate: Candidate) -> bool:
        """Whether a candidate costs no more."""
        # 1e-9: sums of shares of a network may be beyond the number by a rounding.
        within_flops = self.max_flops is None or cost.networks(info, candidate) <= self.max_flops + 1e-9
        return within_flops and (self.nfe is None or cost.nfe(info, candidate) <= self.nfe)

    def check(self, info: ModelInfo, candidate: Candidate) -> None:
        """Raises UserError where a candidate costs more."""
        if not self.is_kept(info, candidate):
            parts = [] if self.max_flops is None else [f"{self.max_flops:g} whole networks"]
            parts += [] if self.nfe is None else [f"{self.nfe} calls"]
            raise UserError(
                f"a candidate must cost at most {' and '.join(parts)}; got {cost.networks(info, candidate):.4g} whole "
                f"networks and {cost.nfe(info, candidate)} calls"
            )


def offered_branches(info: ModelInfo, asked: tuple[int, ...] | None) -> tuple[int, ...]:
    """The branches that a space offers, ascending. Raises UserError for a model that has none, or not these."""
    if not info.branch_flops:
        raise UserError("this space needs a model with branches for partial steps; none were counted")
    if asked is None:
        return tuple(branch for branch, share in enumerate(info.branch_shares) if share <= MOST_SHARE) or (0,)
    wrong = sorted(branch for branch in asked if not 0 <= branch < len(info.branch_flops))
    if wrong:
        listed = ", ".join(f"{branch} ({share:.2f})" for branch, share in enumerate(info.branch_shares))
        raise UserError(f"branches must be of the model's, with their cost: {listed}; got {wrong}")
    return tuple(sorted(set(asked)))


def uniform_presets(
    info: ModelInfo, scalars: Scalars, budget: CostBudget, branch: int, most: int
) -> dict[str, Candidate]:
    """Fewer even steps, and even steps of which every 2nd, 3rd or 5th is a full one (DeepCache, Ma et al., 2024,
    section 3.3): each of the most steps that the budget allows.

    Args:
        info: of the model.
        scalars: the numbers beside the steps.
        budget: with a bound, or ``most`` steps are had.
        branch: of the partial steps.
        most: steps at most.
    """
    presets = {"fewer steps": 1} | {f"full every {interval}": interval for interval in INTERVALS}
    made = {name: _most_steps(info, scalars, budget, branch, interval, most) for name, interval in presets.items()}
    return {name: candidate for name, candidate in made.items() if candidate is not None}


def _most_steps(
    info: ModelInfo, scalars: Scalars, budget: CostBudget, branch: int, interval: int, most: int
) -> Candidate | None:
    best = None
    for count in range(1, most + 1):
        times = sorted(set(shifted(info, leading(info, count))), reverse=True)
        steps = (Step(time, (), branch if index % interval else None) for index, time in enumerate(times))
        candidate = scalars.candidate(steps, {})
        if not budget.is_kept(info, candidate):
            break
        best = candidate
    return best
