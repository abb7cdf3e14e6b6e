"""A study's space and objective with the model loaded: what a trial needs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective import CandidateMetric, ImageMetric, Objective, ObjectiveConfig
from autodiffusion_opt.objective.goals import Bound
from autodiffusion_opt.objective.image_objective import ImageObjective
from autodiffusion_opt.objective.metrics import ImagesConfig
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.sampling.config import ConditionsConfig, PipelineConfig
from autodiffusion_opt.space import OWN, Compared, EngineSettings, ModelInfo, Space, SpaceConfig
from autodiffusion_opt.space.baselines import compared_with
from autodiffusion_opt.space.model_info import THIRDS
from autodiffusion_opt.study.config import StudyConfig
from autodiffusion_opt.zoo import EMBEDDED

if TYPE_CHECKING:
    from autodiffusion_opt.sampling.generate import ImageSampler


@dataclass(frozen=True, repr=False)
class LoadedSpace:
    """A study's model and space, without its objective.

    Attributes:
        info: the model's numbers.
        space: what may be chosen.
        sampler: makes images; None where the objective needs no pipeline.
    """

    info: ModelInfo
    space: Space
    sampler: ImageSampler | None

    @cached_property
    def baselines(self) -> dict[str, Candidate]:
        """What every study is compared with, by name: ``own`` first, then the usual schedules that differ from it.

        ``own`` is what the pipeline does by itself at the same number of calls, recorded from a call of its own; it
        need not be in the space. There is none without a pipeline, or where it cannot be written as a candidate.
        """
        usual = self._usual()
        own = self._own(next(iter(usual.values())))
        if own is None:
            return usual
        return {OWN: own} | {name: candidate for name, candidate in usual.items() if candidate != own}

    @property
    def own_label(self) -> str:
        """``own``, with the names of the usual schedules that are the same."""
        same = [name for name in self._usual() if name not in self.baselines]
        return " = ".join([OWN, *same])

    def _usual(self) -> dict[str, Candidate]:
        """What the space compares with; the first has as many steps as ``own`` is to have."""
        presets = self.space.presets() if isinstance(self.space, Compared) else {}
        return presets | self.space.baselines()

    def parameters(self, candidate: Candidate) -> dict[str, Any]:
        """A candidate as a point of the space's box; of the nearest in the space where it is outside."""
        return self.space.encode(self.space.nearest(candidate))

    def _own(self, like: Candidate) -> Candidate | None:
        """The pipeline's own, with as many steps as a usual schedule, and a guidance scale where that has one."""
        if self.sampler is None:
            return None
        from autodiffusion_opt.sampling.own import own_candidate

        try:
            return own_candidate(self.sampler, len(like.steps), with_guidance=like.guidance_scale is not None)
        except UserError as error:
            warnings.warn(f"there is no baseline {OWN!r}: {error}", stacklevel=4)
            return None


@dataclass(frozen=True, repr=False)
class Problem(LoadedSpace):
    """What is searched, and by which measure.

    Attributes:
        objective: what is minimised.
        fingerprint: of what the definition only names: ``model``, ``conditions``, ``reference``.
    """

    objective: Objective
    fingerprint: dict[str, str]

    def __repr__(self) -> str:
        pipeline = "no pipeline" if self.sampler is None else type(self.sampler.pipeline).__name__
        values = ", ".join(f"{direction} {name}" for name, direction in self.objective.directions.items())
        return f"Problem({pipeline}, {type(self.space).__name__} of {len(self.space.distributions())}, {values})"

    @cached_property
    def bounds(self) -> tuple[Bound, ...]:
        """What values must keep to; shares of a cost are of the pipeline's own schedule, or of the uniform one.

        Raises:
            UserError: for a share in an objective of the user's own, whose costs are not known.
        """
        given: tuple[Bound, ...] = getattr(self.objective, "bounds", ())
        if not any(bound.is_share for bound in given):
            return given
        own = compared_with(self.baselines)
        if own is None or not isinstance(self.objective, ImageObjective):
            raise UserError(f"{type(self.objective).__name__}: a bound must be a number, not a share of what own costs")
        return tuple(bound.of_own(self.objective.cost(bound.name, own)) if bound.is_share else bound for bound in given)


def load_problem(config: StudyConfig, ranking: Any = None, progress: Progress = silent) -> Problem:
    """Load a study's model, and make its space and objective for it.

    Args:
        config: the resolved study.
        ranking: the layer ranking that SQL holds; None: measured where the space needs one.
        progress: is told of what takes long: model, layers, reference.

    Raises:
        UserError: for a model, scheduler, device, features or reference that cannot be had, or a space that does not
            fit the model.
    """
    if config.pipeline is None:
        return _without_pipeline(config)
    loaded = load_space(config, progress, ranking=ranking)
    sampler = loaded.sampler
    assert sampler is not None  # there is a pipeline
    with _told_of(config, "objective"):
        objective = _objective(config, sampler, loaded.info, progress)
    fingerprint = {
        "model": _fingerprint(config, sampler.pipeline),
        "conditions": sampler.conditions.identity,
        "reference": objective.identity,
    }
    return Problem(loaded.info, loaded.space, sampler, objective, fingerprint)


def load_space(
    config: StudyConfig, progress: Progress = silent, *, ranking: Any = None, is_ranked: bool = True
) -> LoadedSpace:
    """Load a study's model, and make its space for it; the objective is not touched, and its reference only looked for.

    Args:
        config: the resolved study, which has a pipeline.
        progress: is told of what takes long: model, layers.
        ranking: the layer ranking that SQL holds; None: measured where the space needs one.
        is_ranked: False: a ranking that is not there is not measured; layers then stand in their own order.

    Raises:
        UserError: for a model, scheduler or device that cannot be had, or a space that does not fit the model.
    """
    from autodiffusion_opt.sampling.introspect import read_model_info
    from autodiffusion_opt.sampling.load import model_folder
    from autodiffusion_opt.sampling.own import own_shift

    with _told_of(config, "pipeline"):
        if config.pipeline_object is None and config.pipeline is not None:
            model_folder(config.pipeline.model, config.base_of("pipeline"))
    with _told_of(config, "objective"):
        _check_reference(config)
    sampler = load_sampler(config, progress)
    counted = isinstance(config.objective, ImagesConfig) and {"layers", "flops"} & {*config.objective.goals.names}
    needs_layers = isinstance(config.space, SpaceConfig) and config.space.needs_layers
    needs_branches = isinstance(config.space, SpaceConfig) and config.space.needs_branches
    with _told_of(config, "pipeline"):
        info = read_model_info(
            sampler.pipeline,
            need_layers=needs_layers or bool(counted),
            need_branches=needs_branches,
            shift=own_shift(sampler),
            call=sampler.call,
        )
    with _told_of(config, "space"):
        if isinstance(config.space, SpaceConfig):
            config.space.check_model(info)
    with _told_of(config, "pipeline"):
        if needs_ranking(config) and not (ranking or config.ranking) and not is_ranked:
            ranking = [info.removable] * THIRDS
        info = replace(info, ranking=tuple(map(tuple, _ranking(config, sampler, ranking, progress))))
    with _told_of(config, "space"):
        space = config.space.space(info) if isinstance(config.space, SpaceConfig) else config.space
        if isinstance(space, EngineSettings):
            from autodiffusion_opt.sampling.engines.install import check_engine

            check_engine(sampler.pipeline, space.knobs.greatest())
    return LoadedSpace(info, space, sampler)


def needs_ranking(config: StudyConfig) -> bool:
    """Whether the layers must be ranked before the space can be made."""
    return isinstance(config.space, SpaceConfig) and config.space.needs_ranking


def _check_reference(config: StudyConfig) -> None:
    """Raises UserError, before the model is loaded, for a reference that is not there."""
    from autodiffusion_opt.objective.references import existing_source

    reference = getattr(config.objective, "reference", None)
    if isinstance(config.objective, ObjectiveConfig) and isinstance(reference, str) and reference not in EMBEDDED:
        existing_source(reference, config.base_of("objective"))


def load_sampler(config: StudyConfig, progress: Progress = silent) -> ImageSampler:
    """A study's pipeline with its conditions. A pipeline from a hub is downloaded under the hub's own progress bars.

    Raises:
        UserError: for a pipeline or conditions that cannot be had.
    """
    from autodiffusion_opt.sampling.compatibility import check_call
    from autodiffusion_opt.sampling.conditions import existing_file, load_conditions
    from autodiffusion_opt.sampling.generate import ImageSampler

    table = config.pipeline
    if table is None:
        raise UserError(f"{config.path}: this study has no pipeline to make images with")
    described = getattr(config.objective, "conditions", ConditionsConfig())
    with _told_of(config, "objective.conditions"):
        if described.file is not None:
            existing_file(described.file, config.base_of("objective"))
    with _told_of(config, "pipeline"):
        pipeline = _pipeline(config, table, progress)
        check_call(type(pipeline), table.call)
    with _told_of(config, "objective.conditions"):
        conditions = load_conditions(described, pipeline, config.base_of("objective"))
    frames = getattr(config.objective, "frames", 1)
    return ImageSampler(pipeline, conditions, table.call, table.micro_batch, table.batch_size, frames)


def _pipeline(config: StudyConfig, table: PipelineConfig, progress: Progress) -> Any:
    from autodiffusion_opt.sampling.compatibility import check_call
    from autodiffusion_opt.sampling.load import check_pipeline, load_configured, model_folder, pipeline_class

    if config.pipeline_object is not None:
        check_pipeline(config.pipeline_object)
        return config.pipeline_object
    base = config.base_of("pipeline")
    folder = model_folder(table.model, base)
    if folder is not None:
        kind = pipeline_class(folder)
        if kind is not None:  # else the same is checked of the pipeline once it is loaded
            check_call(kind, table.call)
        progress(f"loading {table.model}", 0, 0)
    return load_configured(table, base)


def _fingerprint(config: StudyConfig, pipeline: Any) -> str:
    from autodiffusion_opt.sampling.fingerprint import fingerprint, fingerprint_object

    table = config.pipeline
    if config.pipeline_object is not None or table is None:
        return fingerprint_object(pipeline)
    return fingerprint(pipeline, table.model, table.revision, table.variant, config.base_of("pipeline"))


def _ranking(config: StudyConfig, sampler: ImageSampler, stored: Any, progress: Progress) -> Any:
    """The layer ranking: as stored, or measured under the study's own conditions; none where no space needs it."""
    if not needs_ranking(config):
        return ()
    if stored or config.ranking:
        return stored or config.ranking
    from autodiffusion_opt.sampling.ranking import rank_layers

    return rank_layers(sampler, seed=getattr(config.objective, "seed", 0), progress=progress)


def _objective(config: StudyConfig, sampler: ImageSampler, info: ModelInfo, progress: Progress) -> Objective:
    if isinstance(config.objective, ObjectiveConfig | ImageMetric):
        return config.objective.objective(sampler, info, config.base_of("objective"), progress)
    if isinstance(config.objective, CandidateMetric):
        return config.objective.bound_to(info)
    return config.objective


def _without_pipeline(config: StudyConfig) -> Problem:
    info = config.model_info or getattr(config.space, "info", None)
    if isinstance(config.space, SpaceConfig):
        if info is None:
            raise UserError(
                f"{config.path}: without a pipeline the space needs the model's numbers: give "
                "model_info=ado.ModelInfo(train_steps=1000), or a pipeline"
            )
        space = config.space.space(info)
    else:
        space = config.space
    info = info or ModelInfo(train_steps=1000)
    objective = config.objective.bound_to(info) if isinstance(config.objective, CandidateMetric) else config.objective
    assert isinstance(objective, Objective)  # the others need a pipeline, which was checked
    return Problem(info, space, None, objective, {"model": repr(info), "reference": objective.identity})


@contextmanager
def _told_of(config: StudyConfig, table: str) -> Iterator[None]:
    """A user's mistake that shows here is a mistake in this table of the study."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{config.path}: {table}: {error}") from None
