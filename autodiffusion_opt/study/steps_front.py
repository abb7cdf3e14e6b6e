"""Numbers of steps side by side: the front of cost against value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from autodiffusion_opt.objective.goals import Direction
from autodiffusion_opt.study.comparison import ComparedStudy, Rescoring
from autodiffusion_opt.study.curves import loss_of, sign_of
from autodiffusion_opt.study.verify import Difference
from autodiffusion_opt.trials.history import dominates


@dataclass(frozen=True)
class StepsComparison:
    """Studies that differ in the number of steps: how many steps?

    Attributes:
        value_name: what is optimised.
        direction: whether less or more of it is better.
        cost: ``flops`` of an image where all winners' are known and not the same multiple of ``nfe``; else ``nfe``.
        studies: the cheapest first.
        dominated: study -> another whose winner costs no more, is no worse, and is cheaper or better.
        rescoring: how winners were measured again; None: they were not.
        sentences: what the numbers say.
    """

    value_name: str
    direction: Direction
    cost: Literal["nfe", "flops"]
    studies: tuple[ComparedStudy, ...]
    dominated: Mapping[str, str]
    rescoring: Rescoring | None
    sentences: tuple[str, ...]

    @classmethod
    def of(
        cls,
        studies: Sequence[ComparedStudy],
        value_name: str,
        direction: Direction,
        rescoring: Rescoring | None = None,
    ) -> StepsComparison:
        """Of studies that have a winner each."""
        sign = sign_of(direction)
        of_a_call = {study.cost("flops") / study.cost("nfe") for study in studies}
        has_flops = all(flops > 0 for flops in of_a_call)  # False for NaN
        cost: Literal["nfe", "flops"] = "flops" if has_flops and len(of_a_call) > 1 else "nfe"
        losses = {study.name: (study.cost(cost), loss_of(study.value, sign)) for study in studies}
        ordered = sorted(studies, key=lambda study: losses[study.name])
        dominated: dict[str, str] = {}
        for name, loss in losses.items():
            by = next((study.name for study in ordered if dominates(losses[study.name], loss)), None)
            dominated |= {} if by is None else {name: by}
        front = [study for study in ordered if study.name not in dominated and math.isfinite(study.value)]
        sentences = [
            *_more_steps(front, cost, direction),
            *_beyond_own(front, studies, cost, value_name, sign),
        ]
        return cls(value_name, direction, cost, tuple(ordered), dominated, rescoring, tuple(sentences))

    @property
    def front(self) -> tuple[ComparedStudy, ...]:
        """The studies that no other dominates, the cheapest first; without those that could not be measured again."""
        kept = (study for study in self.studies if study.name not in self.dominated)
        return tuple(study for study in kept if math.isfinite(study.value))

    def to_dict(self) -> dict[str, Any]:
        """As ``compare --json`` prints it."""
        return {
            "compared": "steps",
            "value": self.value_name,
            "direction": self.direction,
            "cost": self.cost,
            "rescoring": None if self.rescoring is None else asdict(self.rescoring),
            "front": [study.name for study in self.front],
            "dominated": dict(self.dominated),
            "studies": [study.to_dict() for study in self.studies],
            "sentences": list(self.sentences),
        }


def cost_text(cost: str, number: float) -> str:
    """``6 NFE``, ``1.23 TFLOPs``: a cost of one image."""
    scale, unit = unit_of(cost, number)
    return f"{number / scale:.4g} {unit}"


def unit_of(cost: str, largest: float) -> tuple[float, str]:
    """What a cost is divided by to be shown, and its unit then."""
    if cost == "nfe":
        return 1.0, "NFE"
    scales = ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"))
    return next((pair for pair in scales if largest >= pair[0]), (1.0, "FLOPs"))


def _more_steps(front: Sequence[ComparedStudy], cost: str, direction: Direction) -> list[str]:
    """Whether each of the front is better than the one before it by more than the noise."""
    if any(study.rescored is None for study in front):
        return ["values are the search's own, which flatter its winners; --verify measures them on fresh noise"]
    sentences = []
    for cheaper, dearer in pairwise(front):
        assert cheaper.rescored is not None
        assert dearer.rescored is not None
        gap = Difference.of(dearer.rescored, cheaper.rescored)
        names = [f"{study.label} ({cost_text(cost, study.cost(cost))})" for study in (dearer, cheaper)]
        sentences.append(gap.sentence(*names, less_is_better=direction == "minimize"))
    return sentences


def _beyond_own(
    front: Sequence[ComparedStudy], studies: Sequence[ComparedStudy], cost: str, value_name: str, sign: int
) -> list[str]:
    """Which winners are better than the pipeline's own schedule at a higher cost: the dearest that each beats."""
    sentences = []
    for study in front:
        beaten = [
            dearer
            for dearer in studies
            if dearer.own is not None
            and dearer.own_cost(cost) > study.cost(cost)
            and sign * study.value < sign * dearer.own_value
        ]
        if beaten:
            dearest = max(beaten, key=lambda dearer: dearer.own_cost(cost))
            assert dearest.own is not None
            sentences.append(
                f"{study.label} with {cost_text(cost, study.cost(cost))} is better than {dearest.own.baseline} with "
                f"{cost_text(cost, dearest.own_cost(cost))}: {value_name} {study.value:.4g} against "
                f"{dearest.own_value:.4g}"
            )
    return sentences
