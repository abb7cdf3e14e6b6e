"""Single plots as PNG files, which kaleido draws with an installed Chromium or Chrome."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.files import write_whole

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

WIDTH = 900  # pixels


def save_figures(figures: Mapping[str, Figure], folder: Path, prefix: str = "") -> list[Path]:
    """Write each figure to ``folder``, on white, as PREFIX + its name + ``.png``; the files.

    Raises:
        UserError: where kaleido or a browser is not installed, or a file cannot be written.
    """
    if importlib.util.find_spec("kaleido") is None:
        raise UserError("--png needs kaleido: pip install 'autodiffusion-opt[report]'")
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            on_white = type(figure)(figure).update_layout(paper_bgcolor="white")
            path = folder / f"{prefix}{name}.png"
            write_whole(path, on_white.to_image("png", width=WIDTH))
            written.append(path)
    except OSError as error:
        raise UserError(f"--png: {folder} cannot be written: {reason_of(error)}") from None
    except RuntimeError as error:  # kaleido's, where there is no browser
        raise UserError(f"--png needs Chromium or Chrome: {reason_of(error)}") from None
    return written
