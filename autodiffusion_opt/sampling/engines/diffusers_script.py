"""The settings of one of diffusers' caches as JSON values, and as a small Python file that needs diffusers alone."""

from __future__ import annotations

import dataclasses
import pprint
from collections.abc import Mapping
from typing import Any

import torch

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.engine import Engine, FirstBlockCache, MagCache, TaylorSeerCache
from autodiffusion_opt.sampling.apply import GUIDANCE_SCALE
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.conditions import call_parameters
from autodiffusion_opt.sampling.engines.install import diffusers_config
from autodiffusion_opt.sampling.plain_lists import plain_lists
from autodiffusion_opt.sampling.schedule import untouched

# The functions of diffusers.hooks that put a configuration on.
APPLY: dict[type[Engine], str] = {
    FirstBlockCache: "apply_first_block_cache",
    MagCache: "apply_mag_cache",
    TaylorSeerCache: "apply_taylorseer_cache",
}


def call_settings(pipeline: Any, times: Candidate) -> tuple[dict[str, Any], list[str]]:
    """What a pipeline's call is told of a candidate's times and guidance scale, and sentences on what it cannot be.

    Returns:
        ``call``, its arguments, and ``times_in_call``, whether the times are among them; and the sentences.
    """
    call: dict[str, Any] = {"num_inference_steps": len(times.steps)}
    takes = call_parameters(pipeline)
    lists = {key: value for key, value in plain_lists(untouched(pipeline.scheduler), times).items() if key in takes}
    call |= lists
    if times.guidance_scale is not None:
        call[GUIDANCE_SCALE] = times.guidance_scale
    remarks = []
    if not lists:
        remarks.append(
            f"times: {type(pipeline).__name__} with {type(pipeline.scheduler).__name__} takes no list of times that "
            'says the same: ado.apply(pipeline, "times.json") puts them on'
        )
    return {"call": call, "times_in_call": bool(lists)}, remarks


def cache_settings(pipeline: Any, engine: Engine | None, times: Candidate) -> tuple[dict[str, Any], list[str]]:
    """The configuration, the arguments of the pipeline's call, and sentences on what the call cannot be told.

    Args:
        pipeline: for whose denoiser they are.
        engine: the cache; None: no cache.
        times: the candidate's times, end and guidance scale.
    """
    denoiser, steps = denoiser_of(pipeline), len(times.steps)
    name = next(name for name, part in pipeline.components.items() if part is denoiser)
    call, remarks = call_settings(pipeline, times)
    settings: dict[str, Any] = {"engine": "diffusers-cache", "denoiser": name, **call}
    if engine is not None:
        config = diffusers_config(engine, denoiser, steps)
        settings |= {"class": type(config).__name__, "apply": APPLY[type(engine)], "config": _values(config)}
    return settings, remarks


def cache_script(settings: Mapping[str, Any]) -> str:
    """A Python file with ``enable(pipeline)`` and ``CALL``, the arguments of the pipeline's call."""
    lines = [
        '"""A cache of diffusers with a candidate\'s settings: `enable(pipeline)`, then `pipeline(..., **CALL)`."""',
        "",
    ]
    config = settings.get("config")
    if config is not None:
        lines += ["import torch", "from diffusers.hooks import " + f"{settings['class']}, {settings['apply']}", ""]
        given = ", ".join(f"{key}={_python(key, value)}" for key, value in config.items())
        lines += [f"CONFIG = {settings['class']}({given})"]
    lines += [f"CALL = {pprint.pformat(settings['call'], width=110, sort_dicts=False)}", "", ""]
    lines += ["def enable(pipeline):"]
    if config is None:
        lines += ["    return pipeline  # every step is computed"]
    else:
        lines += [
            f"    denoiser = pipeline.{settings['denoiser']}",
            '    if hasattr(denoiser, "enable_cache"):',
            "        denoiser.enable_cache(CONFIG)",
            "    else:",
            f"        {settings['apply']}(denoiser, CONFIG)",
            "    return pipeline",
        ]
    if not settings["times_in_call"]:
        lines += [
            "",
            "",
            "# The call takes no such times: autodiffusion_opt.apply(pipeline, 'times.json') puts them on.",
        ]
    text = "\n".join(lines) + "\n"
    return text if "torch." in text else text.replace("import torch\n", "")


def _values(config: Any) -> dict[str, Any]:
    """The fields that are not diffusers' defaults, as JSON values."""
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, torch.Tensor):
            value = value.tolist()
        if value is field.default or value == field.default:
            continue
        values[field.name] = str(value) if isinstance(value, torch.dtype) else value
    return values


def _python(key: str, value: Any) -> str:
    return str(value) if key.endswith("dtype") else repr(value)
