"""Files are there whole or not at all, and what is kept is read only where nothing changed it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autodiffusion_opt import UserError
from autodiffusion_opt.files import cache_folder, keep, read_kept, write_whole

CONTENT = bytes(range(200))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "here")


def test_a_file_replaces_the_one_that_was_there(tmp_path: Path) -> None:
    for content in (CONTENT, b"", CONTENT[:7]):
        write_whole(tmp_path / "values.npz", content)
        assert (tmp_path / "values.npz").read_bytes() == content
    assert names(tmp_path) == ["values.npz"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failure_leaves_the_earlier_file_and_nothing_else(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise error

    write_whole(tmp_path / "values.npz", CONTENT)
    with pytest.raises(TypeError):  # while the file is open
        write_whole(tmp_path / "values.npz", "text")  # type: ignore[arg-type]
    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(type(error)):
        write_whole(tmp_path / "values.npz", CONTENT[:7])
    assert names(tmp_path) == ["values.npz"]
    assert (tmp_path / "values.npz").read_bytes() == CONTENT


def test_others_may_read_what_is_written_as_far_as_the_umask_says(tmp_path: Path) -> None:
    write_whole(tmp_path / "values", CONTENT)
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "values").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("content", [CONTENT, b""])
def test_what_was_kept_is_read_again(content: bytes, tmp_path: Path) -> None:
    keep(tmp_path / "new" / "values", content, "values")
    assert read_kept(tmp_path / "new" / "values") == content


def test_numpy_reads_the_arrays_of_a_kept_file(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.arange(5))
    keep(tmp_path / "kept.npy", (tmp_path / "plain.npy").read_bytes(), "values")
    assert np.array_equal(np.load(tmp_path / "kept.npy"), np.arange(5))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda written: b"",
    "half": lambda written: written[: len(written) // 2],
    "first byte": lambda written: bytes([written[0] ^ 1]) + written[1:],
    "last byte": lambda written: written[:-1] + bytes([written[-1] ^ 1]),
    "longer": lambda written: written + b"\0",
    "without checksum": lambda written: CONTENT,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_not_read(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "values"
    keep(file, CONTENT, "values")
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert read_kept(file) is None
    file.unlink()
    assert read_kept(file) is None


def test_what_was_kept_under_another_name_is_not_read(tmp_path: Path) -> None:
    keep(tmp_path / "values", CONTENT, "values")
    (tmp_path / "others").write_bytes((tmp_path / "values").read_bytes())
    assert read_kept(tmp_path / "others") is None


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the rows cannot be kept in .*file: File exists; name .* AUTODIFFUSION_CACHE"):
        keep(tmp_path / "file" / "values", CONTENT, "rows")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="Permission denied"):
        keep(tmp_path / "locked" / "values", CONTENT, "rows")


def test_the_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTODIFFUSION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/autodiffusion-opt")
    monkeypatch.setenv("AUTODIFFUSION_CACHE", "/mine")
    assert cache_folder() == Path("/mine")
