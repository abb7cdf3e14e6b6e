"""What ``autodiffusion-opt reference`` does: makes a file of statistics from real images, says what a source holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.files import check_output
from autodiffusion_opt.objective.features import Extractor, colour, load_extractor
from autodiffusion_opt.objective.reference_files import ReferenceFile, read_statistics, write_statistics
from autodiffusion_opt.objective.references import images_of, load_reference
from autodiffusion_opt.paths import absolute
from autodiffusion_opt.progress import Progress
from autodiffusion_opt.report.grid import check_picture, save_grid
from autodiffusion_opt.report.text_table import TextTable
from autodiffusion_opt.sampling.load import pick_device
from autodiffusion_opt.zoo import EMBEDDED

# Images of a preview, and the pixels of the longer side of one.
PREVIEW = 64
SIDE = 128


def make_reference(
    source: str, features: str, output: Path, progress: Progress, weights: str | None = None, device: str | None = None
) -> dict[str, Any]:
    """Measure a source and write an ``.npz`` file that is a reference for these features.

    Args:
        source: what a table's ``reference`` may be, but for statistics.
        features: an extractor's name.
        output: the file.
        progress: is told of images.
        weights: a file of the extractor's weights.
        device: where the extractor runs; None: the first GPU, else the CPU.

    Raises:
        UserError: for a source that cannot be read, or a file that cannot be written.
    """
    if output.suffix != ".npz":
        raise UserError(f"-o: a reference is a file that ends in .npz; got {output}")
    check_output(output)
    file = _file(source)
    if file is not None and file.has_statistics:
        raise UserError(f"reference: {file.path} holds statistics already; an objective may name it as its reference")
    extractor = _extractor(features, weights, device)
    reference = load_reference(source, extractor, None, progress)
    write_statistics(output, reference.statistics, extractor.identity)
    return {"file": str(output), **_measured(reference.statistics.count, len(reference.statistics.mean), extractor)}


def show_reference(
    source: str,
    progress: Progress,
    features: str | None = None,
    preview: Path | None = None,
    weights: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """What a source holds, and with an extractor's name, what it is as a reference for these features.

    Args:
        source: what a table's ``reference`` may be.
        progress: is told of images.
        features: an extractor's name; its statistics are computed.
        preview: a PNG with some of the images is written here.
        weights: a file of the extractor's weights.
        device: where the extractor runs; None: the first GPU, else the CPU.

    Raises:
        UserError: for a source that cannot be read or does not fit the features, or where there is nothing to preview.
    """
    if preview is not None:
        check_picture(preview)
    file = _file(source)
    contents: dict[str, Any] = {} if file is None else _of_file(file)
    if file is None or file.images:
        images = images_of(source, None, progress)
        contents |= {"images": images.count, "content": images.content}
    elif preview is not None:
        raise UserError(f"-o: {file.path} holds no images, so there is nothing to preview")
    if features is not None:
        extractor = _extractor(features, weights, device)
        reference = load_reference(source, extractor, None, progress)
        statistics = reference.statistics
        contents |= _measured(statistics.count, len(statistics.mean), extractor) | {"identity": reference.identity}
    if preview is not None:
        save_grid({f"{source}: {images.count} images": _first(images.batches())}, preview)
        contents["preview"] = str(preview)
    return {"source": source, **contents}


def reference_table(contents: Mapping[str, Any]) -> TextTable:
    """A row a key, for a person."""
    table = TextTable(show_header=False)
    for key, value in contents.items():
        table.add_cells(key, str(value))
    return table


def _measured(count: int, dimensions: int, extractor: Extractor) -> dict[str, Any]:
    return {"count": count, "dimensions": dimensions, "features": extractor.identity}


def _file(source: str) -> ReferenceFile | None:
    """The ``.npz`` file that a source is; None for other sources."""
    path = absolute(source)
    return ReferenceFile(path) if source not in EMBEDDED and path.suffix == ".npz" and path.is_file() else None


def _of_file(file: ReferenceFile) -> dict[str, Any]:
    """What its arrays say: how many images the statistics are of, and the extractor where it is told."""
    contents: dict[str, Any] = {"images": file.images}
    if file.has_statistics:
        statistics = read_statistics(file.path)
        contents |= {"count": statistics.count or None, "dimensions": len(statistics.mean)}
    elif file.features_shape:
        contents |= {"count": file.features_shape[0], "dimensions": file.features_shape[1]}
    return contents | {"features": file.identity or None, "content": file.content_hash()}


def _extractor(features: str, weights: str | None, device: str | None) -> Extractor:
    return load_extractor(features, pick_device(device or "auto"), None if weights is None else absolute(weights))


def _first(batches: Iterator[torch.Tensor]) -> torch.Tensor:
    """Some images, made as large as the first: uint8 (N, 3, H, W)."""
    images: list[torch.Tensor] = []
    size: tuple[int, int] | None = None
    for batch in batches:
        size = size or _small(*batch.shape[-2:])
        images += _resized(colour(batch[: PREVIEW - len(images)]), size)
        if len(images) == PREVIEW:
            break
    return torch.stack(images)


def _small(height: int, width: int) -> tuple[int, int]:
    factor = min(1.0, SIDE / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _resized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    smooth = torch.nn.functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return smooth.round().clamp(0, 255).byte()
