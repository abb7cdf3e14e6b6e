"""What comes out of a study: its best candidates, as files, and as images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from autodiffusion_opt.study.problem import load
from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.catalogue import entries, find_candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.study.config import StudyConfig, load_study_config, load_space, stored_config
from autodiffusion_opt.progress import Progress, counted, silent
from autodiffusion_opt.trials.storage import open_storage, storage_url, without_password
from autodiffusion_opt.study.run import DEFINITION, FILE, RANKING, WANTED, best_trials, need_study
from autodiffusion_opt.trials.history import value_of

if TYPE_CHECKING:
    import torch

    from autodiffusion_opt.sampling.layers import Layer


def top_trials(study: str, storage: str | None, count: int) -> tuple[list[FrozenTrial], dict[str, Any]]:
    """The best trials of a study in SQL, and its definition. Raises UserError where there is none."""
    url = storage_url(storage)
    found = need_study(open_storage(url, create=False), study_name(study), url)
    trials = best_trials(found.get_trials(deepcopy=False), found.study_name, count)
    more = {key: found.user_attrs[key] for key in (WANTED, FILE, RANKING) if key in found.user_attrs}
    return trials, more | found.user_attrs.get(DEFINITION, {})


def candidate_file(trial: FrozenTrial, study: str, definition: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON file of a trial's candidate: itself, and where it comes from."""
    source = {"study": study, "trial": trial.number, "value": value_of(trial), "definition": dict(definition)}
    return {**json.loads(trial.user_attrs["candidate"]), "source": source}


def resolve(given: str, study: str | None, storage: str | None) -> tuple[StudyConfig, Candidate]:
    """The candidate of a JSON file or of a study (its best), and the plan that it belongs to.

    A candidate's name in ``studies/candidates/`` does for its file. A file says where it comes from,
    unless ``study`` names another.
    Raises UserError for a file that is no candidate, or a study that is not in SQL.
    """
    path = find_candidate(given)
    if path is not None:
        candidate = Candidate.load(path)
        return (load_study_config(study) if study else _plan_in(path)), candidate
    trials, definition = top_trials(given, storage, 1)
    name = study_name(given)
    where = Path(f"{name} in {without_password(storage_url(storage))}")
    return stored_config(name, where, definition), _candidate(trials[0])


def _plan_in(path: Path) -> StudyConfig:
    source = json.loads(path.read_text(encoding="utf-8"))
    source = source.get("source") if isinstance(source, dict) else None
    if not isinstance(source, dict) or "definition" not in source:
        raise UserError(f"{path}: does not say which model it is for; name a study that does with --study")
    return stored_config(str(source.get("study", path.stem)), path, source["definition"])


def listed_layers(name: str) -> tuple[list[Layer], int]:
    """The layers of a model or of a space's model, and the FLOPs of its denoiser's whole forward pass."""
    from autodiffusion_opt.sampling.layers import list_layers, total_flops
    from autodiffusion_opt.sampling.load import denoiser_of, load_definition, load_pipeline

    is_space = name.endswith(".toml") or name in {entry.name for entry in entries(["spaces"])}
    pipeline = load_definition(load_space(name).pipeline) if is_space else load_pipeline(name, device="cpu")
    denoiser = denoiser_of(pipeline)
    return list_layers(denoiser), total_flops(denoiser)


def sample_blocks(
    plan: StudyConfig, candidate: Candidate, count: int, seed: int, progress: Progress = silent
) -> dict[str, torch.Tensor]:
    """Caption -> images, of the candidate and of the uniform one, from the same noise."""
    import torch

    from autodiffusion_opt.objective.conditions import bind_conditions
    from autodiffusion_opt.sampling.introspect import read_model_info
    from autodiffusion_opt.sampling.apply import generate
    from autodiffusion_opt.space.baselines import leading

    pipeline, table = load(plan, progress), plan.space.pipeline
    steps = leading(read_model_info(pipeline), len(candidate.steps))
    uniform = Candidate.from_time_steps(steps, guidance_scale=candidate.guidance_scale)
    conditions = bind_conditions(plan.objective.conditions, pipeline, plan.path.resolve().parent)
    found: dict[str, torch.Tensor] = {}
    for name, one in (("best", candidate), ("uniform", uniform)):
        batches = generate(
            pipeline,
            one,
            range(count),
            seed=seed,
            batch_size=table.batch_size,
            micro_batch=table.micro_batch,
            conditions=conditions,
            call=table.call,
        )
        told = counted((batch.cpu() for batch in batches), progress, "sampling images", 2 * count, count * len(found))
        found[f"{name} {one}"] = torch.cat(list(told))
    return found


def _candidate(trial: FrozenTrial) -> Candidate:
    return Candidate.from_json(trial.user_attrs["candidate"])


def study_name(study: str) -> str:
    """The name of a study that is given by name or by its file."""
    return Path(study).stem if study.endswith(".toml") else study
