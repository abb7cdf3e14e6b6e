"""``.npz`` files that somebody else made: no pickles are read, and no memory is taken before a header is checked."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.errors import UserError, reason_of

# A member that is greater than this many bytes must not be packed to less than a hundredth.
LARGE = 100 * 2**20
PACKED = 100
# What reading a broken file can raise. NotImplementedError: an unknown packing; RuntimeError: a password is needed.
BROKEN = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Header:
    """What a member says of its array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


class Archive:
    """The arrays of an ``.npz`` file.

    Raises:
        UserError: for a file that is none, one whose header claims more than there is, one that unpacks to a hundred
            times its size and more, and one with pickled objects, which could run code.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except BROKEN as error:
            raise self._wrong(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def __contains__(self, key: str) -> bool:
        return f"{key}.npy" in self._zip.namelist()

    def header(self, key: str) -> Header:
        """Shape and type of an array, checked against the bytes that there are."""
        try:
            with self._zip.open(f"{key}.npy") as file:
                return self._header(key, file)
        except BROKEN as error:
            raise self._wrong(error) from None

    def array(self, key: str) -> NDArray[Any]:
        """A whole array."""
        self.header(key)
        try:
            with self._zip.open(f"{key}.npy") as file:
                array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
                file.read()  # to the end, where the checksum of the archive is compared
            return array
        except BROKEN as error:
            raise self._wrong(error) from None

    def blocks(self, key: str, size: int) -> Iterator[NDArray[Any]]:
        """An array, ``size`` rows at a time; the rest stays on disk."""
        if self.header(key).fortran:
            yield self.array(key)  # its rows do not lie together
            return
        try:
            with self._zip.open(f"{key}.npy") as file:
                header = self._header(key, file)
                width = header.dtype.itemsize * math.prod(header.shape[1:])
                for start in range(0, header.shape[0], size):
                    rows = min(size, header.shape[0] - start)
                    data = file.read(rows * width)
                    yield np.frombuffer(data, header.dtype).reshape(rows, *header.shape[1:])
                file.read()  # to the end, where the checksum of the archive is compared
        except BROKEN as error:
            raise self._wrong(error) from None

    def _header(self, key: str, file: IO[bytes]) -> Header:
        member = self._zip.getinfo(f"{key}.npy")
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{key} has the unknown version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"{key} holds pickled objects, which are not read since they can run code")
        claimed, there = dtype.itemsize * math.prod(shape), member.file_size - file.tell()
        if claimed != there or min(shape, default=0) < 0:
            raise ValueError(f"the header of {key} claims {claimed:,} bytes, {shape} of {dtype}; there are {there:,}")
        if member.file_size > LARGE and member.file_size > PACKED * member.compress_size:
            raise ValueError(f"{key} unpacks to {member.file_size:,} bytes from {member.compress_size:,}")
        return Header(shape, dtype, fortran)

    def _wrong(self, error: BaseException) -> UserError:
        return UserError(f"reference: {self._path} must be an .npz file of plain arrays; {reason_of(error)}")
