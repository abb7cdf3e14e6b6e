"""Rows of an array that cost much to make, kept on disk and made as far as they are asked for."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.files import keep, read_kept
from autodiffusion_opt.progress import Progress, counted, silent

Array = NDArray[Any]
# Rows of one file, which is as much as is in memory at once: 64 images of 512 x 512 pixels are 50 MB.
ROWS = 64


class KeptRows:
    """Rows 0, 1, 2, ... of an array: those of ``make``, run once for each row, by whichever process is first.

    File k holds the rows from ``ROWS`` k on, as ``.npy`` under a checksum (:func:`~autodiffusion_opt.files.keep`). One
    that is damaged or not there is made again.

    Args:
        folder: of the files; its name must say all that decides the rows.
        make: indices to their rows, in blocks of any size.
        what: the rows are, for the progress and messages.
    """

    def __init__(self, folder: Path, make: Callable[[Sequence[int]], Iterator[Array]], what: str) -> None:
        self._folder = folder
        self._make = make
        self._what = what
        self._lengths: dict[int, int] = {}  # of files that this process has read or written

    def need(self, count: int, progress: Progress = silent) -> None:
        """Make those of the first ``count`` rows that are not on disk.

        Raises:
            UserError: where the folder cannot be written.
        """
        while missing := [index for index in range(count) if index % ROWS >= self._length(index // ROWS)]:
            blocks = counted(self._make(missing), progress, self._what, count, count - len(missing))
            rows = zip(missing, (row for block in blocks for row in block), strict=True)
            for number, of_file in groupby(rows, key=lambda pair: pair[0] // ROWS):
                self._extend(number, list(of_file))

    def rows(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop`` - 1, in one array."""
        self.need(stop)
        parts = []
        for number in range(start // ROWS, (stop - 1) // ROWS + 1):
            kept, first = self._read(number), number * ROWS
            if kept is None or len(kept) < min(stop - first, ROWS):  # somebody cleared the cache
                self._lengths.clear()
                return self.rows(start, stop)
            parts.append(kept[max(start - first, 0) : stop - first])
        return np.concatenate(parts)

    def _length(self, number: int) -> int:
        """How many rows a file holds."""
        if number not in self._lengths:
            kept = self._read(number)
            self._lengths[number] = 0 if kept is None else len(kept)
        return self._lengths[number]

    def _extend(self, number: int, rows: Iterable[tuple[int, Array]]) -> None:
        """Write a file with further rows behind those that it holds, given with their indices."""
        added = list(rows)
        first = added[0][0] % ROWS
        kept = self._read(number) if first else None
        if first and (kept is None or len(kept) < first):  # gone meanwhile: made in the next round
            self._lengths[number] = 0
            return
        new = np.stack([row for _, row in added])
        whole = new if kept is None else np.concatenate([kept[:first], new])
        self._write(number, whole)
        self._lengths[number] = len(whole)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number * ROWS:07d}.npy"

    def _read(self, number: int) -> Array | None:
        """The rows of a file; None where it is not there or not what was written."""
        content = read_kept(self._path(number))
        if content is None:
            return None
        rows: Array = np.load(io.BytesIO(content), allow_pickle=False)
        return rows

    def _write(self, number: int, rows: Array) -> None:
        memory = io.BytesIO()
        np.save(memory, rows, allow_pickle=False)
        keep(self._path(number), memory.getvalue(), self._what)
