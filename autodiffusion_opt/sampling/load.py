"""Load a diffusers pipeline: model, scheduler, device, type of numbers, and what saves memory or time."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from autodiffusion_opt.errors import UserError, nearest, reason_of, unknown
from autodiffusion_opt.paths import absolute
from autodiffusion_opt.sampling.apply import apply, saved_candidate
from autodiffusion_opt.sampling.checkpoints import CHECKPOINTS, how_to_get
from autodiffusion_opt.sampling.compatibility import check_compatible, check_replacement, denoiser_of
from autodiffusion_opt.sampling.compile import compile_layers
from autodiffusion_opt.sampling.config import PipelineConfig
from autodiffusion_opt.sampling.schedule import accepted, check_scheduler
from autodiffusion_opt.zoo import EMBEDDED

# Classes that diffusers makes where torchsde is installed.
NEED_TORCHSDE = ("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler")
# Short names of schedulers, for tables.
SHORT_NAMES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "plms": "PNDMScheduler",
    "pndm": "PNDMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "dpmsolver-singlestep": "DPMSolverSinglestepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler",
    "flow-heun": "FlowMatchHeunDiscreteScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
}
# Pipelines of this package, by the name in a model_index.json.
OURS = {"ADMPipeline": "autodiffusion_opt.sampling.adm"}
# Settings that a short name implies: PLMS is PNDM without its Runge-Kutta start.
IMPLIED: dict[str, dict[str, Any]] = {"plms": {"skip_prk_steps": True}}


def load_pipeline(
    model: str,
    *,
    scheduler: str | None = None,
    scheduler_settings: Mapping[str, Any] | None = None,
    revision: str | None = None,
    variant: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    base: Path | None = None,
    with_candidate: bool = True,
) -> Any:
    """A diffusers pipeline, ready to generate, its safety checker off and its progress bar silent.

    A candidate that was applied when the pipeline was saved to a folder is applied again.

    Args:
        model: an embedded name (``digits``), a folder that holds a ``model_index.json``, or a hub id.
        scheduler: a scheduler's class name or short name (``ddim``, ``dpmsolver++`` ...); None: the model's own.
        scheduler_settings: keys of the scheduler's configuration to change.
        revision: the hub commit, tag or branch.
        variant: the file variant (``fp16``).
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        device: ``auto`` (the first GPU, else the CPU) or a torch device.
        base: the folder that a relative ``model`` starts from; None: the working folder.
        with_candidate: False: without the candidate that a folder holds.

    Raises:
        UserError: for a model that is not there, a scheduler that is unknown or not accepted, or a candidate in the
            folder that does not fit the scheduler asked for.
    """
    place = pick_device(device)
    if scheduler is not None:
        scheduler_class(scheduler)  # a wrong name is told before the model is loaded in vain
    pipeline = _read(model, base, revision, variant, getattr(torch, dtype))
    if scheduler is not None or scheduler_settings:
        before = pipeline.scheduler
        pipeline.scheduler = with_scheduler_of(before, scheduler, scheduler_settings or {})
        check_replacement(before, pipeline.scheduler)
    check_pipeline(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    pipeline = pipeline.to(place)
    candidate = saved_candidate(model_folder(model, base)) if with_candidate else None
    return pipeline if candidate is None else apply(pipeline, candidate)


def check_pipeline(pipeline: Any) -> None:
    """Raises UserError for a pipeline without a denoiser, or whose scheduler is not accepted or does not fit it."""
    if not hasattr(pipeline, "scheduler") or not callable(pipeline):
        raise UserError(
            f"a pipeline must have a scheduler and be called to sample, as diffusers' pipelines are; got "
            f"{type(pipeline).__name__}"
        )
    check_scheduler(pipeline.scheduler)
    check_compatible(pipeline)
    denoiser_of(pipeline)


def load_configured(table: PipelineConfig, base: Path | None = None) -> Any:
    """The pipeline of a table ``[pipeline]``, with all its settings. Raises UserError.

    Args:
        table: as it stands in a file or was given in Python.
        base: the folder that a relative model starts from; None: the working folder.
    """
    pipeline = load_pipeline(
        table.model,
        scheduler=table.scheduler,
        scheduler_settings=table.scheduler_settings,
        revision=table.revision,
        variant=table.variant,
        dtype=table.dtype,
        device="cpu" if table.offload else table.device,
        base=base,
        with_candidate=False,
    )
    denoiser = denoiser_of(pipeline)
    if table.channels_last:
        denoiser.to(memory_format=torch.channels_last)
    if table.attention_slicing:
        pipeline.enable_attention_slicing()
        if hasattr(getattr(pipeline, "vae", None), "enable_slicing"):
            pipeline.vae.enable_slicing()
    if table.offload:
        _offload(pipeline, table.device)
    if table.compile:
        compile_layers(pipeline, call=table.call)
    return pipeline


def _offload(pipeline: Any, device: str) -> None:
    try:
        pipeline.enable_model_cpu_offload(device=pick_device(device))
    except (ImportError, RuntimeError, ValueError) as error:
        reason = reason_of(error)
        raise UserError(f"offload = true needs a GPU and accelerate (pip install accelerate): {reason}") from None


def pick_device(device: str) -> torch.device:
    """``auto`` or a torch device's name, as a device that is there. Raises UserError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        reason = reason_of(error)
        raise UserError(
            f"device must be auto, cpu, or a GPU that is there (cuda, cuda:1); got {device!r}: {reason}"
        ) from None
    return picked


def model_folder(model: str, base: Path | None = None) -> Path | None:
    """The folder of an embedded model or a local one; None for a hub id. Raises UserError for a path that is wrong.

    Args:
        model: as in the table ``[pipeline]``. A folder of that name hides a hub id.
        base: the folder that a relative one starts from; None: the working folder.
    """
    if model in EMBEDDED:
        return EMBEDDED[model].pipeline
    path = absolute(model, base)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise UserError(f"model: the folder {path} must hold a model_index.json, as save_pretrained writes it")
        return path
    if model.startswith((".", "/", "~")) or model.count("/") != 1:  # no hub id
        if path.name in CHECKPOINTS:
            raise UserError(f"model: there is no folder {path}. {how_to_get(path)}")
        names = ", ".join(sorted(EMBEDDED))
        raise UserError(
            f"model must be an embedded name ({names}), a folder with a model_index.json, or a hub id "
            f"(owner/name); got {model!r}, and there is no folder {path}.{nearest(model, EMBEDDED)}"
        )
    return None


def pipeline_class(folder: Path) -> type | None:
    """The class of diffusers' or of ours that a model's folder names; None where it names another, or is not read."""
    try:
        content = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        diffusers, name = importlib.import_module("diffusers"), content["_class_name"]
        named = getattr(importlib.import_module(OURS[name]) if name in OURS else diffusers, name, None)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, ImportError, RuntimeError):
        return None
    return named if inspect.isclass(named) and issubclass(named, diffusers.DiffusionPipeline) else None


def _read(model: str, base: Path | None, revision: str | None, variant: str | None, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    folder = model_folder(model, base)
    hub = {} if folder else {"revision": revision, "variant": variant}
    try:
        with quiet() if folder else contextlib.nullcontext():  # a download shows the hub's own bars
            # use_safetensors: a pickle from a download is never opened.
            named: Any = None if folder is None else pipeline_class(folder)
            kind = named if named is not None and named.__name__ in OURS else DiffusionPipeline
            pipeline = kind.from_pretrained(folder or model, torch_dtype=dtype, use_safetensors=True, **hub)
    except Exception as error:  # of an unknown class, a missing part, broken weights: each has an error of its own
        reason = reason_of(error)
        path = absolute(model, base)
        place = f"{folder}: " if folder else f"there is no folder {path}, and from the hub: "
        advice = f". {how_to_get(path)}" if folder is None and path.name in CHECKPOINTS else ""
        raise UserError(f"model {model!r} cannot be loaded: {place}{reason}{advice}") from error
    return _cast(_plain(pipeline), dtype)


def _cast(pipeline: Any, dtype: torch.dtype) -> Any:
    """Without accelerate, diffusers 0.42 leaves SD3's denoiser in float32 whatever it is asked for."""
    denoiser = denoiser_of(pipeline)
    if dtype not in {weight.dtype for weight in denoiser.parameters()}:
        denoiser.to(dtype)
    return pipeline


def _plain(pipeline: Any) -> Any:
    """Without what changes or hides images: the safety checker, SDXL's watermark."""
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    if "requires_safety_checker" in pipeline.config:
        pipeline.register_to_config(requires_safety_checker=False)
    if getattr(pipeline, "watermark", None) is not None:
        pipeline.watermark = None
    return pipeline


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and no advice while a pipeline is read: stdout and stderr are the command line's."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def with_scheduler_of(current: Any, name: str | None, settings: Mapping[str, Any]) -> Any:
    """A scheduler of another class (None: its own), with other settings, for the same model. Raises UserError."""
    kind: Any = type(current) if name is None else scheduler_class(name)
    allowed = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    for key in settings:
        if key not in allowed:
            raise unknown(f"a scheduler_settings key of {kind.__name__}", key, allowed)
    return kind.from_config(current.config, **{**IMPLIED.get((name or "").lower(), {}), **settings})


def scheduler_class(name: str) -> type:
    """A scheduler's class by class name or short name. Raises UserError with the nearest match."""
    full = SHORT_NAMES.get(name.lower(), name)
    if full not in accepted():
        raise unknown("scheduler", name, [*SHORT_NAMES, *accepted()])
    if full in NEED_TORCHSDE and importlib.util.find_spec("torchsde") is None:
        raise UserError(f"{full} needs torchsde: pip install 'autodiffusion-opt[sde]'")
    scheduler: type = getattr(importlib.import_module("diffusers"), full)
    return scheduler
