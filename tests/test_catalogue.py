"""The catalogue: what is found where, and messages with the nearest match."""

from __future__ import annotations

from pathlib import Path

import pytest

from autodiffusion_opt import UserError, catalogue
from autodiffusion_opt.study.config import load_study_config, load_space


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The working folder, with a catalogue of its own."""
    place = tmp_path / "here"
    for section in catalogue.SECTIONS:
        (place / section).mkdir()
    (place / "studies" / "mine.toml").write_text("# Mine,\n# in two lines.\ntrials = 3\n# not this\n")
    return place


def test_every_shipped_file_is_valid_and_described() -> None:
    found = catalogue.entries()
    assert {entry.name for entry in found if entry.section == "studies"} >= {"digits-4"}
    for entry in found:
        assert entry.description.endswith("."), f"{entry.path} must begin with a comment that describes it"
        if entry.section == "studies":
            load_study_config(entry.name)
        elif entry.section == "spaces":
            load_space(entry.name)


def test_no_shipped_objective_is_unused_or_wrong() -> None:
    used = {load_study_config(entry.name).objective for entry in catalogue.entries(["studies"])}
    assert used


def test_nothing_but_data_in_the_catalogue() -> None:
    for section in catalogue.SECTIONS:
        files = [path for path in (catalogue.shipped() / section).rglob("*") if path.is_file()]
        assert files
        assert {path.suffix for path in files} <= {".toml", ".json", ".db", ".db-shm", ".db-wal"}


def test_the_working_folder_comes_before_what_is_shipped(here: Path) -> None:
    assert catalogue.find("studies", "mine") == here / "studies" / "mine.toml"
    shipped = catalogue.find("studies", "digits-4")
    (here / "studies" / "digits-4.toml").write_text("# Ours.\n")
    assert catalogue.find("studies", "digits-4") == here / "studies" / "digits-4.toml" != shipped
    assert [entry.description for entry in catalogue.entries() if entry.name == "digits-4"].count("Ours.") == 1


def test_beside_the_file_that_uses_it_comes_first(here: Path, tmp_path: Path) -> None:
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "near.toml").write_text("")
    (here / "spaces" / "near.toml").write_text("")
    found = catalogue.find("spaces", "near", near=tmp_path / "studies" / "some.toml")
    assert found == tmp_path / "spaces" / "near.toml"


def test_description_is_the_first_comment(here: Path) -> None:
    assert catalogue.show("mine").description == "Mine, in two lines."


def test_paths(here: Path) -> None:
    assert catalogue.find("studies", "studies/mine.toml") == Path("studies/mine.toml")
    assert catalogue.show("studies/mine.toml").path == Path("studies/mine.toml")
    assert catalogue.show("studies/mine").name == "mine"


@pytest.mark.parametrize("name", ["digts-4", "studies/digts-4.toml", "digts-4.toml"])
def test_a_misspelt_name(name: str) -> None:
    with pytest.raises(UserError, match=r"Did you mean 'digits-4'\?"):
        catalogue.find("studies", name)


def test_a_misspelt_name_to_show() -> None:
    with pytest.raises(UserError, match=r"got 'digits-fidd'.* Did you mean 'digits-fid'\?"):
        catalogue.show("digits-fidd")


@pytest.mark.parametrize("content", [b"trials = = 3", b"\xff\xfe\x00", b"trials"])
def test_a_file_that_is_no_toml(content: bytes, here: Path) -> None:
    path = here / "studies" / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.toml: must be a TOML file"):
        catalogue.read_toml(path)


def test_a_file_that_cannot_be_read(here: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        catalogue.read_toml(here / "studies")
