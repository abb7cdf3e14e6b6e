"""Files of weights, read so that nothing in them is executed, and pipelines written as folders."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.sampling.renaming import State
from autodiffusion_opt.text import listed

# Whose objects PyTorch Lightning keeps beside the weights: of callbacks, settings and numbers of its training.
_KEPT_BY_LIGHTNING = ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "numpy")
_RESAVE = (
    "Get a file of weights alone (.safetensors), or write its state_dict as one with safetensors.torch.save_file, in "
    "the environment that it was trained in"
)


class _StandIn:
    """In place of an object of another library: does nothing, whatever it is made of."""

    def __new__(cls, *_args: Any, **_settings: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_settings: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


def read_weights(file: Path) -> State:
    """Names and weights in a PyTorch or a safetensors file; of a training checkpoint, those under ``state_dict``.

    Args:
        file: is read with ``weights_only``; what PyTorch Lightning keeps beside the weights becomes stand-ins.

    Raises:
        UserError: for a file that cannot be read, or that holds anything else.
    """
    try:
        if file.suffix == ".safetensors":
            weights: State = load_file(file)
            return weights
        with stand_ins(file):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {reason_of(error)}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{file} must be a file of weights alone: {reason_of(error)}. {_RESAVE}") from None
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    is_state = isinstance(content, Mapping) and bool(content)
    if not is_state or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{file} must hold names and weights, as a state_dict has them; got {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


@contextlib.contextmanager
def stand_ins(file: Path) -> Iterator[None]:
    """Within this, ``torch.load(weights_only=True)`` reads what PyTorch Lightning wrote; none of its code is run.

    Raises:
        UserError: for objects of any other library.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except (ValueError, RuntimeError, pickle.UnpicklingError, EOFError):
        names = []  # no zip file: torch.load says what it is
    strange = sorted(name for name in names if name.partition(".")[0] not in _KEPT_BY_LIGHTNING)
    if strange:
        raise UserError(
            f"{file} must be a file of weights alone; it holds objects that are not read: {listed(strange)}. {_RESAVE}"
        )
    with torch.serialization.safe_globals([(_StandIn, name) for name in names]):
        yield


def saved(pipeline: Any, folder: Path) -> dict[str, Any]:
    """Write a pipeline as a folder of safetensors.

    Returns:
        The folder, the pipeline's class, and how many weights there are of each network.

    Raises:
        UserError: for a folder that cannot be written.
    """
    try:
        pipeline.save_pretrained(folder)
    except OSError as error:
        raise UserError(f"-o: {folder} cannot be written: {reason_of(error)}") from None
    networks = {key: part for key, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    sizes = {key: sum(weight.numel() for weight in net.parameters()) for key, net in networks.items()}
    return {"folder": str(folder), "pipeline": type(pipeline).__name__, "parameters": sizes}
