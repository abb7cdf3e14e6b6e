"""A table for the terminal whose cells are text, whatever they hold."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from autodiffusion_opt.text import CELL, NAME, visible


class TextTable(Table):
    """A table of text as it is: no markup in it, no control characters, no cell too long to read.

    Args:
        headings: of the columns.
        caption: below the table; empty: none.
        show_header: whether the headings are shown.
    """

    def __init__(self, *headings: str, caption: str = "", show_header: bool = True) -> None:
        super().__init__(caption=Text(visible(caption, CELL)) if caption else None, show_header=show_header)
        for heading in headings:
            self.add_column(Text(visible(heading, NAME)))

    def add_cells(self, *cells: str, style: str = "") -> None:
        """A row."""
        self.add_row(*(Text(visible(cell, CELL)) for cell in cells), style=style)
