"""What a candidate costs: calls of the denoiser (NFE), layer runs, FLOPs. The only place with these formulas.

All are per image. A layer removed at a step is not run in any call of that step. Of classifier-free guidance, which
doubles the batch in each call, all candidates pay the same factor; it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.space.model_info import Layout, ModelInfo


def calls(layout: Layout, steps: int) -> tuple[int, ...]:
    """Calls of the denoiser at each of ``steps`` steps, noise to image."""
    if layout == "heun":  # slopes at both ends of a step; the last goes to σ = 0 and is an Euler step
        return (2,) * (steps - 1) + (1,)
    if layout == "plms" and steps > 1:  # the first step is made twice: a linear multistep method has no past yet
        return (2,) + (1,) * (steps - 1)
    return (1,) * steps


def steps_within(layout: Layout, nfe: int) -> int:
    """The greatest number of steps that ``nfe`` calls of the denoiser pay for."""
    if layout == "heun":  # 2 N - 1 <= nfe
        return (nfe + 1) // 2
    if layout == "plms":  # N + 1 <= nfe, but one step is one call
        return max(nfe - 1, min(nfe, 1))
    return nfe


def nfe(info: ModelInfo, candidate: Candidate) -> int:
    """Number of function evaluations: calls of the denoiser over all steps."""
    return sum(calls(info.layout, len(candidate.steps)))


def layer_runs(info: ModelInfo, candidate: Candidate) -> int:
    """Σ calls_i · (L - |removed_i|), the cost that AutoDiffusion bounds by N_max; 0 where layers were not counted."""
    return layer_runs_of(info, [len(removed) for removed in candidate.removed]) if info.layers else 0


def layer_runs_of(info: ModelInfo, removed: Sequence[int]) -> int:
    """The layer runs of steps that remove so many layers each, noise to image."""
    made = calls(info.layout, len(removed))
    return sum(number * (info.layers - int(count)) for number, count in zip(made, removed, strict=True))


def flops(info: ModelInfo, candidate: Candidate) -> int:
    """Σ calls_i · (F - Σ F_j), j over the layers removed at step i; 0 where FLOPs were not counted."""
    if not info.flops or (any(candidate.removed) and not info.layer_flops):
        return 0
    made = calls(info.layout, len(candidate.steps))
    saved = (sum(info.layer_flops[layer] for layer in removed) for removed in candidate.removed)
    return sum(number * (info.flops - less) for number, less in zip(made, saved, strict=True))


# The costs that an objective may name.
COSTS: dict[str, Callable[[ModelInfo, Candidate], int]] = {"nfe": nfe, "layers": layer_runs, "flops": flops}
