"""What a model's folder or its page on a hub says of it, read from its JSON files: no weights are loaded."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.paths import absolute
from autodiffusion_opt.sampling.compatibility import DENOISERS, RESERVED, check_pair, check_replacement
from autodiffusion_opt.sampling.conditions import classes_of
from autodiffusion_opt.sampling.load import OURS, SHORT_NAMES, model_folder, pipeline_class, with_scheduler_of
from autodiffusion_opt.sampling.schedule import check_scheduler, stops_early

INDEX = "model_index.json"
# Where pipelines keep what decodes latents, and what its configuration lists a width of for each halving of the size.
DECODERS = ("vae", "vqvae", "movq")
WIDTHS = ("block_out_channels", "encoder_block_out_channels")
# What only some values of the call's other arguments can be: a number or a word, not an object.
PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class Description:
    """A model, as far as its files tell.

    Attributes:
        pipeline: the name of its pipeline's class.
        scheduler: the name of its own scheduler's class; empty where the call has none to choose.
        is_accepted: whether that scheduler takes times, and the pipeline's call runs it.
        schedulers: short names of those that can take its place.
        is_stochastic: whether its own scheduler adds noise at each step.
        is_distilled: whether it is distilled to few steps of a solver of its own.
        takes_prompts: whether the call takes prompts.
        takes_labels: whether the call, or the denoiser, takes class labels and needs them.
        classes: how many, where the model says so.
        makes_clips: whether it makes clips, not images.
        size: height and width of its images in pixels, where its files tell.
        call: the call's further arguments that are numbers or words, with their defaults.
    """

    pipeline: str
    scheduler: str
    is_accepted: bool
    schedulers: tuple[str, ...]
    is_stochastic: bool
    is_distilled: bool
    takes_prompts: bool
    takes_labels: bool
    classes: int | None
    makes_clips: bool
    size: tuple[int, int] | None
    call: Mapping[str, bool | int | float | str | None]


def describe(model: str, base: Path | None = None) -> Description:
    """What the files of a model say of it. Of a model on a hub only these small files are downloaded.

    Args:
        model: an embedded name, a folder, or a hub id.
        base: the folder that a relative one starts from; None: the working folder.

    Raises:
        UserError: for a model that is not there, files that are no JSON, a pipeline that is unknown or has no denoiser,
            and one that no accepted scheduler can run.
    """
    files = _Files(model, model_folder(model, base), base)
    index = files.json(INDEX)
    kind: Any = pipeline_class(files.json_path(INDEX).parent)
    if kind is None:
        raise UserError(
            f"model {model!r}: the pipeline's class must be one of diffusers' pipelines, or "
            f"{', '.join(OURS)}; got {index.get('_class_name')!r}"
        )
    name = next((name for name in DENOISERS if _is_part(index.get(name))), None)
    if name is None:
        raise UserError(
            f"model {model!r}: a pipeline must have one of {', '.join(DENOISERS)}; {kind.__name__} has neither"
        )
    denoiser = files.json(f"{name}/config.json")
    scheduler = _scheduler(files, index, model)
    takes = inspect.signature(kind.__call__).parameters
    classes = classes_of(takes, denoiser)
    is_accepted = _runs(kind, scheduler, scheduler)
    others = tuple(short for short in SHORT_NAMES if _can_replace(kind, scheduler, short))
    if not (is_accepted or others):
        check_replacement(scheduler, scheduler)  # one of them says why
        check_scheduler(scheduler)
        check_pair(kind, scheduler)
    return Description(
        pipeline=kind.__name__,
        scheduler=type(scheduler).__name__,
        is_accepted=is_accepted,
        schedulers=others,
        is_stochastic=type(scheduler).__name__ in ("DDPMScheduler", "EulerAncestralDiscreteScheduler"),
        is_distilled=is_accepted and not stops_early(scheduler),
        takes_prompts="prompt" in takes,
        takes_labels=classes is not None or ("class_labels" in takes and "batch_size" not in takes),
        classes=classes,
        makes_clips="num_frames" in takes or "video_length" in takes,
        size=_size(files, index, denoiser),
        call={
            key: parameter.default
            for key, parameter in takes.items()
            if key not in RESERVED and (isinstance(parameter.default, PLAIN) or key in ("height", "width"))
        },
    )


@dataclass(frozen=True)
class _Files:
    """The JSON files of a model: in a folder, or on a hub where ``folder`` is None."""

    model: str
    folder: Path | None
    base: Path | None

    def json_path(self, name: str) -> Path:
        """Where a file lies here. Raises UserError where it cannot be had."""
        if self.folder is not None:
            return self.folder / name
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.model, name))
        except Exception as error:  # no connection, no such repository, no such file: each has an error of its own
            raise UserError(
                f"model {self.model!r}: there is no folder {absolute(self.model, self.base)}, and {name} cannot be had "
                f"from the hub: {reason_of(error)}"
            ) from None

    def json(self, name: str) -> dict[str, Any]:
        """A file's content. Raises UserError."""
        path = self.json_path(name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"model {self.model!r}: {path} cannot be read: {reason_of(error)}") from None
        if not isinstance(content, dict):
            raise UserError(f"model {self.model!r}: {path} must hold a JSON object")
        return content


def _is_part(entry: Any) -> bool:
    """Whether an entry of the index names a class; ``[null, null]`` is a part that is left out."""
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)


def _scheduler(files: _Files, index: Mapping[str, Any], model: str) -> Any:
    """The model's own scheduler, which has no weights. Raises UserError where diffusers has no such class."""
    entry = index.get("scheduler")
    name = str(entry[1]) if isinstance(entry, list) and _is_part(entry) else ""
    kind: Any = getattr(importlib.import_module("diffusers"), name, None) if name else None
    if not hasattr(kind, "from_config"):
        raise UserError(f"model {model!r}: its scheduler must be one of diffusers'; got {entry!r}")
    try:
        return kind.from_config(files.json("scheduler/scheduler_config.json"))
    except UserError:
        raise
    except Exception as error:  # a configuration may hold anything
        raise UserError(f"model {model!r}: {name} cannot be made from its configuration: {reason_of(error)}") from None


def _runs(kind: Any, before: Any, after: Any) -> bool:
    """Whether a scheduler takes times, and a pipeline's call runs it in place of the model's own."""
    try:
        if after is not before:
            check_replacement(before, after)
        check_scheduler(after)
        check_pair(kind, after)
    except UserError:
        return False
    return True


def _can_replace(kind: Any, own: Any, short: str) -> bool:
    try:
        return _runs(kind, own, with_scheduler_of(own, short, {}))
    except Exception:  # diffusers' own, of a configuration that the class refuses
        return False


def _size(files: _Files, index: Mapping[str, Any], denoiser: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width: those of the denoiser's samples, times what the decoder enlarges them by."""
    given = denoiser.get("sample_size")
    sides = [given, given] if isinstance(given, int) else given
    if not (isinstance(sides, list) and len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)):
        return None
    factor = 1
    decoder = next((name for name in DECODERS if _is_part(index.get(name))), None)
    if decoder is not None:
        config = files.json(f"{decoder}/config.json")
        widths = next((config[name] for name in WIDTHS if isinstance(config.get(name), list)), None)
        if widths is None:
            return None
        factor = 2 ** (len(widths) - 1)
    return sides[0] * factor, sides[1] * factor
