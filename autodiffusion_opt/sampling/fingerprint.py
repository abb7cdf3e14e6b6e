"""A pipeline's fingerprint: the same for the same weights and settings, another where either changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.load import model_folder

# Of larger files, the first and last part of this size stand for the whole.
PART = 8 * 2**20
IGNORED = {".gitattributes", "README.md"}
# Values of each weight that stand for the whole, where a pipeline was given as an object.
VALUES = 1024


def fingerprint(
    pipeline: Any, model: str, revision: str | None = None, variant: str | None = None, base: Path | None = None
) -> str:
    """SHA-256 over the scheduler's configuration and, for a folder, its files; for a hub id, its resolved commit.

    ``base`` is the folder that a relative ``model`` starts from; None: the working folder.
    """
    total = hashlib.sha256()
    total.update(json.dumps([*_scheduler_settings(pipeline), revision, variant]).encode())
    folder = model_folder(model, base)
    if folder is None:
        total.update(f"{model}@{_commit(pipeline)}".encode())
        return total.hexdigest()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in IGNORED):
        if not path.relative_to(folder).parts[0].startswith("."):
            total.update(str(path.relative_to(folder)).encode() + b"\0" + _digest(path))
    return total.hexdigest()


def _digest(path: Path) -> bytes:
    digest, size = hashlib.sha256(), path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(PART))
        file.seek(max(PART, size - PART))
        digest.update(file.read())
    return digest.digest()


def _commit(pipeline: Any) -> str:
    """The commit that the hub cache resolved: the folder's name below ``snapshots``."""
    parts = Path(str(pipeline.config.get("_name_or_path", ""))).parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else ""


def fingerprint_object(pipeline: Any) -> str:
    """SHA-256 over a pipeline object: class, scheduler's configuration, and up to 1,024 values of every weight.

    For pipelines that were handed over in Python: of these no file is known.
    """
    total = hashlib.sha256(json.dumps([type(pipeline).__qualname__, *_scheduler_settings(pipeline)]).encode())
    _add_weights(total, denoiser_of(pipeline))
    return total.hexdigest()


def fingerprint_components(pipeline: Any) -> str:
    """SHA-256 over a pipeline object and all of its networks, the decoder and the text encoders too, with their types.

    The networks' own forward passes are not read: of these the versions of libraries tell.
    """
    total = hashlib.sha256(fingerprint_object(pipeline).encode())
    for name, component in sorted(getattr(pipeline, "components", {}).items()):
        if isinstance(component, torch.nn.Module):
            total.update(f"{name} {type(component).__qualname__} {getattr(component, 'dtype', '')}".encode())
            _add_weights(total, component)
    return total.hexdigest()


def fingerprint_weights(network: torch.nn.Module) -> str:
    """SHA-256 over up to 1,024 values of every weight of a network."""
    total = hashlib.sha256()
    _add_weights(total, network)
    return total.hexdigest()


def _add_weights(total: Any, network: torch.nn.Module) -> None:
    for name, weight in sorted(network.state_dict().items()):
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // VALUES)][:VALUES].float().cpu().numpy()
        total.update(f"{name} {tuple(weight.shape)}".encode() + sample.tobytes())


def _scheduler_settings(pipeline: Any) -> list[Any]:
    config = sorted(pipeline.scheduler.config.items())
    return [type(pipeline.scheduler).__name__, {key: str(value) for key, value in config if not key.startswith("_")}]
