"""Rows on disk: made once, as far as they are asked for, and made again where a file is not what was written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autodiffusion_opt import UserError
from autodiffusion_opt.sampling.kept import ROWS, KeptRows


class Maker:
    """Row i is (i, i²), in blocks of 10; remembers what it was asked for."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, indices: Sequence[int]) -> Iterator[Any]:
        for start in range(0, len(indices), 10):
            block = list(indices[start : start + 10])
            self.made += block
            yield np.array([(index, index**2) for index in block], np.float32)


@pytest.fixture
def maker() -> Maker:
    return Maker()


def kept(folder: Path, maker: Any) -> KeptRows:
    return KeptRows(folder / "rows", maker, "rows")


def right(start: int, stop: int) -> Any:
    return np.array([(index, index**2) for index in range(start, stop)], np.float32)


def test_rows_are_made_as_far_as_they_are_asked_for_and_each_once(tmp_path: Path, maker: Maker) -> None:
    rows = kept(tmp_path, maker)
    for count in (5, 5, 70, 30, 200):
        rows.need(count)
        assert maker.made == list(range(max(count, len(maker.made))))
    assert np.array_equal(rows.rows(0, 200), right(0, 200))
    assert len(maker.made) == 200


def test_any_range_is_read_across_files(tmp_path: Path, maker: Maker) -> None:
    rows = kept(tmp_path, maker)
    for start, stop in [(0, 1), (3, 9), (ROWS - 1, ROWS + 1), (ROWS, 2 * ROWS), (10, 3 * ROWS + 5), (2 * ROWS, 150)]:
        assert np.array_equal(rows.rows(start, stop), right(start, stop))
    assert rows.rows(0, 1).dtype == np.float32


def test_another_process_finds_them(tmp_path: Path, maker: Maker) -> None:
    kept(tmp_path, maker).need(150)
    other = Maker()
    assert np.array_equal(kept(tmp_path, other).rows(0, 150), right(0, 150))
    assert other.made == []
    assert np.array_equal(kept(tmp_path, other).rows(140, 160), right(140, 160))
    assert other.made == list(range(150, 160))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def altered(content: bytes) -> bytes:
    return content[:-60] + bytes([content[-60] ^ 1]) + content[-59:]


@pytest.mark.parametrize("damage", [cut, altered, lambda content: b"", lambda content: content[:-1]])
def test_a_file_that_is_not_what_was_written_is_made_again_and_no_other(
    damage: Any, tmp_path: Path, maker: Maker
) -> None:
    kept(tmp_path, maker).need(3 * ROWS)
    file = sorted((tmp_path / "rows").iterdir())[1]
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    other = Maker()
    assert np.array_equal(kept(tmp_path, other).rows(0, 3 * ROWS), right(0, 3 * ROWS))
    assert other.made == list(range(ROWS, 2 * ROWS))
    assert file.read_bytes() == whole


def test_files_that_are_removed_meanwhile_are_made_again(tmp_path: Path, maker: Maker) -> None:
    rows = kept(tmp_path, maker)
    rows.need(ROWS + 10)
    for file in (tmp_path / "rows").iterdir():
        file.unlink()
    assert np.array_equal(rows.rows(0, ROWS + 20), right(0, ROWS + 20))
    for file in (tmp_path / "rows").iterdir():
        file.unlink()
    assert np.array_equal(rows.rows(ROWS, ROWS + 20), right(ROWS, ROWS + 20))


def test_what_another_process_added_meanwhile_is_not_added_twice(tmp_path: Path, maker: Maker) -> None:
    rows = kept(tmp_path, maker)
    rows.need(5)
    kept(tmp_path, Maker()).need(30)
    assert np.array_equal(rows.rows(0, 20), right(0, 20))
    assert np.array_equal(kept(tmp_path, Maker()).rows(0, 45), right(0, 45))


def test_a_run_that_is_interrupted_keeps_whole_files(tmp_path: Path) -> None:
    class Interrupted(Maker):
        def __call__(self, indices: Sequence[int]) -> Iterator[Any]:
            for block in super().__call__(indices):
                if block[-1][0] > 150:
                    raise KeyboardInterrupt
                yield block

    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path, Interrupted()).need(200)
    other = Maker()
    kept(tmp_path, other).need(200)
    assert other.made == list(range(2 * ROWS, 200))
    assert [path.suffix for path in (tmp_path / "rows").iterdir()] == [".npy"] * 4


def test_progress_is_told_of_all_rows_and_of_nothing_where_all_are_there(tmp_path: Path, maker: Maker) -> None:
    told: list[tuple[str, int, int]] = []
    rows = kept(tmp_path, maker)
    rows.need(20)
    rows.need(45, lambda *what: told.append(what))
    assert told == [("rows", 30, 45), ("rows", 40, 45), ("rows", 45, 45)]
    rows.need(45, lambda *what: told.append(what))
    assert len(told) == 3


def test_files_are_npy_files(tmp_path: Path, maker: Maker) -> None:
    kept(tmp_path, maker).need(7)
    (file,) = (tmp_path / "rows").iterdir()
    assert np.array_equal(np.load(file), right(0, 7))


def test_rows_that_cannot_be_written_leave_no_file_behind(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"the rows cannot be kept in .*: No space left on device"):
        kept(tmp_path, maker).need(1)
    assert list((tmp_path / "rows").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, maker: Maker) -> None:
    (tmp_path / "rows").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"the rows cannot be kept in .*: Permission denied; name a folder"):
        kept(tmp_path, maker).need(1)


def test_a_folder_that_is_a_file_is_told(tmp_path: Path, maker: Maker) -> None:
    (tmp_path / "rows").write_text("")
    with pytest.raises(UserError, match=r"the rows cannot be kept in .*: File exists; name a folder .*AUTODIFFUSION_"):
        kept(tmp_path, maker).need(1)
