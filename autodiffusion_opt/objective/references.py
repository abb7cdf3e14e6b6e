"""References: the statistics that generated images are compared with, computed once and kept on disk.

A reference is an embedded model's real images, a folder of images, or an ``.npz`` file with ``mu`` and ``sigma``, as
the FID literature exchanges them. What a metric asks for, statistics or features, is computed when it is asked for.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.features import Extractor
from autodiffusion_opt.objective.statistics import Gaussian, Moments
from autodiffusion_opt.paths import absolute
from autodiffusion_opt.progress import Progress, counted, silent
from autodiffusion_opt.zoo import EMBEDDED, Embedded

CACHE_VARIABLE = "AUTODIFFUSION_CACHE"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
BATCH = 64


@dataclass(frozen=True)
class Reference:
    """What images are compared with.

    Attributes:
        identity: changes when its images, its file or its features do.
    """

    identity: str
    _statistics: Callable[[], Gaussian]
    _features: Callable[[], NDArray[np.float32]]

    @cached_property
    def statistics(self) -> Gaussian:
        """Mean and covariance of its features."""
        return self._statistics()

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """Its features, (N, D). Raises UserError for a file of statistics, which holds none."""
        return self._features()


def cache_folder() -> Path:
    """Where computed statistics are kept: ``$AUTODIFFUSION_CACHE``, else the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autodiffusion-opt"


def load_reference(name: str, extractor: Extractor, base: Path | None = None, progress: Progress = silent) -> Reference:
    """A reference in an extractor's features.

    Args:
        name: an embedded model, a folder of images, or an ``.npz`` file.
        extractor: what the features come from.
        base: the folder that a relative name starts from; None: the working folder.
        progress: is told of images read and measured.

    Raises:
        UserError: for a reference that does not exist or holds no images.
    """
    if name in EMBEDDED:
        module = EMBEDDED[name].module()
        content = hashlib.sha256(module.IMAGES.read_bytes()).hexdigest()
        return _measured(content, extractor, lambda: _embedded_batches(EMBEDDED[name]))
    path = _existing(name, base)
    if path.suffix == ".npz":
        statistics = read_statistics(path)
        identity = _identity(hashlib.sha256(path.read_bytes()).hexdigest(), extractor)
        return Reference(identity, lambda: statistics, lambda: _no_features(path))
    files = image_files(path)
    content = _files_key(path, files, progress)
    return _measured(
        content, extractor, lambda: counted(_file_batches(files), progress, "measuring reference", len(files))
    )


def _no_features(path: Path) -> NDArray[np.float32]:
    raise UserError(f"reference: {path} holds statistics alone; this metric compares features: give a folder of images")


def image_files(folder: Path) -> list[Path]:
    """All images below a folder, in the order of their names. Raises UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"reference: {folder} must be a folder of images or an .npz file")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        endings = ", ".join(SUFFIXES)
        raise UserError(
            f"reference: the folder {folder} must hold at least 2 images ({endings}); it holds {len(files)}"
        )
    return files


def read_statistics(path: Path) -> Gaussian:
    """``mu`` (D,) and ``sigma`` (D, D) from an ``.npz`` file; pickled arrays are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in ("mu", "sigma") if key not in file]
            if missing:
                raise UserError(f"reference: {path} must hold mu and sigma; {', '.join(missing)} is missing")
            mean, covariance = file["mu"].astype(np.float64), file["sigma"].astype(np.float64)
            count = int(file["count"]) if "count" in file else 0
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:  # TypeError: a lone array
        raise UserError(f"reference: {path} must be an .npz file with mu and sigma; {error}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"reference: {path}: mu must be (D,), sigma (D, D); got {mean.shape}, {covariance.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"reference: {path}: mu and sigma must be finite numbers; some are not")
    return Gaussian(mean, covariance, count)


def measure(batches: Iterator[torch.Tensor], extractor: Extractor) -> Gaussian:
    """The statistics of images, batch by batch."""
    moments: Moments | None = None
    for images in batches:
        features = extractor(images)
        moments = moments or Moments(features.shape[1])
        moments.add(features)
    if moments is None:
        raise UserError("reference: there are no images")
    return moments.gaussian()


def _existing(name: str, base: Path | None) -> Path:
    path = absolute(name, base)
    if not path.exists():
        raise UserError(
            f"reference must be an embedded model ({', '.join(EMBEDDED)}), a folder of images, or an .npz file; "
            f"{name!r} is not there: there is no {path}"
        )
    return path


def _measured(content: str, extractor: Extractor, batches: Callable[[], Iterator[torch.Tensor]]) -> Reference:
    """A reference whose statistics are kept on disk, under what its images and its features are."""
    identity = _identity(content, extractor)

    def statistics() -> Gaussian:
        path = cache_folder() / f"reference-{identity}.npz"
        if path.is_file():
            return read_statistics(path)
        gaussian = measure(batches(), extractor)
        _write(path, gaussian)
        return gaussian

    return Reference(identity, statistics, lambda: np.concatenate([extractor(images) for images in batches()]))


def _identity(content: str, extractor: Extractor) -> str:
    return hashlib.sha256(f"{content}\n{extractor.identity}".encode()).hexdigest()[:32]


def _write(path: Path, gaussian: Gaussian) -> None:
    """Written beside and renamed, so that no other process reads half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            np.savez(file, mu=gaussian.mean, sigma=gaussian.covariance, count=np.array(gaussian.count))
        os.replace(file.name, path)
    except OSError as error:
        raise UserError(
            f"the statistics of the reference cannot be kept in {path.parent}: {error.strerror}; "
            f"name a folder that can be written with {CACHE_VARIABLE}"
        ) from None


def _embedded_batches(embedded: Embedded) -> Iterator[torch.Tensor]:
    images = embedded.module().load_images()
    yield from (images[start : start + 256] for start in range(0, len(images), 256))


def _files_key(folder: Path, files: list[Path], progress: Progress) -> str:
    total = hashlib.sha256()
    for done, path in enumerate(files, 1):
        total.update(str(path.relative_to(folder)).encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
        progress("reading reference", done, len(files))
    return total.hexdigest()


def _file_batches(files: list[Path]) -> Iterator[torch.Tensor]:
    """Batches of images of one size; those that follow each other and agree go together."""
    for _, group in groupby((_read_image(path) for path in files), key=lambda image: image.shape):
        batch: list[torch.Tensor] = []
        for image in group:
            batch.append(image)
            if len(batch) == BATCH:
                yield torch.stack(batch)
                batch = []
        if batch:
            yield torch.stack(batch)


def _read_image(path: Path) -> torch.Tensor:
    """uint8 (1 or 3, H, W)."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            array = np.array(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"reference: {path} cannot be read as an image: {error}") from None
    tensor = torch.from_numpy(array)
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)
