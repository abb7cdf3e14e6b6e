"""Objectives and features of one's own, handed over in Python.

A function says nothing of what it computes, so each comes with an ``identity``: text that is changed whenever the
function would give other numbers. A resumed study compares it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.config import build
from autodiffusion_opt.errors import EvaluationError, UserError, named_reason_of
from autodiffusion_opt.objective.base import Score, ascending, rungs_of
from autodiffusion_opt.objective.goals import COSTS, Bound, Direction, Goals, goals_of
from autodiffusion_opt.objective.image_objective import ImageObjective
from autodiffusion_opt.objective.pruners import check_pruner, needs_each_image
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.sampling.config import ConditionsConfig
from autodiffusion_opt.space.model_info import ModelInfo

if TYPE_CHECKING:
    import torch

    from autodiffusion_opt.sampling.generate import ImageSampler


@dataclass(frozen=True)
class Features:
    """A feature extractor of one's own: ``{"kind": "fid", "features": ado.Features(f, identity="f-1"), ...}``.

    Attributes:
        function: uint8 (N, C, H, W), on the pipeline's device, to (N, D) floats: a torch tensor or a NumPy array.
        identity: is changed whenever the function would give other numbers.

    Raises:
        UserError: without an identity.
    """

    function: Callable[[torch.Tensor], Any]
    identity: str = ""

    def __post_init__(self) -> None:
        _need_identity("Features", self.function, self.identity)

    def __call__(self, images: torch.Tensor) -> NDArray[np.float32]:
        """Float32 (N, D). Raises EvaluationError where the function fails or gives another shape."""
        result = _call(self.function, images, f"the features {self.identity!r}")
        array = np.asarray(result.detach().cpu() if hasattr(result, "detach") else result, dtype=np.float32)
        if array.ndim != 2 or len(array) != len(images):
            raise EvaluationError(
                f"the features {self.identity!r} must be (N, D) for N = {len(images)} images; got {array.shape}"
            )
        return array


@dataclass(frozen=True)
class ImageMetric:
    """An objective of one's own on generated images.

    Attributes:
        function: uint8 (N, C, H, W), all images of a candidate in main memory, to a number, or to a dict of numbers
            that holds ``name``.
        images: how many a trial generates; or ascending rungs, ``(100, 500)``, with a value after each.
        identity: is changed whenever the function would give other numbers.
        name: of the value.
        direction: whether less or more is better.
        minimise: the names of several values, in place of ``name``: the function's, and ``nfe``, ``layers``, ``flops``,
            ``seconds``.
        maximise: the same for those that are the better the greater.
        at_most: name -> what a value must not exceed; up to 1 of a cost: a share of what the pipeline's own costs.
        at_least: name -> below which a value must not be.
        seed: of the noise.
        conditions: as the table ``[conditions]``: prompts or labels.
        pruner: which candidates are stopped after a rung, as the key ``pruner`` of a table ``[objective]``.
        frames: of each clip that are its images, where the pipeline makes clips.

    Raises:
        UserError: without an identity.
    """

    function: Callable[[torch.Tensor], Any]
    images: int | tuple[int, ...] = 0
    identity: str = ""
    name: str = "value"
    direction: Direction = "minimize"
    seed: int = 0
    conditions: ConditionsConfig | Mapping[str, Any] = field(default_factory=ConditionsConfig)
    pruner: str | Mapping[str, Any] | None = None
    minimise: Sequence[str] = ()
    maximise: Sequence[str] = ()
    at_most: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)
    frames: int = 1

    def __post_init__(self) -> None:
        _need_identity("ImageMetric", self.function, self.identity)
        _check_goals(self.direction, self.minimise, self.maximise)
        object.__setattr__(self, "images", tuple(self.images) if isinstance(self.images, list) else self.images)
        if not self.rungs or self.rungs[0] < 1:
            raise UserError(f"ImageMetric: images must be 1 or more, the number of images a trial; got {self.images}")
        try:
            ascending(self.images)
        except ValueError as error:
            raise UserError(f"ImageMetric: images {error}; got {list(self.rungs)}") from None
        if self.pruner is not None:
            check_pruner(self.pruner)
            if needs_each_image(self.pruner):
                raise UserError(
                    "ImageMetric: pruner wilcoxon compares a number for each image; a function has one for all"
                )
        if not isinstance(self.conditions, ConditionsConfig):
            table = build(ConditionsConfig, self.conditions, "ImageMetric: conditions")
            object.__setattr__(self, "conditions", table)

    def definition(self) -> dict[str, Any]:
        """What a resumed study compares, as JSON values."""
        assert isinstance(self.conditions, ConditionsConfig)
        return {
            "python": "ImageMetric",
            "identity": self.identity,
            "images": list(self.rungs) if len(self.rungs) > 1 else self.rungs[0],
            "pruner": self.pruner,
            "seed": self.seed,
            "name": self.name,
            "direction": self.direction,
            "conditions": self.conditions.model_dump(mode="json"),
            **({} if self.frames == 1 else {"frames": self.frames}),
            **self.goals.definition(),
        }

    @property
    def goals(self) -> Goals:
        """What becomes of its values."""
        return goals_of(self.name, self.direction, self.minimise, self.maximise, self.at_most, self.at_least)

    @property
    def rungs(self) -> tuple[int, ...]:
        """The numbers of images after which there are values."""
        return rungs_of(self.images)

    def objective(
        self, sampler: ImageSampler, info: ModelInfo, base: Path, progress: Progress = silent
    ) -> ImageObjective:
        """The objective of a loaded pipeline."""
        goals = self.goals
        return ImageObjective(
            sampler,
            info,
            self.images,
            self.seed,
            goals.directions,
            lambda seed, images, progress: _Collected(self),
            self.identity,
            goals.bounds,
            tuple(name for name in goals.names if name in COSTS),
        )


class _Collected:
    """Keeps the images of one candidate for a function that wants them all."""

    def __init__(self, metric: ImageMetric) -> None:
        self._metric = metric
        self._blocks: list[torch.Tensor] = []

    def add(self, images: torch.Tensor) -> None:
        self._blocks.append(images.cpu())

    def of_images(self) -> None:
        """The function says nothing of single images."""

    def values(self, *, is_last: bool) -> dict[str, float]:
        import torch

        what = f"the metric {self._metric.identity!r}"
        result = _call(self._metric.function, torch.cat(self._blocks), what)
        return named_values(result, [name for name in self._metric.goals.names if name not in COSTS], what)


@dataclass(frozen=True)
class CandidateMetric:
    """An objective of one's own on candidates, with a sampling system of one's own: no pipeline is loaded.

    Attributes:
        function: a :class:`~autodiffusion_opt.Candidate` to a number, or to a dict of numbers that holds ``name``.
        identity: is changed whenever the function would give other numbers.
        name: of the value.
        direction: whether less or more is better.
        minimise: the names of several values of the function, in place of ``name``.
        maximise: the same for those that are the better the greater.
        at_most: name -> what a value must not exceed.
        at_least: name -> below which a value must not be.

    Raises:
        UserError: without an identity.
    """

    function: Callable[[Candidate], Any]
    identity: str = ""
    name: str = "value"
    direction: Direction = "minimize"
    minimise: Sequence[str] = ()
    maximise: Sequence[str] = ()
    at_most: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _need_identity("CandidateMetric", self.function, self.identity)
        _check_goals(self.direction, self.minimise, self.maximise)

    def definition(self) -> dict[str, Any]:
        """What a resumed study compares, as JSON values."""
        return {
            "python": "CandidateMetric",
            "identity": self.identity,
            "name": self.name,
            "direction": self.direction,
            **self.goals.definition(),
        }

    @property
    def goals(self) -> Goals:
        """What becomes of its values. No bound is a share: nobody else knows what they cost."""
        goals = goals_of(self.name, self.direction, self.minimise, self.maximise, self.at_most, self.at_least)
        return replace(goals, bounds=tuple(replace(bound, is_share=False) for bound in goals.bounds))

    def bound_to(self, info: ModelInfo) -> CandidateObjective:
        """The objective, with a model's numbers for costs."""
        return CandidateObjective(self, info)


@dataclass(frozen=True)
class CandidateObjective:
    """A :class:`CandidateMetric` as an objective: it makes no images, so ``seed`` and ``images`` change nothing."""

    metric: CandidateMetric
    info: ModelInfo

    @property
    def directions(self) -> Mapping[str, Direction]:
        """The metric's."""
        return self.metric.goals.directions

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """The metric's."""
        return self.metric.goals.bounds

    @property
    def identity(self) -> str:
        """The metric's."""
        return self.metric.identity

    def measure(
        self, candidate: Candidate, *, seed: int | None = None, images: int | None = None, progress: Progress = silent
    ) -> Iterator[Score]:
        """One rung; see :class:`~autodiffusion_opt.objective.base.Objective`."""
        begun = time.perf_counter()
        what = f"the metric {self.metric.identity!r}"
        values = named_values(_call(self.metric.function, candidate, what), self.metric.goals.names, what)
        seconds = time.perf_counter() - begun
        yield Score.of(values, candidate, self.info, images=0, seconds=seconds, seconds_of={"metric": seconds})


def named_values(result: Any, names: Sequence[str], what: str) -> dict[str, float]:
    """A function's result as named values, those that are asked for first.

    Args:
        result: a number, where one value is asked for; or a dict of numbers.
        names: of the values.
        what: gave it, for messages.

    Raises:
        EvaluationError: for what is no number, not a number (NaN), or a dict without one of ``names``.
    """
    given = dict(result) if isinstance(result, Mapping) else dict.fromkeys(names[:1], result)
    missing = [name for name in names if name not in given]
    if missing:
        listed = ", ".join(map(str, given)) if isinstance(result, Mapping) else repr(result)
        raise EvaluationError(
            f"{what} must give a value named {' and '.join(map(repr, missing))}; got {listed or 'none'}"
        )
    values: dict[str, float] = {}
    for key in [*names, *(key for key in given if key not in names)]:
        try:
            values[str(key)] = float(given[key])
        except (TypeError, ValueError):
            raise EvaluationError(f"{what} must give numbers; {key} is {given[key]!r}") from None
        if math.isnan(values[str(key)]):
            raise EvaluationError(f"{what} must give numbers; {key} is not a number (NaN)")
    return values


def _call(function: Callable[[Any], Any], argument: Any, what: str) -> Any:
    try:
        return function(argument)
    except Exception as error:
        raise EvaluationError(f"{what} failed: {named_reason_of(error)}") from error


def _need_identity(what: str, function: object, identity: str) -> None:
    if not callable(function):
        raise UserError(f"{what}: function must be callable; got {function!r}")
    if not identity:
        raise UserError(
            f'{what} needs an identity, such as identity="my-metric-1": a function does not say what it computes, and '
            "a resumed study must know that it computes the same. Change it whenever the numbers change"
        )


def _check_goals(direction: str, minimise: Sequence[str], maximise: Sequence[str]) -> None:
    if direction not in ("minimize", "maximize"):
        raise UserError(f'direction must be "minimize" or "maximize"; got {direction!r}')
    for key, names in (("minimise", minimise), ("maximise", maximise)):
        if isinstance(names, str):  # a sequence too, of its letters
            raise UserError(f"{key} must be a list of names; got {names!r}: write [{names!r}]")
