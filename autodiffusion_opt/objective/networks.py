"""A network of one's own in a file, as features: ``torch.export``'s ``.pt2``, or TorchScript's ``.pt`` and ``.ts``."""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.exported import load_exported
from autodiffusion_opt.objective.pickles import no_pickles

EXPORTED, SCRIPTED = (".pt2",), (".pt", ".ts")


def is_network(features: str) -> bool:
    """Whether a table's ``features`` names a file."""
    return features.endswith((*EXPORTED, *SCRIPTED))


class NetworkFeatures:
    """A network that takes images as they are, uint8 (N, C, H, W), and gives floats (N, D).

    Nothing of the file is unpickled: TorchScript is read by torch's own reader in C++, an export archive as
    :mod:`~autodiffusion_opt.objective.exported` says.

    Raises:
        UserError: for a file that is not there or holds no such network.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path = path
        self._device = device
        if not path.is_file():
            raise UserError(f"features: the file {path} must exist")
        content = path.read_bytes()
        self.identity = f"network-{hashlib.sha256(content).hexdigest()[:32]}"
        self._network = (
            _exported(path, content, device) if path.suffix in EXPORTED else _scripted(path, content, device)
        )

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> NDArray[np.float32]:
        """Raises UserError where the network fails on these images, or gives something else than features."""
        shape = tuple(images.shape)
        try:
            output = self._network(images.to(self._device))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of whatever the network does
            raise UserError(
                f"features: the network {self._path} failed on uint8 images of the shape {shape}: {_last_line(error)}"
            ) from None
        if not isinstance(output, torch.Tensor) or not output.is_floating_point() or output.shape[:-1] != shape[:1]:
            raise UserError(
                f"features: the network {self._path} must give floats of the shape (N, D) for N images; for "
                f"{shape[0]} images it gave {_described(output)}"
            )
        features: NDArray[np.float32] = output.float().cpu().numpy()
        return features


def _exported(path: Path, content: bytes, device: torch.device) -> Callable[[torch.Tensor], Any]:
    try:
        with no_pickles(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.9's own
            return load_exported(content, device)
    except zipfile.BadZipFile:
        reason = "it is no archive"
    except Exception as error:  # what is malformed raises errors of any class
        reason = _last_line(error)
    raise UserError(f"features: {path} must be a network as torch.export.save writes it; {reason}")


def _scripted(path: Path, content: bytes, device: torch.device) -> Callable[[torch.Tensor], Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
            network = torch.jit.load(io.BytesIO(content), map_location=device)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise UserError(
            f"features: {path} must be a network in TorchScript, as torch.jit.save writes it (a state dict holds "
            f"weights alone): {_last_line(error)}"
        ) from None
    scripted: Callable[[torch.Tensor], Any] = network.eval()
    return scripted


def _last_line(error: Exception) -> str:
    """TorchScript's errors begin with a trace of the network's code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _described(output: Any) -> str:
    if isinstance(output, torch.Tensor):
        return f"{tuple(output.shape)} of {str(output.dtype).removeprefix('torch.')}"
    return f"a {type(output).__name__}"
