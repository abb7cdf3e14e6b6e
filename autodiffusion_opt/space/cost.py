"""What a candidate costs: calls of the denoiser (NFE), layer runs, FLOPs. The only place with these formulas.

All are per image. A layer removed at a step is not run in any call of that step. Of classifier-free guidance, which
doubles the batch in each call, all candidates pay the same factor; it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.space.model_info import Layout, ModelInfo


def calls(layout: Layout, steps: int) -> tuple[int, ...]:
    """Calls of the denoiser at each of ``steps`` steps, noise to image."""
    if layout == "heun":  # Heun, KDPM2: slopes at two places of a step; the last is an Euler step
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
    """Σ calls_i · (L_i - |removed_i|), the cost that AutoDiffusion bounds by N_max; 0 where layers were not counted.

    L_i is the number of layers that the step runs when none is removed: L, or those of a partial step's branch.
    """
    if not info.layers or not _branches_counted(info, candidate):
        return 0
    made = calls(info.layout, len(candidate.steps))
    runs = (_layers_of(info, step) - len(_removed_of(info, step)) for step in candidate.steps)
    return sum(number * count for number, count in zip(made, runs, strict=True))


def layer_runs_of(info: ModelInfo, removed: Sequence[int]) -> int:
    """The layer runs of full steps that remove so many layers each, noise to image."""
    made = calls(info.layout, len(removed))
    return sum(number * (info.layers - int(count)) for number, count in zip(made, removed, strict=True))


def flops(info: ModelInfo, candidate: Candidate) -> int:
    """Σ calls_i · (F_i - Σ F_j), j over the layers removed at step i; 0 where FLOPs were not counted.

    F_i are the FLOPs of a whole network, or of a partial step's branch.
    """
    if not info.flops or (any(candidate.removed) and not info.layer_flops) or not _branches_counted(info, candidate):
        return 0
    made = calls(info.layout, len(candidate.steps))
    return sum(number * step_flops(info, step) for number, step in zip(made, candidate.steps, strict=True))


def step_flops(info: ModelInfo, step: Step) -> int:
    """FLOPs of one call of the denoiser at a step."""
    whole = info.flops if step.branch is None else info.branch_flops[step.branch]
    return whole - sum(info.layer_flops[layer] for layer in _removed_of(info, step))


def networks(info: ModelInfo, candidate: Candidate) -> float:
    """FLOPs in whole networks; 0 where FLOPs were not counted."""
    return flops(info, candidate) / info.flops if info.flops else 0.0


def _branches_counted(info: ModelInfo, candidate: Candidate) -> bool:
    # What an engine's cache leaves out, the engine decides.
    return candidate.engine is None and all(
        branch is None or branch < len(info.branch_flops) for branch in candidate.branches
    )


def _layers_of(info: ModelInfo, step: Step) -> int:
    return info.layers if step.branch is None else len(info.branch_layers[step.branch])


def _removed_of(info: ModelInfo, step: Step) -> tuple[int, ...]:
    """The layers that the step would run and removes."""
    if step.branch is None:
        return step.removed
    return tuple(layer for layer in step.removed if layer in info.branch_layers[step.branch])


# The costs that an objective may name.
COSTS: dict[str, Callable[[ModelInfo, Candidate], int]] = {"nfe": nfe, "layers": layer_runs, "flops": flops}
