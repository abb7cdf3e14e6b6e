"""Embedded models: pipelines small enough to ship, so that everything can be tried with no download.

Each is a folder below this one with a module that offers ``load_images()`` (the real images, uint8 NCHW),
``Features(device)`` (an extractor of features), and ``IMAGES`` and ``FEATURES`` (the files of both).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Embedded:
    """An embedded model: its name is that of its pipeline, of its features, and of its real images.

    Attributes:
        name: as a table says it; with ``_`` for ``-``, that of its folder.
        classes: of its images, where it has any.
        guidance_scale: at which it samples well, where it has one (docs/concepts.md has the distances).
    """

    name: str
    classes: int | None = None
    guidance_scale: float | None = None

    @property
    def _package(self) -> str:
        return self.name.replace("-", "_")

    @property
    def pipeline(self) -> Path:
        """Its diffusers folder."""
        return _HERE / self._package / "pipeline"

    def module(self) -> Any:
        """The module that offers its images and features; imports torch."""
        return importlib.import_module(f"{__name__}.{self._package}")


EMBEDDED: dict[str, Embedded] = {
    model.name: model for model in (Embedded("digits"), Embedded("digits-dit", classes=10, guidance_scale=1.2))
}
