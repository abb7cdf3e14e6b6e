"""A folder that Hugging Face's ``datasets`` wrote with ``save_to_disk``, as images of a reference."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.objective.image_files import as_tensor
from autodiffusion_opt.progress import Progress


def is_data_set(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote it: one split, or several."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


class DataSet:
    """The images of a data set on disk.

    Raises:
        UserError: without the package ``datasets``, for several splits, or where no column or several hold images.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if (folder / "dataset_dict.json").is_file():
            splits = ", ".join(sorted(state.parent.name for state in folder.glob("*/state.json"))) or "(there is none)"
            raise UserError(f"reference: {folder} holds several splits; name the folder of one below it: {splits}")
        try:
            library = importlib.import_module("datasets")
        except ImportError:
            raise UserError(
                f"reference: {folder} is a data set of Hugging Face's datasets, which is not installed: "
                "pip install datasets"
            ) from None
        try:
            self._rows: Any = library.load_from_disk(str(folder))
        except Exception as error:
            raise UserError(f"reference: datasets cannot read {folder}: {reason_of(error)}") from None
        columns = [name for name, kind in self._rows.features.items() if type(kind).__name__ == "Image"]
        if len(columns) != 1:
            raise UserError(
                f"reference: {folder} must have one column of images; its columns are "
                f"{', '.join(self._rows.features)}, those of images: {', '.join(columns) or 'none'}"
            )
        self._column = columns[0]
        if len(self._rows) < 2:
            raise UserError(f"reference: {folder} must hold at least 2 images; it holds {len(self._rows)}")

    def __len__(self) -> int:
        return len(self._rows)

    def content_hash(self, progress: Progress) -> str:
        """Of all its files."""
        files = sorted(path for path in self._folder.rglob("*") if path.is_file())
        total = hashlib.sha256()
        for done, path in enumerate(files, 1):
            total.update(str(path.relative_to(self._folder)).encode() + b"\0")
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
            progress("reading reference", done, len(files))
        return total.hexdigest()

    def images(self) -> Iterator[torch.Tensor]:
        """uint8 (1 or 3, H, W), one after the other."""
        for index in range(len(self._rows)):
            try:
                tensor = as_tensor(self._rows[index][self._column])
            except Exception as error:  # decoders of broken images raise errors of any class
                raise UserError(
                    f"reference: row {index} of {self._folder} cannot be read as an image: {reason_of(error)}"
                ) from None
            yield tensor
