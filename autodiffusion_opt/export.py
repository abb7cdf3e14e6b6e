"""A study's best candidate, as a folder to ship: JSON, numbers, a script, and plain lists where diffusers takes any."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from autodiffusion_opt.study.problem import load
from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.study.config import StudyConfig, stored_config
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.study.results import candidate_file, study_name, top_trials
from autodiffusion_opt.trials.storage import open_storage, storage_url
from autodiffusion_opt.study.run import baseline_trials, need_study
from autodiffusion_opt.trials.history import value_of

CANDIDATE = "candidate.json"
PLAIN = "plain.json"


def export_study(study: str, storage: str | None, folder: Path, progress: Progress = silent) -> list[Path]:
    """Write the best candidate of a study to ``folder``; the files written.

    Args:
        study: its name, or its TOML file.
        storage: the database.
        folder: created if need be; files of the same names are replaced.
        progress: is told that the model is loaded.

    Raises:
        UserError: for a study that is not in SQL or has no complete trial, or a folder that cannot be written.
    """
    name = study_name(study)
    trials, definition = top_trials(study, storage, 1)
    plan = stored_config(name, Path(name), definition)
    candidate = Candidate.from_json(trials[0].user_attrs["candidate"])
    pipeline = load(plan, progress)
    plain = plain_lists(pipeline.scheduler, candidate)
    everything = need_study(open_storage(storage_url(storage), create=False), name, storage_url(storage)).get_trials()
    files = {
        CANDIDATE: json.dumps(candidate_file(trials[0], name, definition), indent=2) + "\n",
        "README.md": _readme(plan, trials[0], candidate, everything, plain),
        "sample.py": _script(plan, pipeline, candidate),
    }
    if plain:
        files[PLAIN] = json.dumps(plain) + "\n"
    return _write(folder, files)


def plain_lists(scheduler: Any, candidate: Candidate) -> dict[str, list[float]]:
    """``timesteps`` or ``sigmas`` with which the untouched scheduler samples as the candidate says; empty for none.

    Only what was tried is given: the list, set on a copy of the untouched scheduler, must give the candidate's own
    time steps and noise levels. A candidate that removes layers has none.
    """
    from autodiffusion_opt.sampling.schedule import install_schedule

    if any(candidate.removed):
        return {}
    wanted = copy.deepcopy(scheduler)
    install_schedule(wanted, candidate.times)
    wanted.set_timesteps(len(candidate.steps))
    for key, values in _guesses(scheduler, candidate).items():
        if _gives(copy.deepcopy(scheduler), key, values, wanted):
            return {key: values}
    return {}


def _guesses(scheduler: Any, candidate: Candidate) -> dict[str, list[float]]:
    taken = inspect.signature(scheduler.set_timesteps).parameters
    times = [int(time) if time.is_integer() else time for time in candidate.times]
    found: dict[str, list[float]] = {"timesteps": times} if "timesteps" in taken else {}
    if "sigmas" in taken:
        train = scheduler.config.num_train_timesteps
        shift = float(scheduler.config.get("shift") or 1.0)
        # Flow matching: the scheduler applies σ -> s·σ / (1 + (s - 1)·σ) to what it is given; this is its inverse.
        levels = [time / train for time in candidate.times]
        found["sigmas"] = [level / (shift - (shift - 1) * level) for level in levels]
    return found


def _gives(scheduler: Any, key: str, values: list[float], wanted: Any) -> bool:
    """Whether the untouched scheduler, given the list, has the wanted time steps and noise levels."""
    try:
        scheduler.set_timesteps(**{key: values})
    except (ValueError, TypeError, AssertionError, AttributeError, RuntimeError):
        return False  # it does not take such a list
    return all(_close(scheduler, wanted, name) for name in ("timesteps", "sigmas"))


def _close(one: Any, other: Any, name: str) -> bool:
    mine, theirs = (np.asarray(getattr(each, name, np.zeros(0)), dtype=np.float64) for each in (one, other))
    return mine.shape == theirs.shape and bool(np.allclose(mine, theirs, rtol=1e-5, atol=1e-5))


def _script(plan: StudyConfig, pipeline: Any, candidate: Candidate) -> str:
    table = plan.space.pipeline
    settings = {
        "scheduler": None if table.scheduler is None else type(pipeline.scheduler).__name__,
        "scheduler_settings": table.scheduler_settings or None,
        "revision": table.revision,
        "variant": table.variant,
        "dtype": None if table.dtype == "float32" else table.dtype,
    }
    arguments = "".join(f", {key}={value!r}" for key, value in settings.items() if value is not None)
    call = {**table.call, **({"prompt": "a photograph"} if _takes_prompt(pipeline) else {})}
    words = "".join(f"{key}={value!r}, " for key, value in call.items())
    lines = [
        f'"""Sample with the best candidate of the study {plan.name}."""',
        "",
        "from pathlib import Path",
        "",
        "import autodiffusion_opt as ado",
        "",
        f"pipeline = ado.load_pipeline({table.model!r}{arguments})",
        f'ado.apply(pipeline, Path(__file__).parent / "{CANDIDATE}")',
        f'pipeline({words}num_inference_steps={len(candidate.steps)}).images[0].save("image.png")',
    ]
    return "\n".join(lines) + "\n"


def _takes_prompt(pipeline: Any) -> bool:
    return "prompt" in inspect.signature(type(pipeline).__call__).parameters


def _readme(
    plan: StudyConfig,
    trial: FrozenTrial,
    candidate: Candidate,
    trials: list[FrozenTrial],
    plain: Mapping[str, list[float]],
) -> str:
    rows = [f"| {name} | {_four(value_of(one))} |" for name, one in baseline_trials(trials).items()]
    objective = plan.objective
    lines = [
        f"# {plan.name}",
        "",
        f"`{plan.space.pipeline.model}`, {len(candidate.steps)} steps: `{candidate}`.",
        "",
        f"Found by `{plan.optimizer.kind}` in {len([one for one in trials if value_of(one) is not None])} trials; "
        f"{objective.kind} on {objective.images} images, features `{objective.features}`, reference "
        f"`{objective.reference}`. These are values of the search, for ranking; "
        f"`autodiffusion-opt verify {CANDIDATE}` re-scores them on fresh seeds.",
        "",
        "| schedule | value |",
        "| --- | --- |",
        *rows,
        f"| **best** (trial {trial.number}) | **{_four(value_of(trial))}** |",
        "",
        "Use it: `python sample.py`, or",
        "",
        "```python",
        "import autodiffusion_opt as ado",
        f'pipeline = ado.apply(pipeline, "{CANDIDATE}")  # any pipeline of this model',
        "```",
    ]
    if plain:
        key, values = next(iter(plain.items()))
        lines += [
            "",
            f"Without autodiffusion-opt: `scheduler.set_timesteps({key}={values})`, or pass `{key}=` to a call",
        ]
        lines += ["that takes it. It was checked to give the same time steps and noise levels."]
    else:
        lines += ["", "This scheduler or this candidate cannot be expressed as a plain list of diffusers."]
    return "\n".join(lines) + "\n"


def _four(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _write(folder: Path, files: Mapping[str, str]) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"-o: {folder} cannot be written: {error.strerror}") from None
    return [folder / name for name in files]
