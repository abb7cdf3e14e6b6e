"""References: the statistics that generated images are compared with, computed once and kept on disk.

A reference is an embedded model's real images, a folder of images, a data set on disk, or an ``.npz`` file. What a
metric asks for, statistics or features, is computed when it is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autodiffusion_opt.cache import kept
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.data_sets import DataSet, is_data_set
from autodiffusion_opt.objective.features import Extractor
from autodiffusion_opt.objective.image_files import batches, check_images, content_hash, image_paths, read_image
from autodiffusion_opt.objective.reference_files import ReferenceFile, read_statistics
from autodiffusion_opt.objective.statistics import Array, Gaussian, Moments, square_root
from autodiffusion_opt.paths import absolute
from autodiffusion_opt.progress import Progress, counted, silent
from autodiffusion_opt.zoo import EMBEDDED

KEPT = "statistics of the reference"


@dataclass(frozen=True)
class Reference:
    """What images are compared with.

    Attributes:
        identity: changes when its images, its file or its features do.
        device: where a metric may compute in float64, as torch names it; None: in NumPy.
    """

    identity: str
    _statistics: Callable[[], Gaussian]
    _features: Callable[[], NDArray[np.float32]]
    device: str | None = None

    @cached_property
    def statistics(self) -> Gaussian:
        """Mean and covariance of its features."""
        return self._statistics()

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """Its features, (N, D). Raises UserError for a file of statistics, which holds none."""
        return self._features()


@dataclass(frozen=True)
class KeptGaussian(Gaussian):
    """A normal distribution whose root, too, is kept on disk.

    Attributes:
        identity: of the reference.
    """

    identity: str = ""

    @cached_property
    def root(self) -> Array:
        """The symmetric square root of the covariance; D³ operations, once for each reference."""
        name = f"reference-{self.identity}-root"
        return kept(name, lambda: {"root": square_root(self.covariance)}, KEPT)["root"]


@dataclass(frozen=True)
class Images:
    """The images of a source.

    Attributes:
        content: a hash of them.
        count: how many.
        batches: gives them, uint8 NCHW.
    """

    content: str
    count: int
    batches: Callable[[], Iterator[torch.Tensor]]


def load_reference(
    name: str,
    extractor: Extractor,
    base: Path | None = None,
    progress: Progress = silent,
    device: torch.device | str | None = None,
) -> Reference:
    """A reference in an extractor's features.

    Args:
        name: an embedded model, a folder of images or a data set, or an ``.npz`` file.
        extractor: what the features come from.
        base: the folder that a relative name starts from; None: the working folder.
        progress: is told of images read and measured.
        device: the pipeline's; where it is an NVIDIA or AMD GPU, metrics may compute there.

    Raises:
        UserError: for a reference that does not exist, cannot be read, holds no images, or has other features.
    """
    place = str(device) if device is not None and torch.device(device).type == "cuda" else None
    path = None if name in EMBEDDED else existing_source(name, base)
    if path is not None and path.suffix == ".npz":
        return _of_file(ReferenceFile(path), extractor, progress, place)
    images = images_of(name, base, progress)
    return _reference(images.content, extractor, lambda: map(extractor, images.batches()), place)


def images_of(name: str, base: Path | None = None, progress: Progress = silent) -> Images:
    """The images of an embedded model, a folder, a data set or an ``.npz`` file of images.

    Raises:
        UserError: for a source that does not exist, cannot be read, or holds no images.
    """
    if name in EMBEDDED:
        module = EMBEDDED[name].module()
        pixels = module.load_images()
        content = hashlib.sha256(module.IMAGES.read_bytes()).hexdigest()
        return Images(content, len(pixels), lambda: iter(pixels.split(256)))
    path = existing_source(name, base)
    if path.suffix == ".npz":
        return _images_of_file(ReferenceFile(path), progress)
    if is_data_set(path):
        rows = DataSet(path)
        return Images(
            rows.content_hash(progress), len(rows), lambda: _told(batches(rows.images()), progress, len(rows))
        )
    files = image_paths(path)

    def read() -> Iterator[torch.Tensor]:
        check_images(path, files, progress)
        yield from _told(batches(map(read_image, files)), progress, len(files))

    return Images(content_hash(path, files, progress), len(files), read)


def measure(features: Iterable[NDArray[np.float32]]) -> Gaussian:
    """The statistics of features, block by block. Raises UserError where there are none, or they are not finite."""
    moments: Moments | None = None
    for block in features:
        moments = moments or Moments(block.shape[1])
        moments.add(block)
    if moments is None:
        raise UserError("reference: there are no images")
    gaussian = moments.gaussian()
    if not np.isfinite(gaussian.covariance).all():
        raise UserError("reference: the features of its images must be finite numbers; some are not")
    return gaussian


def _of_file(file: ReferenceFile, extractor: Extractor, progress: Progress, device: str | None) -> Reference:
    """Statistics from ``mu`` and ``sigma``, else from features, else from images; features from the latter two."""
    file.check_extractor(extractor.identity)
    given = read_statistics(file.path) if file.has_statistics else None

    def features() -> Iterable[NDArray[np.float32]]:
        if file.features is not None:
            return file.feature_blocks()
        return map(extractor, _images_of_file(file, progress).batches())

    return _reference(file.content_hash(), extractor, features, device, given)


def _images_of_file(file: ReferenceFile, progress: Progress) -> Images:
    if not file.images:
        raise UserError(
            f"reference: {file.path} holds statistics alone; this metric compares features: give a folder of images"
        )
    return Images(file.content_hash(), file.images, lambda: _told(file.image_batches(), progress, file.images))


def _reference(
    content: str,
    extractor: Extractor,
    features: Callable[[], Iterable[NDArray[np.float32]]],
    device: str | None,
    given: Gaussian | None = None,
) -> Reference:
    """A reference whose statistics, unless they are given, are kept on disk under what its images and features are."""
    identity = hashlib.sha256(f"{content}\n{extractor.identity}".encode()).hexdigest()[:32]

    def compute() -> dict[str, NDArray[Any]]:
        gaussian = measure(features())
        return {"mu": gaussian.mean, "sigma": gaussian.covariance, "count": np.array(gaussian.count)}

    def statistics() -> Gaussian:
        if given is not None:
            return KeptGaussian(given.mean, given.covariance, given.count, identity)
        stored = kept(f"reference-{identity}", compute, KEPT)
        return KeptGaussian(stored["mu"], stored["sigma"], int(stored["count"]), identity)

    return Reference(identity, statistics, lambda: np.concatenate(list(features())), device)


def existing_source(name: str, base: Path | None) -> Path:
    """The folder or file of a source that no embedded model is. Raises UserError where it is not there."""
    path = absolute(name, base)
    if not path.exists():
        raise UserError(
            f"reference must be an embedded model ({', '.join(EMBEDDED)}), a folder of images, or an .npz file; "
            f"{name!r} is not there: there is no {path}"
        )
    return path


def _told(images: Iterator[torch.Tensor], progress: Progress, count: int) -> Iterator[torch.Tensor]:
    return counted(images, progress, "measuring reference", count)
