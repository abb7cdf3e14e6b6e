"""What a run would do, without doing it: the space, what a trial costs, and how long it all takes. SQL is only read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.metrics import ImagesConfig
from autodiffusion_opt.objective.metrics.base import TeacherConfig
from autodiffusion_opt.optimizer import CandidateSampler, OptimizerConfig
from autodiffusion_opt.optimizer.base import kind_of
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.space import OWN, ModelInfo, cost
from autodiffusion_opt.study.config import StudyConfig, changes_since
from autodiffusion_opt.study.problem import LoadedSpace, load_space, needs_ranking
from autodiffusion_opt.study.run import Study
from autodiffusion_opt.study.sampler import named_optimizer, searching
from autodiffusion_opt.study.warm_starts import DYNAMIC_PROGRAMMING, trajectory_points
from autodiffusion_opt.trials.attributes import DEFINITION, RANKING, SPENT, START
from autodiffusion_opt.trials.database import without_password
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.opening import open_existing
from autodiffusion_opt.trials.studies import find_study

if TYPE_CHECKING:
    import torch

    from autodiffusion_opt.sampling.generate import ImageSampler

# The least and the greatest.
Range = tuple[float, float]


@dataclass(frozen=True)
class Stored:
    """What SQL holds of a study.

    Attributes:
        states: how many trials there are in each state.
        settled: how many need no further trial.
        changes: what differs between its definition there and the study's, a line each; `run` refuses to go on.
        ranking: of its layers; None: none.
        starts: names of its warm starts.
        spent: names of what was computed before its first trial.
    """

    states: Mapping[str, int]
    settled: int = 0
    changes: tuple[str, ...] = ()
    ranking: Any = None
    starts: frozenset[str] = frozenset()
    spent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Preparation:
    """What is sampled once, before the first trial, unless it is kept from an earlier run.

    Attributes:
        name: what it is for.
        images: sampled for it.
        nfe: calls of the denoiser for each.
    """

    name: str
    images: int
    nfe: int


@dataclass(frozen=True)
class DryRun:
    """What a run would do.

    Attributes:
        study: its name.
        model: the model.
        optimizer: the kind of its optimizer.
        storage: where its trials are kept, without a password.
        stored: trials there by state; empty: none.
        changes: what differs between the definition there and the study's: with any, the run is refused.
        trials: how many are wanted in all.
        trials_to_run: how many of these are left.
        parameters: of the space.
        log10_points: of the points of the box of parameters; None: a parameter is continuous.
        is_parametric: whether the parameters determine the candidate; False: each point stands for many.
        baselines: the label of each, with its candidate.
        start_from: the names of warm starts that are to be measured.
        rungs: numbers of images after which a trial has a value.
        is_stopped: whether a trial may be stopped after a rung.
        nfe: calls of the denoiser for one image, the range over the baselines.
        layer_runs: layers run for one image; None: not counted.
        flops: of the denoiser for one image; None: not counted.
        networks: these FLOPs in whole networks; None: not counted.
        images: of the trials that are left, the least (all but baselines stop at the first rung) and the most.
        preparations: what is sampled before the first trial.
        seconds_of: seconds for one image by part, measured here; the metric's own arithmetic is not in it.
        machine: on which these were measured.
        seconds: that all of it takes one worker.
    """

    study: str
    model: str
    optimizer: str
    storage: str
    stored: Mapping[str, int]
    changes: tuple[str, ...]
    trials: int
    trials_to_run: int
    parameters: int
    log10_points: float | None
    is_parametric: bool
    baselines: Mapping[str, Candidate]
    start_from: tuple[str, ...]
    rungs: tuple[int, ...]
    is_stopped: bool
    nfe: Range
    layer_runs: Range | None
    flops: Range | None
    networks: Range | None
    images: Range
    preparations: tuple[Preparation, ...]
    seconds_of: Mapping[str, float]
    machine: str
    seconds: Range

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = asdict(self)
        values["baselines"] = {label: candidate.to_dict() for label, candidate in self.baselines.items()}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def dry_run(
    study: Study, trials: int | None = None, optimizer: str | None = None, progress: Progress = silent
) -> DryRun:
    """Load a study's model, time two micro-batches of it, and say what :meth:`Study.run` would do.

    Nothing is written to SQL, no database is made, and the objective's reference is not computed.

    Args:
        study: the study.
        trials: the total wanted; None: what the study says.
        optimizer: another than the study's, by name.
        progress: is told of what takes long.

    Raises:
        UserError: for what a run would refuse too, as far as that shows without its objective.
    """
    config = study.config
    if config.pipeline is None:
        raise UserError(f"{config.path}: this study has no pipeline, whose cost a dry run could tell")
    chosen = config.optimizer if optimizer is None else named_optimizer(optimizer, config.path)
    wanted, stored = trials or config.trials, _stored(study)
    loaded = load_space(config, progress, ranking=stored.ranking, is_ranked=False)
    assert loaded.sampler is not None  # there is a pipeline
    sampler = searching(chosen, loaded.space, config.seed)
    rungs, is_stopped = _rungs(config, sampler)
    baselines = {loaded.own_label if name == OWN else name: each for name, each in loaded.baselines.items()}
    to_run = max(0, wanted - stored.settled)
    images = _images(to_run, max(0, len(baselines) - stored.settled), rungs, is_stopped)
    preparations = tuple(_preparations(config, chosen, loaded, rungs, stored)) if to_run else ()
    timed = next(iter(baselines.values()))
    progress("timing two micro-batches", 0, 0)
    seconds_of, machine = _timed(config, loaded.sampler, timed)
    a_call = seconds_of["sampling"] / cost.nfe(loaded.info, timed)
    before = sum(each.images * each.nfe for each in preparations) * a_call
    low, high = (before + count * sum(seconds_of.values()) for count in images)
    distributions = loaded.space.distributions()
    starts = getattr(chosen, "start_from", ())
    return DryRun(
        study=config.name,
        model=config.pipeline.model,
        optimizer=kind_of(chosen),
        storage=without_password(study.url),
        stored=stored.states,
        changes=stored.changes,
        trials=wanted,
        trials_to_run=to_run,
        parameters=len(distributions),
        log10_points=_log10_points(distributions.values()),
        is_parametric=loaded.space.fully_parametric,
        baselines=baselines,
        start_from=tuple(name for name in starts if name not in stored.starts),
        rungs=rungs,
        is_stopped=is_stopped,
        **_costs(loaded.info, list(baselines.values())),
        images=images,
        preparations=preparations,
        seconds_of=seconds_of,
        machine=machine,
        seconds=(low, high),
    )


def _stored(study: Study) -> Stored:
    """What SQL holds of a study, only read."""
    storage = open_existing(study.url)
    if storage is None:
        return Stored({})
    with closing(storage):
        known = find_study(storage, study.config.name)
        if known is None:
            return Stored({})
        history = History(known).refresh()
        attributes = dict(known.user_attrs)
        definition = attributes.get(DEFINITION)
        changes = changes_since(definition, study.config) if definition and history.is_measured else []
        states: dict[str, int] = {}
        for trial in history.trials.values():
            name = trial.state.name.lower()
            states[name] = states.get(name, 0) + 1
        return Stored(
            states,
            len(history.settled),
            tuple(changes),
            attributes.get(RANKING) or None,
            frozenset(history.given_names(START)),
            frozenset(str(entry["name"]) for entry in attributes.get(SPENT, ())),
        )


def _rungs(config: StudyConfig, sampler: BaseSampler) -> tuple[tuple[int, ...], bool]:
    """The numbers of images of a trial, and whether it may be stopped after the first of them."""
    rungs = tuple(getattr(config.objective, "rungs", ()))
    stops = isinstance(sampler, CandidateSampler) and sampler.pruner() is not None
    return rungs, len(rungs) > 1 and (getattr(config.objective, "pruner", None) is not None or stops)


def _images(trials: int, baselines: int, rungs: Sequence[int], is_stopped: bool) -> Range:
    """Of so many trials, the least and the most; baselines are never stopped."""
    most = trials * rungs[-1]
    measured_whole = min(trials, baselines)
    least = measured_whole * rungs[-1] + (trials - measured_whole) * rungs[0] if is_stopped else most
    return least, most


def _preparations(
    config: StudyConfig,
    optimizer: OptimizerConfig | BaseSampler,
    loaded: LoadedSpace,
    rungs: Sequence[int],
    stored: Stored,
) -> list[Preparation]:
    from autodiffusion_opt.sampling import ranking, trajectory

    made = []
    if needs_ranking(config) and stored.ranking is None:
        # A call for each kept input, the whole network and without each layer.
        calls = ranking.THIRDS * ranking.TIMES_PER_THIRD * (1 + len(loaded.info.removable))
        made.append(Preparation("layer ranking", ranking.IMAGES, ranking.THIRDS * ranking.STEPS_PER_THIRD + calls))
    for steps in _teachers(config):
        made.append(Preparation(f"teacher of {steps} steps", rungs[-1], sum(cost.calls(loaded.info.layout, steps))))
    starts = getattr(optimizer, "start_from", ())
    if DYNAMIC_PROGRAMMING in starts and DYNAMIC_PROGRAMMING not in stored.spent and loaded.info.stops_early:
        times = trajectory.trajectory_times(loaded.info, trajectory_points(loaded.space))
        made.append(Preparation("warm start dp", trajectory.IMAGES, len(times)))
    return made


def _teachers(config: StudyConfig) -> list[int]:
    """The numbers of steps of the teachers that the objective compares with, each once."""
    if not isinstance(config.objective, ImagesConfig):
        return []
    tables = [config.objective, *(config.objective.table(name) for name in config.objective.further)]
    return list(dict.fromkeys(table.teacher_steps for table in tables if isinstance(table, TeacherConfig)))


def _timed(config: StudyConfig, sampler: ImageSampler, candidate: Candidate) -> tuple[dict[str, float], str]:
    """Seconds of one image by part, and the machine."""
    import torch

    from autodiffusion_opt.sampling.timing import machine_name, two_micro_batches

    device = torch.device(sampler.pipeline.device)
    extractor = None
    if isinstance(config.objective, ImagesConfig):
        extractor = config.objective.extractor(device, config.base_of("objective"))
    measure: Callable[[torch.Tensor], object] = (lambda images: None) if extractor is None else extractor
    return two_micro_batches(sampler, candidate, measure), machine_name(device)


def _costs(info: ModelInfo, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """The range of each cost over candidates; None where it is not counted.

    Of one with an engine's cache only the calls are known before it is run.
    """
    known = [candidate for candidate in candidates if candidate.engine is None]

    def span(of: Callable[[ModelInfo, Candidate], float], is_counted: bool = True) -> Range | None:
        values = [of(info, candidate) for candidate in (candidates if of is cost.nfe else known)]
        return (min(values), max(values)) if is_counted and values else None

    return {
        "nfe": span(cost.nfe),
        "layer_runs": span(cost.layer_runs, bool(info.layers)),
        "flops": span(cost.flops, bool(info.flops)),
        "networks": span(cost.networks, bool(info.flops)),
    }


def _log10_points(distributions: Sequence[BaseDistribution] | Any) -> float | None:
    """Of how many points there are; None where one of the distributions is continuous."""
    counts = [_count(distribution) for distribution in distributions]
    return None if None in counts else sum(math.log10(count) for count in counts if count is not None)


def _count(distribution: BaseDistribution) -> int | None:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution | FloatDistribution) and distribution.step is not None:
        return round((distribution.high - distribution.low) / distribution.step) + 1
    return None
