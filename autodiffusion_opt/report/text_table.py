"""A table for the terminal whose cells are text, whatever they hold."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from autodiffusion_opt.text import CELL, NAME, visible


class TextTable(Table):
    """A table of text as it is: no markup in it, no control characters, no cell too long to read.

    Where words would have to be cut, each row is shown by itself: a line for each cell that is not empty.

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

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        is_cut = self.__rich_measure__(console, options).minimum > options.max_width
        yield from self._records() if is_cut and self.show_header else super().__rich_console__(console, options)

    def _records(self) -> Iterator[Table | Text]:
        """Headings and cells of each row, one below the other."""
        for index, row in enumerate(zip(*(column.cells for column in self.columns), strict=True)):
            if index:
                yield Text("")
            record = Table.grid(padding=(0, 2))
            for column, cell in zip(self.columns, row, strict=True):
                if str(cell):
                    record.add_row(column.header, cell, style=self.rows[index].style)
            yield record
        if self.caption is not None:
            yield Text(str(self.caption))
