"""``.npz`` files as references, in the forms that are exchanged.

``mu`` and ``sigma``: statistics, as the FID literature writes them. ``features`` or ``feats``: (N, D). ``arr_0``: uint8
images, (N, H, W, C), as ADM's reference batches are; where such a file also has ``mu`` and ``sigma``, they are taken
from more images than it holds, so statistics come from them and features from the images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autodiffusion_opt.cache import packed
from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.files import write_whole
from autodiffusion_opt.objective.archives import Archive
from autodiffusion_opt.objective.statistics import Gaussian

FEATURES = ("features", "feats")
IMAGES = "arr_0"
# The identity of the extractor that features or statistics come from.
EXTRACTOR = "features_identity"
ROWS = 1024
BATCH_PIXELS = 2**22


def read_statistics(path: Path) -> Gaussian:
    """``mu`` (D,) and ``sigma`` (D, D). Raises UserError where they are missing, or are no mean and covariance."""
    with Archive(path) as archive:
        missing = [key for key in ("mu", "sigma") if key not in archive]
        if missing:
            raise UserError(f"reference: {path} must hold mu and sigma; {', '.join(missing)} is missing")
        mu, sigma = archive.header("mu"), archive.header("sigma")
        if len(mu.shape) != 1 or sigma.shape != mu.shape * 2:
            raise UserError(f"reference: {path}: mu must be (D,), sigma (D, D); got {mu.shape}, {sigma.shape}")
        if mu.dtype.kind not in "fiu" or sigma.dtype.kind not in "fiu":
            raise UserError(f"reference: {path}: mu and sigma must be numbers; got {mu.dtype}, {sigma.dtype}")
        mean, covariance = (archive.array(key).astype(np.float64) for key in ("mu", "sigma"))
        count = _count(archive)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"reference: {path}: mu and sigma must be finite numbers; some are not")
    largest = np.abs(covariance).max(initial=0.0)
    if np.abs(covariance - covariance.T).max(initial=0.0) > 1e-4 * largest or covariance.diagonal().min(initial=0) < 0:
        raise UserError(
            f"reference: {path}: sigma must be a covariance: symmetric, with no number below 0 on its diagonal"
        )
    return Gaussian(mean, covariance, count)


def _count(archive: Archive) -> int:
    if "count" not in archive or archive.header("count").shape != ():
        return 0
    count = archive.array("count")
    return int(count) if count.dtype.kind in "iu" else 0


def write_statistics(path: Path, gaussian: Gaussian, identity: str) -> None:
    """A file that is a reference for features of that identity.

    Raises:
        UserError: where it cannot be written.
    """
    arrays = {"mu": gaussian.mean, "sigma": gaussian.covariance, "count": np.array(gaussian.count)}
    try:
        write_whole(path, packed({**arrays, EXTRACTOR: np.array(identity)}))
    except OSError as error:
        raise UserError(f"-o: {path} cannot be written: {reason_of(error)}") from None


class ReferenceFile:
    """What an ``.npz`` file holds; only headers are read at first.

    Attributes:
        identity: of the extractor that its statistics or features come from; empty where it does not say.
        features: the name of its array of features; None: it has none.
        features_shape: of that array; empty where there is none.
        images: how many images it holds.

    Raises:
        UserError: for a file in none of the forms.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with Archive(path) as archive:
            self.has_statistics = "mu" in archive or "sigma" in archive
            self.features = next((key for key in FEATURES if key in archive), None)
            self.images = self._image_count(archive) if IMAGES in archive else 0
            self.identity = self._identity(archive)
            self.features_shape = () if self.features is None else self._checked_shape(archive, self.features)
        if not (self.has_statistics or self.features or self.images):
            raise UserError(
                f"reference: {path} must hold mu and sigma, or features (named features or feats), or images "
                "(arr_0, uint8, N × H × W × C); mu, sigma is missing, and so are the others"
            )

    def check_extractor(self, identity: str) -> None:
        """Raises UserError where its statistics or features are those of another extractor."""
        if self.identity and self.identity != identity:
            raise UserError(
                f"reference: {self.path} was made with the features {self.identity!r}; the objective's are "
                f"{identity!r}. Make it again with the same features, or name those in the objective"
            )

    def content_hash(self) -> str:
        """Of its bytes."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def feature_blocks(self) -> Iterator[NDArray[np.float32]]:
        """Its features, some rows at a time."""
        assert self.features is not None
        with Archive(self.path) as archive:
            for block in archive.blocks(self.features, ROWS):
                yield block.astype(np.float32)

    def image_batches(self) -> Iterator[torch.Tensor]:
        """Its images, uint8 NCHW, some at a time."""
        with Archive(self.path) as archive:
            _, height, width, _ = archive.header(IMAGES).shape
            size = max(1, min(64, BATCH_PIXELS // (height * width)))
            for block in archive.blocks(IMAGES, size):
                yield torch.from_numpy(block.transpose(0, 3, 1, 2).copy())

    def _identity(self, archive: Archive) -> str:
        if EXTRACTOR not in archive:
            return ""
        header = archive.header(EXTRACTOR)
        return str(archive.array(EXTRACTOR)) if header.dtype.kind == "U" and header.shape == () else ""

    def _checked_shape(self, archive: Archive, key: str) -> tuple[int, ...]:
        header = archive.header(key)
        if len(header.shape) != 2 or header.shape[0] < 2 or header.dtype.kind != "f":
            raise UserError(
                f"reference: {self.path}: {key} must be (N, D) floats of at least 2 images; got {header.shape} of "
                f"{header.dtype}"
            )
        return header.shape

    def _image_count(self, archive: Archive) -> int:
        header = archive.header(IMAGES)
        shape = header.shape
        if header.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or shape[0] < 2 or 0 in shape:
            raise UserError(
                f"reference: {self.path}: {IMAGES} must be at least 2 images, uint8 (N, H, W, 1 or 3); got {shape} of "
                f"{header.dtype}"
            )
        return shape[0]
