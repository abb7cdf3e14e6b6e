"""What each image is of: image i always of the same prompt or class, whatever the batch.

:func:`load_conditions` makes them from the table ``[conditions]``.

The text encoders run once a study, not once a trial: what a pipeline's ``encode_prompt`` returned for a batch of
prompts is kept on the CPU and returned again. The pipeline's own call does everything else, so that images are those
of the prompts themselves, bit for bit, and no list of pipelines and of what each calls its embeddings is needed.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import inspect
import json
import weakref
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils._pytree import tree_map

from autodiffusion_opt.errors import UserError, reason_of, unknown
from autodiffusion_opt.paths import absolute
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.config import ConditionsConfig
from autodiffusion_opt.sampling.hooks import before_forward

# Text encoders of pipelines that have no ``encode_prompt``.
ENCODERS = ("bert", "text_encoder", "text_encoder_2")
DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Conditions(Protocol):
    """One condition an image."""

    @property
    def identity(self) -> str:
        """Changes when a condition does; empty where there is none."""
        ...

    def arguments(self, pipeline: Any, indices: Sequence[int]) -> Mapping[str, Any]:
        """Keyword arguments of the pipeline's call that make it generate these images, one each."""
        ...

    def around(self, pipeline: Any) -> contextlib.AbstractContextManager[None]:
        """What all calls of the pipeline are made in."""
        ...


class Unconditional:
    """No condition: the call is told how many images to make."""

    identity = ""

    def arguments(self, pipeline: Any, indices: Sequence[int]) -> Mapping[str, Any]:
        """``batch_size``."""
        return {"batch_size": len(indices)}

    def around(self, pipeline: Any) -> contextlib.AbstractContextManager[None]:
        """Nothing."""
        return contextlib.nullcontext()


class Prompts:
    """A prompt an image.

    Args:
        prompts: image i is of ``prompts[i % len(prompts)]``.
        negative_prompt: one for all images; None: the pipeline's default.
    """

    def __init__(self, prompts: Sequence[str], negative_prompt: str | None = None) -> None:
        self.prompts = tuple(prompts)
        self.negative_prompt = negative_prompt
        self.identity = _identity("prompts", *self.prompts, str(negative_prompt))
        self._memories: weakref.WeakKeyDictionary[Any, Memory] = weakref.WeakKeyDictionary()

    def arguments(self, pipeline: Any, indices: Sequence[int]) -> Mapping[str, Any]:
        """``prompt``, and ``negative_prompt`` where there is one."""
        arguments: dict[str, Any] = {"prompt": [self.prompts[index % len(self.prompts)] for index in indices]}
        if self.negative_prompt is not None:
            arguments["negative_prompt"] = [self.negative_prompt] * len(indices)
        return arguments

    def around(self, pipeline: Any) -> contextlib.AbstractContextManager[None]:
        """The pipeline encodes no text that it encoded before under these conditions."""
        return remembering(pipeline, self._memories.setdefault(pipeline, Memory()))


class Labels:
    """A class an image: each run of ``len(labels)`` images has every label once, in a random order of its own.

    So ``range(n)`` is balanced, and fewer images than classes are not of the first classes. The order follows from the
    place in the sequence alone: image i is of the same class in every trial, and in every rung.

    A pipeline whose call takes no ``class_labels`` (DDPM, DDIM) runs a class-conditional denoiser all the same: the
    labels are put in the denoiser's own call.
    """

    def __init__(self, labels: Sequence[int]) -> None:
        self.labels = tuple(labels)
        self.identity = _identity("labels in random order", *map(str, self.labels))
        self._now: list[int] = []

    def label(self, index: int) -> int:
        """Of image ``index``."""
        run, place = divmod(index, len(self.labels))
        return self.labels[int(np.random.default_rng(run).permutation(len(self.labels))[place])]

    def arguments(self, pipeline: Any, indices: Sequence[int]) -> Mapping[str, Any]:
        """``class_labels`` and ``batch_size``, whichever the call takes."""
        self._now = [self.label(index) for index in indices]
        given = {"class_labels": self._now, "batch_size": len(indices)}
        return {key: value for key, value in given.items() if key in call_parameters(pipeline)}

    @contextlib.contextmanager
    def around(self, pipeline: Any) -> Iterator[None]:
        """The denoiser is given the labels, where the pipeline's call does not."""
        if "class_labels" in call_parameters(pipeline):
            yield
            return
        # First of all hooks, so that whoever watches the denoiser (the ranking of layers) sees the labels.
        with before_forward(denoiser_of(pipeline), self._put, prepend=True):
            yield

    def _put(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        sample = args[0] if args else kwargs["sample"]
        return args, kwargs | {"class_labels": torch.tensor(self._now, device=sample.device)}


def load_conditions(table: ConditionsConfig, pipeline: Any, base: Path | None = None) -> Conditions:
    """The conditions of a table, for a pipeline.

    Args:
        table: ``[conditions]``.
        pipeline: what will be called.
        base: the folder that a relative file starts from; None: the working folder.

    Raises:
        UserError: for a file that is not there or holds no prompts, and for a pipeline that takes no such conditions
            or needs others.
    """
    conditions: Conditions = Unconditional()
    if table.kind == "prompts":
        if table.prompts is None:
            prompts = read_prompts(existing_file(str(table.file), base), table.column)
        else:
            prompts = tuple(stripped for prompt in table.prompts if (stripped := prompt.strip()))
        conditions = Prompts(prompts, table.negative_prompt)
    elif table.kind == "labels":
        conditions = Labels(_labels(table.classes, class_count(pipeline)))
    check_conditions(pipeline, conditions)
    return conditions


def check_conditions(pipeline: Any, conditions: Conditions) -> None:
    """Raises UserError for conditions that the pipeline does not take, or does not get and needs."""
    takes, name = call_parameters(pipeline), type(pipeline).__name__
    if isinstance(conditions, Prompts):
        if "prompt" not in takes:
            raise UserError(f"{name} takes no prompts: take the prompts out of [conditions]")
        if conditions.negative_prompt is not None and "negative_prompt" not in takes:
            raise UserError(f"{name} takes no negative_prompt: take it out of [conditions]")
    elif isinstance(conditions, Labels):
        if class_count(pipeline) is None and "class_labels" not in takes:
            raise UserError(f"{name} takes no class labels: take the labels out of [conditions]")
    elif isinstance(conditions, Unconditional):
        _check_unconditional(pipeline)


def _check_unconditional(pipeline: Any) -> None:
    takes, name = call_parameters(pipeline), type(pipeline).__name__
    if "prompt" in takes:
        raise UserError(
            f'{name} needs prompts: add a table [conditions] with kind = "prompts" and file = "prompts.txt" to the '
            "objective"
        )
    if class_count(pipeline) is not None or ("class_labels" in takes and "batch_size" not in takes):
        raise UserError(f'{name} needs class labels: add a table [conditions] with kind = "labels" to the objective')
    if "batch_size" not in takes:
        raise UserError(f"{name} cannot be sampled: its call takes neither prompts, class labels nor a batch_size")


def class_count(pipeline: Any) -> int | None:
    """How many classes the denoiser knows; None where it is not class-conditional or does not say."""
    return classes_of(call_parameters(pipeline), denoiser_of(pipeline).config)


def classes_of(takes: Container[str], denoiser: Mapping[str, Any]) -> int | None:
    """The same, of the names of the call's parameters and the denoiser's configuration."""
    if "prompt" in takes:
        return None
    # DiT's embedding of the norm is of classes; only where the call takes labels.
    names = ("num_class_embeds", *(["num_embeds_ada_norm"] if "class_labels" in takes else []))
    count = next((denoiser[name] for name in names if denoiser.get(name)), None)
    return None if count is None else int(count)


def call_parameters(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of the pipeline's call."""
    return inspect.signature(type(pipeline).__call__).parameters


class Memory:
    """Results of a function that gives the same for the same arguments, kept on the CPU.

    Image i is in the same batch in every trial, so a result is for a whole batch; with P prompts in batches of B
    there are at most P of them.
    """

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, run once for each list of arguments; ``name`` tells functions apart."""

        @functools.wraps(function)
        def remembered(*args: Any, **kwargs: Any) -> Any:
            try:
                key = (name, _key(args), _key(kwargs))
            except TypeError:  # embeddings of the user's own, say
                return function(*args, **kwargs)
            if key not in self._known:
                self._known[key] = tree_map(_Kept.of, function(*args, **kwargs))
            return tree_map(lambda leaf: leaf.given() if isinstance(leaf, _Kept) else leaf, self._known[key])

        return remembered


class _Kept:
    """A tensor in main memory; one row of it where all are equal, as negative prompts' are."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._device, self._shape = tensor.device, tensor.shape
        same = tensor.ndim > 1 and len(tensor) > 1 and bool((tensor == tensor[:1]).all())
        self._tensor = (tensor[:1] if same else tensor).detach().to("cpu", copy=True)

    @staticmethod
    def of(leaf: Any) -> Any:
        return _Kept(leaf) if isinstance(leaf, torch.Tensor) else leaf

    def given(self) -> torch.Tensor:
        """A copy, where the tensor was, so that no caller changes what is kept."""
        return self._tensor.expand(self._shape).to(self._device, copy=True, memory_format=torch.contiguous_format)


def _key(value: Any) -> Any:
    """The value as something hashable. Raises TypeError for what cannot be compared by value."""
    if value is None or isinstance(value, str | bytes | bool | int | float | torch.device | torch.dtype):
        return (type(value).__name__, value)
    if isinstance(value, Mapping):
        return tuple((key, _key(entry)) for key, entry in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(_key(entry) for entry in value)
    if isinstance(value, torch.Tensor) and not value.is_floating_point():  # token ids and masks
        return (str(value.device), value.dtype, value.shape, value.cpu().numpy().tobytes())
    raise TypeError(type(value).__name__)


@contextlib.contextmanager
def remembering(pipeline: Any, memory: Memory) -> Iterator[None]:
    """While it lasts, ``encode_prompt`` (or the text encoder of a pipeline without one) runs once for each batch."""
    if hasattr(type(pipeline), "encode_prompt"):
        places = [(pipeline, "encode_prompt")]
    else:
        encoders = [getattr(pipeline, name, None) for name in ENCODERS]
        places = [(encoder, "forward") for encoder in encoders if isinstance(encoder, torch.nn.Module)]
    before = [(vars(owner), name, vars(owner).get(name)) for owner, name in places]
    try:
        for number, (owner, name) in enumerate(places):
            vars(owner)[name] = memory.of(f"{number}.{name}", getattr(owner, name))
        yield
    finally:
        for state, name, old in before:
            state.pop(name, None)
            if old is not None:
                state[name] = old


def _identity(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read_prompts(path: Path, column: str | None = None) -> tuple[str, ...]:
    """The prompts in a file, in their order, without empty ones. Raises UserError."""
    if column is not None and path.suffix.lower() not in DELIMITERS:
        raise UserError(f"conditions: column is for {', '.join(DELIMITERS)} files; got {path.name}: leave column out")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"conditions: file {path} cannot be read as UTF-8 text: {reason_of(error)}") from None
    if path.suffix.lower() == ".json":
        lines = _captions(text, path)
    elif path.suffix.lower() in DELIMITERS:
        lines = _column(text, path, column)
    else:
        lines = text.splitlines()
    prompts = tuple(stripped for line in lines if (stripped := line.strip()))
    if not prompts:
        raise UserError(f"conditions: file {path} must hold at least one prompt; it holds none")
    return prompts


def _captions(text: str, path: Path) -> list[str]:
    """COCO has about five captions an image; the first of each, so that prompts are as varied as images."""
    try:
        annotations = json.loads(text)["annotations"]
        first: dict[object, str] = {}
        for index, annotation in enumerate(annotations):
            first.setdefault(annotation.get("image_id", ("none", index)), str(annotation["caption"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f'conditions: file {path} must be as COCO\'s captions: {{"annotations": [{{"caption": "..."}}, ...]}}'
        ) from None
    return list(first.values())


def _column(text: str, path: Path, column: str | None) -> list[str]:
    rows = csv.DictReader(text.splitlines(keepends=True), delimiter=DELIMITERS[path.suffix.lower()])
    names = list(rows.fieldnames or [])
    if column is None or column not in names:
        raise unknown(f"conditions: column (of {path.name})", str(column or ""), names)
    return [row[column] or "" for row in rows]


def _labels(classes: int | tuple[int, ...] | None, count: int | None) -> tuple[int, ...]:
    """The labels, within the model's ``count`` classes where that is known. Raises UserError."""
    if classes is None and count is None:
        raise UserError("conditions: the model does not say how many classes it has; give classes")
    labels = tuple(range(classes or count or 0)) if not isinstance(classes, tuple) else classes
    wrong = [label for label in labels if label < 0 or (count is not None and label >= count)]
    if wrong:
        limit = "0 or more" if count is None else f"from 0 to {count - 1}, the model's classes"
        raise UserError(f"conditions: classes must be {limit}; got {wrong[0]}")
    return labels


def existing_file(name: str, base: Path | None) -> Path:
    """The file of prompts. Raises UserError where it is not there."""
    path = absolute(name, base)
    if not path.is_file():
        raise UserError(f"conditions: file {name!r} is not there: there is no file {path}")
    return path
