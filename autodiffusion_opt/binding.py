"""Binds a plan's space and objective to its model: what a trial needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.plan import StudyPlan
from autodiffusion_opt.progress import Progress, silent

if TYPE_CHECKING:
    from autodiffusion_opt.objective.fid import FidObjective
    from autodiffusion_opt.space import ModelFacts, Space


@dataclass(frozen=True)
class Bound:
    """A study's parts with the model loaded.

    Attributes:
        fingerprint: of what the definitions only name: ``model``, ``conditions``, ``reference``.
    """

    pipeline: Any
    facts: ModelFacts
    space: Space
    objective: FidObjective
    fingerprint: dict[str, str]


def bind(plan: StudyPlan, ranking: Any = None, progress: Progress = silent) -> Bound:
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
    from autodiffusion_opt.sampling.facts import read_facts
    from autodiffusion_opt.sampling.fingerprint import fingerprint
    from autodiffusion_opt.sampling.pairing import check_call

    table, base = plan.space.pipeline, plan.path.resolve().parent
    with _named(plan, "space.pipeline"):
        pipeline = load(plan, progress)
        check_call(pipeline, table.call)
    with _named(plan, "objective.conditions"):
        conditions = bind_conditions(plan.objective.conditions, pipeline, base)
    facts = read_facts(pipeline, layers=True, ranking=_ranking(plan, pipeline, conditions, ranking, progress))
    with _named(plan, "space"):
        space = plan.space.bind(facts)
    with _named(plan, "objective"):
        objective = FidObjective(
            plan.objective,
            pipeline,
            batch_size=table.batch_size,
            micro_batch=table.micro_batch,
            call=table.call,
            conditions=conditions,
            layers=facts.layers,
            base=base,
            progress=progress,
        )
    found = {
        "model": fingerprint(pipeline, table.model, table.revision, table.variant),
        "conditions": getattr(conditions, "identity", ""),
        "reference": objective.identity,
    }
    return Bound(pipeline, facts, space, objective, found)


@contextmanager
def _named(plan: StudyPlan, table: str) -> Iterator[None]:
    """A user's mistake found here is one in this table of the study."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{plan.path}: {table}: {error}") from None


def load(plan: StudyPlan, progress: Progress = silent) -> Any:
    """The pipeline that a plan's space names. One from a hub is downloaded under the hub's own progress bars."""
    from autodiffusion_opt.sampling.loading import load_definition, model_folder

    table = plan.space.pipeline
    if model_folder(table.model) is not None:
        progress(f"loading {table.model}", 0, 0)
    return load_definition(table)


def _ranking(plan: StudyPlan, pipeline: Any, conditions: Any, stored: Any, progress: Progress) -> Any:
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
