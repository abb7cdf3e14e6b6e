"""A candidate in the settings of a serving engine or a front end, as files to open there.

What an engine cannot express is told by name, and measured on a few images of the study's pipeline where the pipeline
can run what the engine would.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.errors import unknown
from autodiffusion_opt.progress import Progress, silent

if TYPE_CHECKING:
    from autodiffusion_opt.sampling.engines.difference import Difference
    from autodiffusion_opt.sampling.generate import ImageSampler


@dataclass(frozen=True)
class EngineExport:
    """What was made for an engine.

    Attributes:
        engine: its name.
        files: texts, by the files' names.
        settings: what the first file says, as JSON values.
        remarks: sentences on what the engine cannot express, or does otherwise.
        difference: of the candidate's images and those of what the engine runs; None where it was not measured.
    """

    engine: str
    files: Mapping[str, str]
    settings: Mapping[str, Any]
    remarks: tuple[str, ...]
    difference: Difference | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        measured = None if self.difference is None else self.difference.to_dict()
        return {
            "engine": self.engine,
            "settings": dict(self.settings),
            "remarks": list(self.remarks),
            "difference": measured,
        }


def export_for(engine: str, sampler: ImageSampler, candidate: Candidate, progress: Progress = silent) -> EngineExport:
    """A candidate in the settings of an engine.

    Args:
        engine: a name in :data:`ENGINES`.
        sampler: the pipeline that the candidate was searched on.
        candidate: what is to be expressed.
        progress: is told of the images that are compared.

    Raises:
        UserError: for a candidate of which the engine can express nothing.
    """
    if engine not in ENGINES:
        raise unknown("--for", engine, ENGINES)
    return ENGINES[engine](sampler, candidate, progress)


def _for_comfyui(sampler: ImageSampler, candidate: Candidate, progress: Progress) -> EngineExport:
    from autodiffusion_opt.sampling.engines.comfyui import comfy_sampling
    from autodiffusion_opt.sampling.engines.difference import difference_between

    settings = comfy_sampling(sampler.pipeline, candidate)
    whole = _whole_steps(candidate)
    measured = None
    if whole != candidate:
        progress("comparing images", 0, 0)
        measured = difference_between(sampler, candidate, whole)
    values = settings.to_dict() | {"model": type(sampler.pipeline).__name__, "candidate": candidate.to_dict()}
    if measured is not None:
        values["difference"] = measured.to_dict()
    return EngineExport("comfyui", {"comfyui.json": _json(values)}, values, settings.remarks, measured)


def _whole_steps(candidate: Candidate) -> Candidate:
    """The candidate with every layer run at every step."""
    steps = tuple(Step(time) for time in candidate.times)
    return Candidate(steps, candidate.guidance_scale, candidate.end_time)


def _for_diffusers_cache(sampler: ImageSampler, candidate: Candidate, progress: Progress) -> EngineExport:
    from autodiffusion_opt.sampling.engines.diffusers_caches import nearest_cache, whole_steps
    from autodiffusion_opt.sampling.engines.diffusers_script import cache_script, cache_settings

    progress("comparing images", 0, 0)
    nearest = nearest_cache(sampler, candidate)
    times = whole_steps(candidate)
    settings, remarks = cache_settings(sampler.pipeline, nearest.engine, times)
    values = settings | {
        "model": type(sampler.pipeline).__name__,
        "same_images": nearest.difference.is_none,
        "difference": nearest.difference.to_dict(),
        "remarks": [*nearest.remarks, *remarks],
        "candidate": candidate.to_dict(),
    }
    files = {
        "diffusers_cache.json": _json(values),
        "diffusers_cache.py": cache_script(settings),
        "times.json": _json(times.to_dict()),
    }
    return EngineExport("diffusers-cache", files, values, tuple(values["remarks"]), nearest.difference)


def _for_cache_dit(sampler: ImageSampler, candidate: Candidate, progress: Progress) -> EngineExport:
    from autodiffusion_opt.sampling.engines.cache_dit_yaml import cache_dit_yaml, config_values, nearest_mask
    from autodiffusion_opt.sampling.engines.diffusers_caches import whole_steps
    from autodiffusion_opt.sampling.engines.diffusers_script import call_settings

    progress("comparing images", 0, 0)
    nearest = nearest_mask(sampler, candidate)
    times = whole_steps(candidate)
    call, remarks = call_settings(sampler.pipeline, times)
    model, config = type(sampler.pipeline).__name__, config_values(nearest, len(times.steps))
    values = {
        "engine": "cache-dit",
        "model": model,
        "cache_config": config,
        **call,
        "same_images": nearest.difference.is_none,
        "difference": nearest.difference.to_dict(),
        "remarks": [*nearest.remarks, *remarks],
        "candidate": candidate.to_dict(),
    }
    files = {
        "cache_dit.yaml": cache_dit_yaml(config, model),
        "cache_dit.json": _json(values),
        "times.json": _json(times.to_dict()),
    }
    return EngineExport("cache-dit", files, values, tuple(values["remarks"]), nearest.difference)


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"


# The engines that a candidate can be exported for.
ENGINES: dict[str, Callable[[ImageSampler, Candidate, Progress], EngineExport]] = {
    "cache-dit": _for_cache_dit,
    "comfyui": _for_comfyui,
    "diffusers-cache": _for_diffusers_cache,
}


def write_export(export: EngineExport, folder: Path) -> list[Path]:
    """Write the files to a folder, which is made if need be; the paths. Raises UserError where it cannot be written."""
    from autodiffusion_opt.study.export import write_files

    return write_files(folder, export.files)
