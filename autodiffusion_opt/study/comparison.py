"""Optimizers side by side: how soon each comes near the best value, over its seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autodiffusion_opt.objective.goals import Direction
from autodiffusion_opt.study.curves import (
    AXES,
    Axis,
    Band,
    Curve,
    Reached,
    Spread,
    band_of,
    loss_of,
    reached_by,
    sign_of,
)
from autodiffusion_opt.study.results import Result
from autodiffusion_opt.study.verify import Difference, Rescored


@dataclass(frozen=True)
class Rescoring:
    """How winners are measured again: on fresh noise, the same for all.

    Attributes:
        images: a repeat.
        repeats: how many.
    """

    images: int = 5000
    repeats: int = 3


@dataclass(frozen=True)
class ComparedStudy:
    """A study beside others.

    Attributes:
        name: of the study.
        label: the name without what the names of all compared studies share.
        optimizer: what tables call its optimizer.
        table: of the optimizer.
        seed: of the optimizer.
        curve: the best so far against what was spent.
        winner: the best candidate; None where none keeps to its bounds.
        own: the baseline that results are divided by: ``own``, else ``leading``; None where it is not complete.
        rescored: the winner on fresh noise; None where it was not measured again.
        own_rescored: the baseline on the same noise.
    """

    name: str
    label: str
    optimizer: str
    table: Mapping[str, Any]
    seed: int
    curve: Curve
    winner: Result | None
    own: Result | None
    rescored: Rescored | None = None
    own_rescored: Rescored | None = None

    @property
    def searched(self) -> float:
        """The search's value of its winner; NaN where there is none."""
        return math.nan if self.winner is None else self.winner.value

    @property
    def value(self) -> float:
        """The winner's value, re-scored where it was."""
        return self.searched if self.rescored is None else self.rescored.mean

    @property
    def own_value(self) -> float:
        """The baseline's value, re-scored where it was; NaN where there is none."""
        if self.own_rescored is not None:
            return self.own_rescored.mean
        return math.nan if self.own is None else self.own.value

    def cost(self, name: str) -> float:
        """``nfe`` or ``flops`` of an image of the winner; NaN where it is not known."""
        return _cost(self.winner, name)

    def own_cost(self, name: str) -> float:
        """The same of the baseline."""
        return _cost(self.own, name)

    def to_dict(self) -> dict[str, Any]:
        """As ``compare --json`` prints it."""
        winner = None
        if self.winner is not None:
            costs = {name: self.winner.costs[name] for name in ("nfe", "flops")}
            candidate = self.winner.candidate.to_dict()
            winner = {"trial": self.winner.trial, "value": self.searched, **costs, "candidate": candidate}
        return {
            "study": self.name,
            "optimizer": self.optimizer,
            "seed": self.seed,
            **{axis: self.curve.total(axis) for axis in AXES},
            "winner": winner,
            "own": None if self.own is None else self.own.value,
            "rescored": None if self.rescored is None else self.rescored.to_dict(),
            "own_rescored": None if self.own_rescored is None else self.own_rescored.to_dict(),
            "curve": self.curve.to_dict(),
        }


def baseline_of(studies: Sequence[ComparedStudy]) -> Result | None:
    """The first study's baseline that is complete; studies of the same space have the same."""
    return next((study.own for study in studies if study.own is not None), None)


def _cost(result: Result | None, name: str) -> float:
    cost = None if result is None else result.costs[name]
    return math.nan if cost is None else float(cost)


@dataclass(frozen=True)
class OptimizerSummary:
    """An optimizer over its seeds.

    Attributes:
        name: what tables call it.
        studies: one a seed.
        winner: the study with the best value of the search.
        final: the best value at each study's end; infinite, towards the worse, where there is none.
        within: percent of the best value of all studies -> what it took to come so near.
        bands: of each axis, the median of the best so far, and its range.
    """

    name: str
    studies: tuple[ComparedStudy, ...]
    winner: ComparedStudy
    final: Spread
    within: Mapping[float, Reached]
    bands: Mapping[Axis, Band]

    @classmethod
    def of(cls, studies: Sequence[ComparedStudy], limits: Mapping[float, float], sign: int) -> OptimizerSummary:
        """Of the studies of one optimizer.

        Args:
            studies: one a seed.
            limits: percent of the best value -> the value, times ``sign``, that comes so near.
            sign: 1 where less is better, else -1.
        """
        curves = [study.curve for study in studies]
        losses = [loss_of(study.searched, sign) for study in studies]
        return cls(
            name=studies[0].optimizer,
            studies=tuple(studies),
            winner=studies[losses.index(min(losses))],
            final=Spread.of([sign * loss for loss in losses]),
            within={percent: reached_by(curves, limit, sign) for percent, limit in limits.items()},
            bands={axis: band_of(curves, axis, sign) for axis in AXES},
        )

    def to_dict(self) -> dict[str, Any]:
        """As ``compare --json`` prints it."""
        return {
            "optimizer": self.name,
            "table": dict(self.studies[0].table),
            "studies": [study.name for study in self.studies],
            "winner": self.winner.name,
            "final": self.final.to_dict(),
            "within": {f"{percent:g}": reached.to_dict() for percent, reached in self.within.items()},
            "curves": {axis: band.to_dict() for axis, band in self.bands.items()},
        }


@dataclass(frozen=True)
class OptimizerComparison:
    """Studies that differ in optimizer and seed alone: which optimizer?

    Attributes:
        value_name: what is optimised.
        direction: whether less or more of it is better.
        best: the study with the best value of all.
        optimizers: the soonest within the shares of the best value first, the smallest share deciding; then by the
            final median.
        axis: what a search is measured by: images, or trials where no study makes images.
        rescoring: how winners were measured again; None: they were not.
        sentences: what the numbers say.
    """

    value_name: str
    direction: Direction
    best: ComparedStudy
    optimizers: tuple[OptimizerSummary, ...]
    axis: Axis
    rescoring: Rescoring | None
    sentences: tuple[str, ...]

    @classmethod
    def of(
        cls,
        studies: Sequence[ComparedStudy],
        value_name: str,
        direction: Direction,
        within: Sequence[float],
        rescoring: Rescoring | None = None,
    ) -> OptimizerComparison:
        """Of studies of which one at least has a winner.

        Args:
            studies: those of an optimizer have the same name for it.
            value_name: what is optimised.
            direction: whether less or more of it is better.
            within: percent of the best value.
            rescoring: how winners were measured again.
        """
        sign = sign_of(direction)
        axis: Axis = "images" if any(study.curve.total("images") for study in studies) else "trials"
        best = min(studies, key=lambda study: loss_of(study.searched, sign))
        limits = {percent: sign * best.searched + percent / 100 * abs(best.searched) for percent in sorted(set(within))}
        groups: dict[str, list[ComparedStudy]] = {}
        for study in studies:
            groups.setdefault(study.optimizer, []).append(study)
        summaries = [OptimizerSummary.of(group, limits, sign) for group in groups.values()]
        summaries.sort(
            key=lambda summary: (
                *(reached.spent[axis].median for reached in summary.within.values()),
                sign * summary.final.median,
            )
        )
        sentences = [
            *_fastest(summaries, axis, f"{value_name}, {best.searched:.4g}"),
            *_cautions(studies),
            *_winners_differ(summaries, direction),
        ]
        return cls(value_name, direction, best, tuple(summaries), axis, rescoring, tuple(sentences))

    @property
    def studies(self) -> tuple[ComparedStudy, ...]:
        """All of them, by optimizer."""
        return tuple(study for summary in self.optimizers for study in summary.studies)

    def to_dict(self) -> dict[str, Any]:
        """As ``compare --json`` prints it."""
        return {
            "compared": "optimizers",
            "value": self.value_name,
            "direction": self.direction,
            "best": {"study": self.best.name, "value": self.best.searched},
            "axis": self.axis,
            "rescoring": None if self.rescoring is None else asdict(self.rescoring),
            "optimizers": [summary.to_dict() for summary in self.optimizers],
            "studies": [study.to_dict() for study in self.studies],
            "sentences": list(self.sentences),
        }


def _fastest(summaries: Sequence[OptimizerSummary], axis: Axis, best: str) -> list[str]:
    """Which optimizer comes near the best value first, at the smallest share that one reaches in the median."""
    if len(summaries) == 1:
        return []
    for percent in summaries[0].within:
        medians = {summary.name: summary.within[percent].spent[axis].median for summary in summaries}
        least = min(medians.values())
        if math.isfinite(least):
            first = [name for name, median in medians.items() if median == least]
            later = {name: median for name, median in medians.items() if least < median < math.inf}
            name = min(later, key=lambda name: later[name], default="")
            next_one = f"; then {name}, after {later[name]:,.0f}" if later else "; no other does in the median"
            next_one = "" if len(first) == len(medians) else next_one
            return [
                f"{' and '.join(first)} {'is' if len(first) == 1 else 'are'} first to come within {percent:g} % of the "
                f"best {best}: after {least:,.0f} {axis} in the median over seeds{next_one}"
            ]
    widest = f"{max(summaries[0].within):g} % of " if summaries[0].within else ""
    return [
        f"no optimizer comes within {widest}the best {best}, in the median over its seeds; {summaries[0].name} "
        f"has the best median in the end, {summaries[0].final.median:.4g}"
    ]


def _cautions(studies: Sequence[ComparedStudy]) -> list[str]:
    """What keeps the numbers from meaning much."""
    sentences = []
    trials = [int(study.curve.total("trials")) for study in studies]
    if min(trials) < max(trials):
        sentences.append(
            f"the studies have {min(trials)} to {max(trials)} finished trials; those that ended early keep their last "
            "value"
        )
    optimizers = [study.optimizer for study in studies]
    single = [name for name in dict.fromkeys(optimizers) if optimizers.count(name) == 1]
    if single and len(studies) > 1:
        sentences.append(f"one seed tells little of chance; run more of {', '.join(single)} with --seed")
    return sentences


def _winners_differ(summaries: Sequence[OptimizerSummary], direction: Direction) -> list[str]:
    """Whether the best optimizer's winner differs from the next one's on fresh noise.

    An optimizer's winner is chosen by the search's values, so that none is chosen for its luck on the fresh noise.
    """
    winners = [(summary.winner, summary.winner.rescored) for summary in summaries]
    measured = [(study, rescored) for study, rescored in winners if rescored and not math.isnan(rescored.mean)]
    if len(measured) < 2:
        return []
    measured.sort(key=lambda pair: loss_of(pair[1].mean, sign_of(direction)))
    (first, first_scored), (second, second_scored) = measured[:2]
    names = [f"{study.optimizer}'s winner ({study.label})" for study in (first, second)]
    if first_scored.candidate == second_scored.candidate:
        return [f"{names[0]} and {names[1]} are the same candidate"]
    gap = Difference.of(first_scored, second_scored)
    return [gap.sentence(*names, less_is_better=direction == "minimize")]
