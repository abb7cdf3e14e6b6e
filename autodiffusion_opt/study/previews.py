"""Previews: a small picture of the first images of a baseline or an improving candidate, beside the database.

They are Optuna's artifacts, which the dashboard shows: a PNG file in a folder, and what it is in SQL. The images are
those that the trial measured, so they cost nothing more, and image i has the same noise in every trial.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from PIL import Image

from autodiffusion_opt.trials.attributes import ARTIFACT, values_of
from autodiffusion_opt.trials.database import is_sqlite, parsed_url
from autodiffusion_opt.trials.history import dominates, losses_of

if TYPE_CHECKING:
    import torch

# The folder of previews, where it is not beside an SQLite file.
VARIABLE = "AUTODIFFUSION_ARTIFACTS"
DEFAULT_FOLDER = "studies/artifacts"
FILE_NAME = "preview.png"
# A study has no more previews than this.
MOST = 200
# Pixels of an image in a preview: smaller ones are enlarged by a whole factor, so that pixels stay pixels; larger ones
# are made smaller, so that 16 images are a file of less than half a megabyte.
SMALLEST, LARGEST = 32, 96


def artifact_folder(url: str) -> Path:
    """Where the previews of a database's studies are: ``$AUTODIFFUSION_ARTIFACTS``, else beside an SQLite file.

    Args:
        url: of the database. Of one on a server the folder is ``studies/artifacts``, below the working folder.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given)
    parsed = parsed_url(url)
    if is_sqlite(parsed) and parsed.database:
        return Path(f"{parsed.database}.artifacts")
    return Path(DEFAULT_FOLDER)


def tile(images: torch.Tensor, columns: int | None = None, largest: int | None = None) -> Image.Image:
    """A block of images with one pixel between them, in the order of their indices, row by row.

    Args:
        images: uint8 (N, C, H, W), of one channel or three.
        columns: None: as many as rows, or one more.
        largest: pixels of an image's longer side at most; None: as it is.
    """
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    count, height, width, _ = pixels.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else min(columns, count)
    factor = max(1, math.ceil(SMALLEST / width))
    if largest is not None and max(height, width) > largest:
        pixels = _made_smaller(pixels, largest / max(height, width))
        count, height, width, _ = pixels.shape
    cell = np.full((math.ceil(count / columns), columns, height * factor + 1, width * factor + 1, 3), 255, np.uint8)
    for index in range(count):
        large = pixels[index].repeat(factor, axis=0).repeat(factor, axis=1)
        cell[index // columns, index % columns, : height * factor, : width * factor] = large
    rows, columns, tall, wide, _ = cell.shape
    return Image.fromarray(cell.transpose(0, 2, 1, 3, 4).reshape(rows * tall, columns * wide, 3))


def _made_smaller(
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], factor: float
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    _, height, width, _ = pixels.shape
    size = max(1, round(width * factor)), max(1, round(height * factor))
    pictures = (Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in pixels)
    smaller = [np.asarray(picture.resize(size, Image.Resampling.LANCZOS)) for picture in pictures]
    return np.stack([image[..., None] if image.ndim == 2 else image for image in smaller])


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def is_improving(values: tuple[float, ...], trials: Iterable[FrozenTrial], directions: list[StudyDirection]) -> bool:
    """Whether no complete trial is as good in every value: a new best, or a new point of the front."""
    losses = losses_of(values, directions)
    known = (values_of(trial) for trial in trials)
    earlier = (losses_of(previous, directions) for previous in known if previous is not None)
    return not any(previous == losses or dominates(previous, losses) for previous in earlier)


def keep_preview(
    trial: optuna.Trial,
    images: torch.Tensor,
    trials: Mapping[int, FrozenTrial],
    url: str,
    columns: int | None = None,
) -> None:
    """Keep the preview of a running trial; where it cannot be written a warning says so, and the trial goes on.

    Args:
        trial: is running.
        images: its first, uint8 (N, C, H, W).
        trials: of the study.
        url: of the database.
        columns: of the picture; None: about as many as rows.
    """
    if sum(preview_id(each) is not None for each in trials.values()) >= MOST:
        return
    folder = artifact_folder(url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / FILE_NAME
            path.write_bytes(png(tile(images, columns, LARGEST)))
            store = FileSystemArtifactStore(folder)
            upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial, mimetype="image/png")
    except OSError as error:
        warnings.warn(f"the preview of trial {trial.number} cannot be kept in {folder}: {error}", stacklevel=2)


def preview_id(trial: FrozenTrial) -> str | None:
    """The id of a trial's preview; None where it has none."""
    if not trial.system_attrs:
        return None
    return next((key.removeprefix(ARTIFACT) for key in trial.system_attrs if key.startswith(ARTIFACT)), None)


def read_preview(trial: FrozenTrial, url: str) -> bytes | None:
    """The PNG file of a trial's preview; None where it has none, or the file is not on this machine."""
    artifact = preview_id(trial)
    if artifact is None or not artifact.replace("-", "").isalnum():  # an id is a file's name
        return None
    try:
        content = (artifact_folder(url) / artifact).read_bytes()
    except OSError:
        return None
    return content if content.startswith(b"\x89PNG") else None


def remove_previews(artifacts: Iterable[str], url: str) -> None:
    """Delete the files of these ids."""
    for artifact in artifacts:
        if artifact.replace("-", "").isalnum():
            (artifact_folder(url) / artifact).unlink(missing_ok=True)


def copy_previews(trials: Iterable[FrozenTrial], url: str, target: str) -> None:
    """Copy the files of trials that were copied to another database; a warning tells where they cannot be."""
    old, new = artifact_folder(url), artifact_folder(target)
    pictures = {preview_id(trial): read_preview(trial, url) for trial in trials}
    if old.resolve() == new.resolve():
        return
    try:
        for artifact, content in pictures.items():
            if artifact is not None and content is not None:
                new.mkdir(parents=True, exist_ok=True)
                (new / artifact).write_bytes(content)
    except OSError as error:
        warnings.warn(f"the previews cannot be copied to {new}: {error}", stacklevel=2)
