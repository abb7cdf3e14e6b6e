"""A study whose parts were handed over in Python: each a name, a table, or an object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optuna.samplers import BaseSampler

from autodiffusion_opt.catalogue import Section
from autodiffusion_opt.config import build, combine
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective import CandidateMetric, ImageMetric, Objective, ObjectiveConfig
from autodiffusion_opt.optimizer import OptimizerConfig
from autodiffusion_opt.paths import folder_of
from autodiffusion_opt.sampling.config import PipelineConfig
from autodiffusion_opt.space import Space, SpaceConfig
from autodiffusion_opt.space.model_info import ModelInfo
from autodiffusion_opt.study.config import (
    PYTHON,
    StudyConfig,
    attempt,
    build_objective,
    build_optimizer,
    build_space,
    check_name,
    find_part,
)
from autodiffusion_opt.text import quoted

# Keys of [pipeline] that may be set beside a pipeline object; the others say how one is loaded.
OBJECT_KEYS = {"batch_size", "micro_batch", "call"}


def python_study_config(
    name: str,
    *,
    pipeline: Any,
    space: Any,
    objective: Any,
    optimizer: Any,
    trials: int,
    seed: int,
    model_info: ModelInfo | None,
) -> StudyConfig:
    """A study whose parts were handed over in Python: each a name, a table, or an object. Raises UserError."""
    where = f"Study({quoted(name)})"
    if not isinstance(name, str) or not name:
        raise UserError(f"a study must have a name; got {quoted(name)}")
    check_name(name)
    errors: list[UserError] = []
    for key, number, least in (("trials", trials, 1), ("seed", seed, 0)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            errors.append(UserError(f"{where}: {key} must be a whole number of at least {least}; got {number!r}"))

    bases: dict[str, Path] = {}

    def part(key: str, section: Section | None, given: Any, make: Callable[[Any, str], Any]) -> Any:
        if isinstance(given, str):
            named = find_part(key, section, given, f"{where}: {key}")
            bases.update({} if named.file is None else {key: folder_of(named.file)})
            return make(named.table, named.where)
        return make(given, f"{where}: {key}") if isinstance(given, Mapping) else given

    def pipeline_part() -> tuple[PipelineConfig | None, Any]:
        if pipeline is None:
            return None, None
        if isinstance(pipeline, str | Mapping) and not (
            isinstance(pipeline, Mapping) and not isinstance(pipeline.get("model", ""), str)
        ):
            return part("pipeline", None, pipeline, lambda table, at: build(PipelineConfig, table, at)), None
        return _pipeline_object(pipeline, f"{where}: pipeline")

    table, pipeline_object = attempt(errors, pipeline_part) or (None, None)
    space = attempt(errors, lambda: part("space", "spaces", space, build_space))
    objective = attempt(errors, lambda: part("objective", "objectives", objective, build_objective))
    optimizer = attempt(errors, lambda: part("optimizer", None, optimizer, build_optimizer))
    combine(errors)
    _check_parts(where, space, objective, optimizer)
    if pipeline is None and not isinstance(objective, CandidateMetric) and not isinstance(objective, Objective):
        raise UserError(f"{where}: pipeline must be given: this objective generates images")
    return StudyConfig(
        name,
        where,
        Path.cwd(),
        table,
        space,
        objective,
        optimizer,
        trials,
        seed,
        pipeline_object,
        model_info=model_info,
        bases=bases,
    )


def _pipeline_object(given: Any, where: str) -> tuple[PipelineConfig, Any]:
    """A pipeline object, alone or as the ``model`` of a table, and the table that goes with it."""
    settings = dict(given) if isinstance(given, Mapping) else {"model": given}
    pipeline = settings.pop("model")
    wrong = sorted(set(settings) - OBJECT_KEYS)
    if wrong:
        raise UserError(
            f"{where}: beside a pipeline object only {', '.join(sorted(OBJECT_KEYS))} may be set; got "
            f"{', '.join(wrong)}: set it on the pipeline itself"
        )
    return build(PipelineConfig, {**settings, "model": f"{PYTHON}:{type(pipeline).__name__}"}, where), pipeline


def _check_parts(where: str, space: Any, objective: Any, optimizer: Any) -> None:
    """Raises UserError for objects that are none of what a study is made of."""
    if not isinstance(space, SpaceConfig | Space):
        raise UserError(f"{where}: space must be a name, a table or a Space; got {space!r}")
    if not isinstance(objective, ObjectiveConfig | ImageMetric | CandidateMetric | Objective):
        hint = (
            ": wrap the function, ado.ImageMetric(f, images=200, identity=...) or ado.CandidateMetric(f, identity=...)"
            if callable(objective)
            else ""
        )
        raise UserError(f"{where}: objective must be a name, a table or an objective; got {objective!r}{hint}")
    if not isinstance(optimizer, OptimizerConfig | BaseSampler):
        raise UserError(f"{where}: optimizer must be a name, a table or an Optuna sampler; got {optimizer!r}")
