"""The rule for relative paths itself; tests/study/test_paths.py holds every key of a study to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from autodiffusion_opt.paths import absolute, folder_of


def test_a_relative_path_starts_from_the_folder_that_is_given_else_from_the_working_folder(tmp_path: Path) -> None:
    assert absolute("images/a", tmp_path) == tmp_path / "images" / "a"
    assert absolute("images") == absolute(Path("images")) == Path.cwd() / "images"
    assert absolute("images", Path("sub")) == Path.cwd() / "sub" / "images"
    assert absolute("") == Path.cwd()


def test_an_absolute_path_and_one_from_the_home_folder_start_from_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert absolute("/data/images", tmp_path) == Path("/data/images")
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute("~/images", tmp_path) == Path("/home/me/images")
    assert absolute("~no-such-user/images", tmp_path) == tmp_path / "~no-such-user" / "images"


def test_the_folder_of_a_linked_file_is_that_of_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "study.toml").write_text("")
    (tmp_path / "link.toml").symlink_to(tmp_path / "shared" / "study.toml")
    assert folder_of(tmp_path / "link.toml") == folder_of(tmp_path / "shared" / "study.toml") == tmp_path / "shared"
