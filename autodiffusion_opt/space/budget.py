"""What a candidate of a joint space may cost: layer runs, and FLOPs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import cost
from autodiffusion_opt.space.layer_choice import LayerChoice
from autodiffusion_opt.space.model_info import ModelInfo


@dataclass(frozen=True)
class Budget:
    """Bounds of the cost over all steps.

    Attributes:
        n_max: of the layer runs (AutoDiffusion, section 3.3).
        max_flops: of the FLOPs, in whole networks; None: no bound.
    """

    n_max: int
    max_flops: float | None = None

    def excess_runs(self, info: ModelInfo, removed: Sequence[int]) -> int:
        """By how many layer runs steps that remove so many layers are beyond the budget; negative: so many are left."""
        return cost.layer_runs_of(info, [int(count) for count in removed]) - self.n_max

    def is_exceeded(self, info: ModelInfo, candidate: Candidate) -> bool:
        """Whether a candidate costs more."""
        counts = [len(removed) for removed in candidate.removed]
        return self.excess_runs(info, counts) > 0 or cost.networks(info, candidate) > self._flops

    def check(self, info: ModelInfo, candidate: Candidate) -> None:
        """Raises UserError where a candidate costs more."""
        runs = cost.layer_runs(info, candidate)
        if runs > self.n_max:
            raise UserError(f"a candidate must run at most n_max = {self.n_max} layers over all steps; got {runs}")
        if cost.networks(info, candidate) > self._flops:
            raise UserError(
                f"a candidate must cost at most max_flops = {self.max_flops:g} whole networks; "
                f"got {cost.networks(info, candidate):.4g}"
            )

    def steps_within(self, info: ModelInfo, choice: LayerChoice, max_removed: int, steps_max: int) -> int:
        """``steps_max``, lowered to the number of steps that can be afforded if each removes ``max_removed`` layers.

        Of these the costliest that the choice allows at every time.
        """
        bounds = [steps_max]
        runs, share = info.layers - max_removed, least_share(info, choice, max_removed)
        if runs > 0:
            bounds.append(cost.steps_within(info.layout, self.n_max // runs))
        if self.max_flops is not None and share > 0:
            bounds.append(cost.steps_within(info.layout, int(self._flops / share)))
        return min(bounds)

    def least_removed(self, info: ModelInfo, choice: LayerChoice, steps: int, most: int) -> int:
        """How many layers each of ``steps`` steps must be allowed to remove, of at most ``most``."""
        fits = (count for count in range(most) if self.steps_within(info, choice, count, steps) == steps)
        return next(fits, most)

    @property
    def _flops(self) -> float:
        # 1e-9: sums of shares of a network, such as those of four whole ones, may be beyond the number by a rounding.
        return float("inf") if self.max_flops is None else self.max_flops + 1e-9


def least_share(info: ModelInfo, choice: LayerChoice, count: int) -> float:
    """The share of a whole network's FLOPs that is left at any time if the costliest ``count`` layers are removed."""
    if not info.flops or not info.layer_flops:
        return 1.0
    times = (info.highest, (info.lowest + info.highest) / 2, info.lowest)  # one of each third
    saved = min(
        sum(info.layer_flops[layer] for layer in choice.costliest(time, count, info.layer_flops)) for time in times
    )
    return (info.flops - saved) / info.flops
