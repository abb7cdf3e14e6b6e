"""Binds a plan's space and objective to its model: what a trial needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.study.config import StudyConfig
from autodiffusion_opt.progress import Progress, silent

if TYPE_CHECKING:
    from autodiffusion_opt.objective.fid import FidObjective
    from autodiffusion_opt.space import ModelInfo, Space


@dataclass(frozen=True)
class Problem:
    """A study's parts with the model loaded.

    Attributes:
        fingerprint: of what the definitions only name: ``model``, ``conditions``, ``reference``.
    """

    pipeline: Any
    info: ModelInfo
    space: Space
    objective: FidObjective
    fingerprint: dict[str, str]


def bind(plan: StudyConfig, ranking: Any = None, progress: Progress = silent) -> Problem:
    """Load a plan's model, and bind its space and objective to it.

    Args:
        plan: the resolved definitions.
        ranking: the layer ranking that SQL holds; None: measured where the space needs one.
        progress: is told of what takes long: model, layers, reference.

    Raises:
        UserError: for a model, scheduler, device, features or reference that cannot be had, or a space that does not
            fit the model.
    """
    from autodiffusion_opt.objective.conditions import bind_conditions
    from autodiffusion_opt.objective.fid import FidObjective
    from autodiffusion_opt.sampling.introspect import read_model_info
    from autodiffusion_opt.sampling.fingerprint import fingerprint
    from autodiffusion_opt.sampling.compatibility import check_call

    table, base = plan.space.pipeline, plan.path.resolve().parent
    with _named(plan, "space.pipeline"):
        pipeline = load(plan, progress)
        check_call(pipeline, table.call)
    with _named(plan, "objective.conditions"):
        conditions = bind_conditions(plan.objective.conditions, pipeline, base)
    info = read_model_info(pipeline, layers=True, ranking=_ranking(plan, pipeline, conditions, ranking, progress))
    with _named(plan, "space"):
        space = plan.space.bind(info)
    with _named(plan, "objective"):
        objective = FidObjective(
            plan.objective,
            pipeline,
            batch_size=table.batch_size,
            micro_batch=table.micro_batch,
            call=table.call,
            conditions=conditions,
            layers=info.layers,
            base=base,
            progress=progress,
        )
    found = {
        "model": fingerprint(pipeline, table.model, table.revision, table.variant),
        "conditions": getattr(conditions, "identity", ""),
        "reference": objective.identity,
    }
    return Problem(pipeline, info, space, objective, found)


@contextmanager
def _named(plan: StudyConfig, table: str) -> Iterator[None]:
    """A user's mistake found here is one in this table of the study."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{plan.path}: {table}: {error}") from None


def load(plan: StudyConfig, progress: Progress = silent) -> Any:
    """The pipeline that a plan's space names. One from a hub is downloaded under the hub's own progress bars."""
    from autodiffusion_opt.sampling.load import load_definition, model_folder

    table = plan.space.pipeline
    if model_folder(table.model) is not None:
        progress(f"loading {table.model}", 0, 0)
    return load_definition(table)


def _ranking(plan: StudyConfig, pipeline: Any, conditions: Any, stored: Any, progress: Progress) -> Any:
    if not plan.space.needs_ranking:
        return ()
    if stored or plan.ranking:
        return stored or plan.ranking
    from autodiffusion_opt.sampling.ranking import rank_layers

    table = plan.space.pipeline
    return rank_layers(
        pipeline,
        micro_batch=table.micro_batch,
        seed=plan.objective.seed,
        conditions=conditions,
        call=table.call,
        progress=progress,
    )
