"""A study's best candidate, as a folder to ship: JSON, numbers, a script, and plain lists where diffusers takes any."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective import MetricConfig
from autodiffusion_opt.study.config import PYTHON, StudyConfig
from autodiffusion_opt.study.results import Result, StoredStudy, candidate_file

if TYPE_CHECKING:
    from autodiffusion_opt.sampling.generate import ImageSampler

CANDIDATE = "candidate.json"
PLAIN = "plain.json"


def export_study(stored: StoredStudy, config: StudyConfig, sampler: ImageSampler | None, folder: Path) -> list[Path]:
    """Write the best candidate of a study to ``folder``; the files written.

    Args:
        stored: the study in SQL.
        config: what it says.
        sampler: its pipeline; None for a study without a pipeline.
        folder: created if need be; files of the same names are replaced.

    Raises:
        UserError: for a study that has no complete trial, or a folder that cannot be written.
    """
    best = stored.top(1)[0]
    plain = {} if sampler is None else plain_lists(sampler.pipeline.scheduler, best.candidate)
    files = {
        CANDIDATE: json.dumps(candidate_file(best, stored.name, stored.definition), indent=2) + "\n",
        "README.md": _readme(stored, config, best, plain),
    }
    if sampler is not None and config.pipeline is not None and not config.pipeline.model.startswith(f"{PYTHON}:"):
        files["sample.py"] = _script(config, sampler.pipeline, best.candidate)
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
    guesses: dict[str, list[float]] = {"timesteps": times} if "timesteps" in taken else {}
    if "sigmas" in taken:
        train = scheduler.config.num_train_timesteps
        shift = float(scheduler.config.get("shift") or 1.0)
        # Flow matching: the scheduler applies σ -> s·σ / (1 + (s - 1)·σ) to what it is given; this is its inverse.
        levels = [time / train for time in candidate.times]
        guesses["sigmas"] = [level / (shift - (shift - 1) * level) for level in levels]
    return guesses


def _gives(scheduler: Any, key: str, values: list[float], wanted: Any) -> bool:
    """Whether the untouched scheduler, given the list, has the wanted time steps and noise levels."""
    try:
        scheduler.set_timesteps(**{key: values})
    except (ValueError, TypeError, AssertionError, AttributeError, RuntimeError):
        return False  # it does not take such a list
    return all(_close(scheduler, wanted, name) for name in ("timesteps", "sigmas"))


def _close(scheduler: Any, wanted: Any, name: str) -> bool:
    has, needs = (np.asarray(getattr(each, name, np.zeros(0)), dtype=np.float64) for each in (scheduler, wanted))
    return has.shape == needs.shape and bool(np.allclose(has, needs, rtol=1e-5, atol=1e-5))


def _script(config: StudyConfig, pipeline: Any, candidate: Candidate) -> str:
    table = config.pipeline
    assert table is not None
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
        f'"""Sample with the best candidate of the study {config.name}."""',
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


def _readme(stored: StoredStudy, config: StudyConfig, best: Result, plain: Mapping[str, list[float]]) -> str:
    model = "" if config.pipeline is None else f"`{config.pipeline.model}`, "
    optimizer = getattr(config.optimizer, "kind", type(config.optimizer).__name__)
    names = stored.value_names
    lines = [
        f"# {config.name}",
        "",
        f"{model}{len(best.candidate.steps)} steps: `{best.candidate}`.",
        "",
        f"Found by `{optimizer}` in {len(stored.complete())} trials; {_objective_text(config)} "
        "These are values of the search, for ranking; "
        f"`autodiffusion-opt verify {CANDIDATE}` re-scores them on fresh seeds.",
        "",
        f"| schedule | {' | '.join(names)} |",
        f"| --- |{' --- |' * len(names)}",
        *(f"| {name} | {_row(result)} |" for name, result in stored.baselines().items()),
        f"| **best** (trial {best.trial}) | {_row(best, '**')} |",
        "",
        f"Use it: {'`python sample.py`, or' if model and not model.startswith(f'`{PYTHON}:') else ''}".rstrip(),
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
            "that takes it. It was checked to give the same time steps and noise levels.",
        ]
    elif model:
        lines += ["", "This scheduler or this candidate cannot be expressed as a plain list of diffusers."]
    return "\n".join(lines) + "\n"


def _objective_text(config: StudyConfig) -> str:
    objective = config.objective
    if isinstance(objective, MetricConfig):
        features = objective.features if isinstance(objective.features, str) else objective.features.identity
        return (
            f"{objective.kind} on {objective.images} images, features `{features}`, reference `{objective.reference}`."
        )
    return f"the objective `{getattr(objective, 'identity', type(objective).__name__)}`."


def _row(result: Result, mark: str = "") -> str:
    return " | ".join(f"{mark}{value:.4g}{mark}" for value in result.values.values())


def _write(folder: Path, files: Mapping[str, str]) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"-o: {folder} cannot be written: {error.strerror}") from None
    return [folder / name for name in files]
