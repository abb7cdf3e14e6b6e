"""A pipeline's fingerprint: the same for the same weights and settings, another where either changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from autodiffusion_opt.sampling.load import model_folder

# Of larger files, the first and last part of this size stand for the whole.
PART = 8 * 2**20
IGNORED = {".gitattributes", "README.md"}


def fingerprint(pipeline: Any, model: str, revision: str | None = None, variant: str | None = None) -> str:
    """SHA-256 over the scheduler's configuration and, for a folder, its files; for a hub id, its resolved commit."""
    total = hashlib.sha256()
    settings = {key: str(value) for key, value in sorted(pipeline.scheduler.config.items()) if not key.startswith("_")}
    total.update(json.dumps([type(pipeline.scheduler).__name__, settings, revision, variant]).encode())
    folder = model_folder(model)
    if folder is None:
        total.update(f"{model}@{_commit(pipeline)}".encode())
        return total.hexdigest()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in IGNORED):
        if not path.relative_to(folder).parts[0].startswith("."):
            total.update(str(path.relative_to(folder)).encode() + b"\0" + _digest(path))
    return total.hexdigest()


def _digest(path: Path) -> bytes:
    found, size = hashlib.sha256(), path.stat().st_size
    found.update(str(size).encode())
    with path.open("rb") as file:
        found.update(file.read(PART))
        file.seek(max(PART, size - PART))
        found.update(file.read())
    return found.digest()


def _commit(pipeline: Any) -> str:
    """The commit that the hub cache resolved: the folder's name below ``snapshots``."""
    parts = Path(str(pipeline.config.get("_name_or_path", ""))).parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else ""
