"""Neighbours of a candidate that differ in layers: what the spaces share in which steps may leave layers out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.space.base import Toggle
from autodiffusion_opt.space.layer_choice import LayerChoice


def layer_toggles(choice: LayerChoice, candidate: Candidate, max_removed: int) -> list[Toggle]:
    """Every layer of every full step that may be removed, or returned, alone: removals first.

    They are in the order of the layers' place in the ranking at their steps, the least important removed and the most
    important returned first; of equal ones from noise to image.
    """
    placed = []
    for index, step in enumerate(candidate.steps):
        if step.branch is not None:
            continue
        order = choice.by_importance(step.time)
        for layer in choice.toggles(step.time, step.removed):
            is_removal, place = layer not in step.removed, order.index(layer)
            if not is_removal or len(step.removed) < max_removed:
                placed.append((not is_removal, place if is_removal else -place, index, layer))
    return [(index, layer) for *_, index, layer in sorted(placed)]


def with_toggles(candidate: Candidate, toggles: Sequence[Toggle]) -> Candidate:
    """The candidate with these layers removed where they run, and run where they are removed."""
    removed = [set(layers) for layers in candidate.removed]
    for index, layer in toggles:
        removed[index] ^= {layer}
    steps = (replace(step, removed=tuple(layers)) for step, layers in zip(candidate.steps, removed, strict=True))
    return replace(candidate, steps=tuple(steps))


def without_a_layer(
    choice: LayerChoice, candidate: Candidate, max_removed: int, cost: Callable[[int], float]
) -> Candidate | None:
    """Without the layer that matters least for what it costs; None where no more may be removed.

    Args:
        choice: which layers may be removed.
        candidate: of which one layer of a step goes.
        max_removed: how many layers a step may remove.
        cost: of running a layer once, in any unit.
    """

    def weight(removal: Toggle) -> float:
        """The layer's place in the order of importance, from 1, for each unit of cost."""
        index, layer = removal
        return (1 + choice.by_importance(candidate.steps[index].time).index(layer)) / max(cost(layer), 1)

    toggles = layer_toggles(choice, candidate, max_removed)
    removals = [(index, layer) for index, layer in toggles if layer not in candidate.steps[index].removed]
    return with_toggles(candidate, [min(removals, key=weight)]) if removals else None
