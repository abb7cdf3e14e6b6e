"""A study's best candidate, as a folder to ship: JSON, numbers, a script, and plain lists where diffusers takes any.

The script needs this library and the folder that it is in, and runs from anywhere.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.objective import ObjectiveConfig
from autodiffusion_opt.study.config import PYTHON, StudyConfig
from autodiffusion_opt.study.results import Result, StoredStudy, candidate_file
from autodiffusion_opt.text import code_in_markdown, in_markdown
from autodiffusion_opt.zoo import EMBEDDED

if TYPE_CHECKING:
    from autodiffusion_opt.sampling.generate import ImageSampler

CANDIDATE = "candidate.json"
SCHEDULER = "scheduler_config.json"  # as diffusers calls it, so that `from_pretrained` finds it
PLAIN = "plain.json"


def export_study(
    stored: StoredStudy, config: StudyConfig, sampler: ImageSampler | None, folder: Path, pick: int = 1
) -> list[Path]:
    """Write a candidate of a study to ``folder``, the best unless another is picked; the files written.

    Args:
        stored: the study in SQL.
        config: what it says.
        sampler: its pipeline; None for a study without a pipeline.
        folder: created if need be; files of the same names are replaced.
        pick: its rank among the best, or in the front, from 1.

    Raises:
        UserError: for a study that has no complete trial or not so many, or a folder that cannot be written.
    """
    from autodiffusion_opt.sampling.plain_lists import plain_lists

    best = stored.pick(pick)
    scheduler = None if sampler is None else sampler.pipeline.scheduler
    plain = {} if scheduler is None else plain_lists(scheduler, best.candidate)
    files = {
        CANDIDATE: json.dumps(candidate_file(best, stored.name, stored.definition), indent=2) + "\n",
        "README.md": _readme(stored, config, best, pick, plain, type(scheduler).__name__),
    }
    if scheduler is not None:
        files[SCHEDULER] = json.dumps(scheduler_config(scheduler), indent=2, default=_listed) + "\n"
    if sampler is not None and config.pipeline is not None and not _is_python(config):
        files["sample.py"] = _script(config, sampler, len(best.candidate.steps))
    if plain:
        files[PLAIN] = json.dumps(plain) + "\n"
    return write_files(folder, files)


def scheduler_config(scheduler: Any) -> dict[str, Any]:
    """All that the scheduler is configured with: each argument that it would be made with, defaults too.

    The model's own scheduler, a short name's implied settings and those of the study are in it, so that nothing is
    left to what another version, or another file of the model, has for a default.
    """
    arguments = inspect.signature(type(scheduler).__init__).parameters
    return {key: value for key, value in scheduler.config.items() if key in arguments}


def _script(config: StudyConfig, sampler: ImageSampler, steps: int) -> str:
    """A script that makes image 0's prompt or class with the candidate beside it, wherever it is run from."""
    from autodiffusion_opt.sampling.apply import saved_candidate

    assert config.pipeline is not None
    pipeline, table, folder = sampler.pipeline, config.pipeline, _local_folder(config)
    loaded = {
        "scheduler": repr(type(pipeline.scheduler).__name__),
        "scheduler_settings": f'json.loads((HERE / "{SCHEDULER}").read_text(encoding="utf-8"))',
        "revision": table.revision and repr(table.revision),
        "variant": table.variant and repr(table.variant),
        "dtype": None if table.dtype == "float32" else repr(table.dtype),
        "with_candidate": None if saved_candidate(folder) is None else "False",
    }
    arguments = {**sampler.conditions.arguments(pipeline, [0]), **table.call, "num_inference_steps": steps}
    called = {key: repr(value) for key, value in arguments.items()}
    lines = [
        f"# Sample with the best candidate of the study {config.name!r}.",
        "import json",
        "from pathlib import Path",
        "",
        "import torch",
        "",
        "import autodiffusion_opt as ado",
        "",
        "HERE = Path(__file__).parent",
        "pipeline = ado.load_pipeline(",
        f"    {table.model if folder is None else str(folder)!r},",
        *(f"    {key}={value}," for key, value in loaded.items() if value),
        ")",
        f'ado.apply(pipeline, HERE / "{CANDIDATE}")',
        *_labels_put(sampler),
        "image = pipeline(",
        *(f"    {key}={value}," for key, value in called.items()),
        "    generator=torch.Generator().manual_seed(0),",
        ").images[0]",
        'image.save("image.png")',
    ]
    return "\n".join(lines) + "\n"


def _is_python(config: StudyConfig) -> bool:
    """Whether the pipeline was an object, which a script cannot load."""
    return config.pipeline is not None and config.pipeline.model.startswith(f"{PYTHON}:")


def _local_folder(config: StudyConfig) -> Path | None:
    """The folder of a model that no name stands for, as it is found from anywhere; None for a name or a hub id."""
    from autodiffusion_opt.sampling.load import model_folder

    assert config.pipeline is not None
    model = config.pipeline.model
    folder = None if model in EMBEDDED else model_folder(model, config.base_of("pipeline"))
    return None if folder is None else folder.resolve()


def _labels_put(sampler: ImageSampler) -> list[str]:
    """Lines that give the denoiser the class of image 0, where the pipeline's call takes none."""
    from autodiffusion_opt.sampling.compatibility import denoiser_of
    from autodiffusion_opt.sampling.conditions import Labels, call_parameters

    labels, pipeline = sampler.conditions, sampler.pipeline
    if not isinstance(labels, Labels) or "class_labels" in call_parameters(pipeline):
        return []
    name = next(name for name, part in pipeline.components.items() if part is denoiser_of(pipeline))
    return [
        "# The call takes no class, so the denoiser is given one.",
        f'label = {{"class_labels": torch.tensor([{labels.label(0)}], device=pipeline.device)}}',
        f"pipeline.{name}.register_forward_pre_hook(lambda _, args, given: (args, given | label), with_kwargs=True)",
    ]


def _listed(value: Any) -> Any:
    """An array or a tensor, as JSON has it."""
    return value.tolist()


def _readme(
    stored: StoredStudy, config: StudyConfig, best: Result, pick: int, plain: Mapping[str, list[float]], scheduler: str
) -> str:
    rank = f"front {pick}" if stored.has_front else "best" if pick == 1 else f"rank {pick}"
    model = "" if config.pipeline is None else f"{code_in_markdown(config.pipeline.model)}, "
    same_scheduler = [f"from diffusers import {scheduler}", f'pipeline.scheduler = {scheduler}.from_pretrained(".")']
    optimizer = getattr(config.optimizer, "kind", type(config.optimizer).__name__)
    names = list(best.measured)
    lines = [
        f"# {in_markdown(config.name)}",
        "",
        f"{model}{len(best.candidate.steps)} steps: `{best.candidate}`.",
        "",
        f"Found by {code_in_markdown(optimizer)} in {len(stored.complete())} trials; {_objective_text(config)} "
        "These are values of the search, for ranking; "
        f"`autodiffusion-opt verify {CANDIDATE}` re-scores them on fresh seeds.",
        "",
        f"| schedule | {' | '.join(map(in_markdown, names))} |",
        f"| --- |{' --- |' * len(names)}",
        *(f"| {in_markdown(result.label)} | {_row(result, names)} |" for result in stored.baselines().values()),
        f"| **{rank}** (trial {best.trial}) | {_row(best, names, '**')} |",
        "",
        f"Use it: {'`python sample.py`, or' if model and not _is_python(config) else ''}".rstrip(),
        "",
        "```python",
        "import autodiffusion_opt as ado",
        *(same_scheduler if model else []),
        f'pipeline = ado.apply(pipeline, "{CANDIDATE}")  # any pipeline of this model',
        "```",
    ]
    if plain:
        key, values = next(iter(plain.items()))
        lines += [
            "",
            f"Without autodiffusion-opt, with the same scheduler: `scheduler.set_timesteps({key}={values})`, or pass",
            f"`{key}=` to a call that takes it. It was checked to give the same time steps and noise levels.",
        ]
    elif model:
        lines += ["", "This scheduler or this candidate cannot be expressed as a plain list of diffusers."]
    return "\n".join(lines) + "\n"


def _objective_text(config: StudyConfig) -> str:
    objective = config.objective
    if isinstance(objective, ObjectiveConfig):
        parts = [f"{objective.kind} on {objective.rungs[-1]} images"]
        for key in ("features", "reference", "teacher_steps"):
            value = getattr(objective, key, None)
            if value is not None:
                parts.append(f"{key.replace('_', ' ')} {code_in_markdown(str(getattr(value, 'identity', value)))}")
        return f"{', '.join(parts)}."
    return f"the objective {code_in_markdown(getattr(objective, 'identity', type(objective).__name__))}."


def _row(result: Result, names: Iterable[str], mark: str = "") -> str:
    values = (result.measured.get(name, math.nan) for name in names)
    return " | ".join(f"{mark}{value:.4g}{mark}" for value in values)


def write_files(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Write texts to a folder, which is made if need be; their paths. Raises UserError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"-o: {folder} cannot be written: {reason_of(error)}") from None
    return [folder / name for name in files]
