"""The text of a study for a model: what its files say of it, sensible numbers, and what each key may be instead."""

from __future__ import annotations

import json
import math
import os
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from autodiffusion_opt.config import Config
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.optimizer import DEFAULT, OPTIMIZERS
from autodiffusion_opt.paths import absolute
from autodiffusion_opt.sampling.config import ConditionsConfig, PipelineConfig
from autodiffusion_opt.space import SPACES
from autodiffusion_opt.study.config import StudyFile
from autodiffusion_opt.study.keys import Key, keys_of
from autodiffusion_opt.text import visible
from autodiffusion_opt.zoo import EMBEDDED

if TYPE_CHECKING:
    from autodiffusion_opt.sampling.description import Description

WIDTH = 100  # of comments
NO_BREAK = "\u00a0"
TRIALS = 60
# Images of a trial. What compares image by image with the teacher gets little better with more (docs/metrics.md); the
# embedded models' distances need more, and rungs spare the most of them; Inception's need many.
PAIRED_IMAGES, RUNGS, REAL_IMAGES = 100, [100, 500], 1000
CLIP_IMAGES = 20
# The greater side of an image in pixels -> images of it that most memories hold at once; they divide 100.
MICRO_BATCHES = {32: 100, 64: 50, 256: 20, 512: 4}
LARGE_MICRO_BATCH = 2
# Of a model that takes prompts, until the user has prompts: things of many kinds, near and far, few and many.
PROMPTS = (
    "a lighthouse on a cliff at dusk",
    "two dogs running on a beach",
    "a bowl of fruit on a wooden table",
    "a busy street with buses and people",
    "an old man reading a newspaper",
    "a red train crossing a stone bridge",
    "a kitchen with white cupboards",
    "a field of sunflowers under a blue sky",
    "a cat asleep on a sofa",
    "a small plane above snowy mountains",
    "children playing football in a park",
    "a slice of pizza on a plate",
    "a harbour full of sailing boats",
    "a horse drinking from a river",
    "a desk with a laptop and a lamp",
    "a crowd watching fireworks at night",
)
CALL_MEANING = "Arguments of the pipeline's own call; the others that are numbers or words, with their defaults:"


@dataclass(frozen=True)
class NewStudy:
    """What a new study is to be of.

    Attributes:
        model: as the file is to say it.
        description: of the model.
        steps: that a candidate has.
        prompts: a file of prompts, as the study's file is to say it; None: a few are written out.
        reference: real images to compare with, likewise; None: the model's own images of many steps are.
    """

    model: str
    description: Description
    steps: int = 4
    prompts: str | None = None
    reference: str | None = None

    def text(self) -> str:
        """The study's file. Raises UserError for names that are no text in UTF-8, which TOML cannot hold."""
        tables = [
            self._head(),
            *_table(
                "", StudyFile, {"trials": TRIALS, "seed": 0}, leave_out=("pipeline", "space", "objective", "optimizer")
            ),
            *_table("pipeline", PipelineConfig, self._pipeline(), self._pipeline_remarks(), leave_out=("call",)),
            *self._call(),
            *_table(
                "space", SPACES["time-steps"], {"kind": "time-steps", "steps": self.steps}, {"kind": _one_of(SPACES)}
            ),
            *self._objective(),
            *self._conditions(),
            *_table("optimizer", OPTIMIZERS[DEFAULT], self._optimizer(), {"kind": _optimizers()}),
        ]
        text = "\n".join(tables).rstrip() + "\n"
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError("the names of a study's file must be text in UTF-8; give the model another path") from None
        return text

    def _head(self) -> str:
        name, kind = visible(self.model), self.description.pipeline
        first = f"{self.steps} time steps of {name}, a {kind}; a study that `autodiffusion-opt init` wrote."
        more = (
            "A line that begins with # and a key shows what the key is by default, or an example. What stands in "
            "brackets is what a key takes. All mistakes are told at once when the study is run."
        )
        return "\n".join([_comment(first), "", _comment(more), ""])

    def _pipeline(self) -> dict[str, Any]:
        described, size = self.description, self._micro_batch()
        values: dict[str, Any] = {"model": self.model}
        if described.is_accepted and not self._prefers_ddim:
            values["scheduler"] = described.scheduler
        else:
            values["scheduler"] = "ddim" if "ddim" in described.schedulers else described.schedulers[0]
        return values | {"dtype": "float32", "batch_size": size, "micro_batch": size}

    @property
    def _prefers_ddim(self) -> bool:
        return self.description.is_stochastic and "ddim" in self.description.schedulers

    def _pipeline_remarks(self) -> dict[str, str]:
        described = self.description
        own = f"The model's own is {described.scheduler}"
        if not described.is_accepted:
            own += ", which takes no times of one's choice"
        elif self._prefers_ddim:
            own += ", which adds noise at each step; few steps leave it in the image"
        others = ", ".join(described.schedulers) or "no other"
        more = "Larger is faster, as far as the memory goes; one that divides `images` makes none in vain."
        return {"scheduler": f"{own}. This pipeline runs: {others}.", "micro_batch": more}

    def _micro_batch(self) -> int:
        described = self.description
        if described.makes_clips:
            return 1
        if described.size is None:
            return LARGE_MICRO_BATCH if described.takes_prompts else 1
        side = max(described.size)
        return next((count for most, count in MICRO_BATCHES.items() if side <= most), LARGE_MICRO_BATCH)

    def _call(self) -> list[str]:
        described, known = self.description, EMBEDDED.get(self.model)
        given: dict[str, Any] = {}
        scale = described.call.get("guidance_scale")
        if isinstance(scale, int | float) and not isinstance(scale, bool):
            given["guidance_scale"] = scale if known is None or known.guidance_scale is None else known.guidance_scale
        if {"height", "width"} <= set(described.call) and described.size is not None:
            given |= zip(("height", "width"), described.size, strict=True)
        others = {key: value for key, value in described.call.items() if key not in given and value is not None}
        if not (given or others):
            return []
        lines = [_comment(CALL_MEANING), "[pipeline.call]" if given else "#[pipeline.call]"]
        lines += [f"{key} = {toml(value)}" for key, value in given.items()]
        return [*lines, *(f"#{key} = {toml(value)}" for key, value in others.items()), ""]

    def _optimizer(self) -> dict[str, Any]:
        # Dynamic programming needs a trajectory that many steps follow.
        return {"kind": DEFAULT, **({"start_from": []} if self.description.is_distilled else {})}

    def _objective(self) -> list[str]:
        known = EMBEDDED.get(self.model)
        images = CLIP_IMAGES if self.description.makes_clips else PAIRED_IMAGES
        values: dict[str, Any] = {"kind": "psnr", "images": images, "teacher_steps": 50}
        if self.reference is not None:
            values = {"kind": "fid", "images": REAL_IMAGES, "features": "inception", "reference": self.reference}
        elif known is not None:
            values = {"kind": "fid", "images": RUNGS, "features": known.name, "reference": known.name}
        lines = _table(
            "objective", METRICS[values["kind"]].Config, values, {"kind": _one_of(METRICS)}, leave_out=("conditions",)
        )
        return [_comment(_NO_DATA), *_REAL_DATA, "", *lines] if values["kind"] == "psnr" else lines

    def _conditions(self) -> list[str]:
        described, known = self.description, EMBEDDED.get(self.model)
        if described.takes_prompts:
            values: dict[str, Any] = {"kind": "prompts"}
            values |= {"prompts": PROMPTS} if self.prompts is None else {"file": self.prompts}
            return _table(
                "objective.conditions", ConditionsConfig, values, {"prompts": _PROMPTS}, leave_out=("classes",)
            )
        if described.takes_labels:
            values = {"kind": "labels"}
            classes = described.classes if known is None else known.classes
            values |= {} if classes is None else {"classes": classes}
            return _table(
                "objective.conditions",
                ConditionsConfig,
                values,
                leave_out=("prompts", "file", "column", "negative_prompt"),
            )
        return []


_NO_DATA = (
    "No real images of this model are known, so a candidate's images are compared with the model's own of 50 steps, "
    "from the same noise: psnr, which needs nothing else; the greater the better. docs/metrics.md says what each "
    "kind is good for. To measure what results are reported in, the Fréchet distance to real images, write this in "
    "place of kind, images and teacher_steps:"
)
_REAL_DATA = (
    '#kind = "fid"',
    f"#images = {REAL_IMAGES}",
    '#features = "inception"            # torch-fidelity\'s; its weights are downloaded once',
    '#reference = "../real/images"      # a folder of images, or an .npz file of statistics',
)
_PROMPTS = (
    "Image i is of prompt i modulo their number. Write your own, of the kind that you will sample; or "
    '`file = "prompts.txt"` in place of them.'
)


def _one_of(names: Iterable[str]) -> str:
    return f"One of: {', '.join(sorted(names))}."


def _optimizers() -> str:
    return f"One of: {', '.join(OPTIMIZERS.names())}; `autodiffusion-opt ls optimizers` says what some are for."


def _table(
    name: str,
    config: type[Config],
    values: Mapping[str, Any],
    remarks: Mapping[str, str] = {},
    leave_out: Iterable[str] = (),
) -> list[str]:
    """The lines of a table: the keys that have values, then the others as comments.

    Args:
        name: of the table; empty: its keys stand at the file's beginning.
        config: its class.
        values: of some of its keys.
        remarks: on some of its keys.
        leave_out: keys that are written elsewhere, or say nothing here.
    """
    keys = {key.name: key for key in keys_of(config).values() if key.name not in set(leave_out)}
    lines = [f"[{name}]"] if name else []
    for key in (keys[given] for given in values):
        lines += [_comment(_about(key, remarks.get(key.name, ""))), f"{key.name} = {toml(values[key.name])}", ""]
    for key in (key for key in keys.values() if key.name not in values):
        example = _example(key.annotation) if key.default is None else key.default
        lines += [_comment(_about(key, remarks.get(key.name, ""))), f"#{key.name} = {toml(example)}", ""]
    return lines


def _about(key: Key, remark: str) -> str:
    """What a key means, a remark, and in brackets what it takes."""
    if key.name == "kind" and remark:
        return remark
    absent = ", absent by default" if key.default is None and not key.is_needed else ""
    takes = f"[{key.type}{absent}]".replace(" ", NO_BREAK)
    return " ".join(part for part in (key.meaning[:1].upper() + key.meaning[1:], remark, takes) if part)


def _comment(text: str) -> str:
    lines = textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return "\n".join(lines).replace(NO_BREAK, " ")


def _example(annotation: Any) -> Any:
    """Some value of a type, for a key that is absent by default."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType, typing.Annotated):
        return _example(arguments[0])
    if origin is Literal:
        return arguments[0]
    if origin is tuple:
        return [_example(arguments[0])]
    return {str: "...", bool: False, int: 1, float: 1.0, Any: "..."}.get(annotation, {})


def toml(value: Any) -> str:
    """A value as TOML writes it: text with its control characters escaped, long lists a line an entry."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        entries = [toml(entry) for entry in value]
        line = f"[{', '.join(entries)}]"
        return line if len(line) <= WIDTH else "\n".join(["[", *(f"    {entry}," for entry in entries), "]"])
    return repr(value) if math.isfinite(value) else str(value)


def as_written(path: str, folder: Path | None) -> str:
    """A path of the command line as a file in ``folder`` says it: relative ones start from the file's folder.

    Args:
        path: as it was given; a relative one starts from the working folder.
        folder: of the file; None: it is the working folder.
    """
    if folder is None or os.path.isabs(os.path.expanduser(path)):
        return path
    relative = Path(os.path.relpath(absolute(path).resolve(), folder.resolve())).as_posix()
    return relative if relative.startswith(".") else f"./{relative}"
