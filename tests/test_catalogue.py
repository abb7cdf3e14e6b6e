"""The catalogue: what is found where, and messages with the nearest match."""

from __future__ import annotations

from pathlib import Path

import pytest

from autodiffusion_opt import UserError, catalogue
from autodiffusion_opt.study.config import build_objective, build_space, load_study_config


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
    assert {entry.section for entry in found} == set(catalogue.SECTIONS)
    assert {entry.name for entry in found if entry.section == "studies"} >= {"digits-4"}
    for entry in found:
        assert entry.description.endswith("."), f"{entry.path} must begin with a comment that describes it"
        table = catalogue.read_toml(entry.path)
        if entry.section == "studies":
            load_study_config(entry.name)
        elif entry.section == "spaces":
            build_space(table, entry.name)
        else:
            build_objective(table, entry.name)


def test_every_shipped_space_and_objective_is_used_by_a_shipped_study() -> None:
    studies = [catalogue.read_toml(entry.path) for entry in catalogue.entries(["studies"])]
    for section, key in (("spaces", "space"), ("objectives", "objective")):
        assert {entry.name for entry in catalogue.entries([section])} == {study[key] for study in studies}


def test_no_shipped_space_names_a_model() -> None:
    for entry in catalogue.entries(["spaces"]):
        assert not {"pipeline", "model"} & set(catalogue.read_toml(entry.path))


def test_nothing_but_data_in_the_catalogue() -> None:
    for section in catalogue.SECTIONS:
        folder = catalogue.shipped() / section
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files
        shipped = [path for path in files if not _is_of_a_run(path.relative_to(folder))]
        assert {path.suffix for path in shipped} <= {".toml", ".json"}


def _is_of_a_run(path: Path) -> bool:
    """Databases and previews, which runs in a checkout write beside the studies, and which git ignores."""
    return path.parts[0] == "artifacts" or ".db" in path.parts[0]


def test_a_name_is_found_beside_the_file_then_in_the_working_folder_then_in_what_is_shipped(
    here: Path, tmp_path: Path
) -> None:
    near = tmp_path / "elsewhere" / "studies" / "mine.toml"
    beside, working = tmp_path / "elsewhere" / "spaces", here / "spaces"
    beside.mkdir(parents=True)
    shipped = catalogue.shipped() / "spaces" / "four-steps.toml"
    places = [shipped]
    assert catalogue.find("spaces", "four-steps", near=near) == shipped
    for folder, text in ((working, "# Of the working folder."), (beside, "# Beside the study.")):
        (folder / "four-steps.toml").write_text(text)
        places.insert(0, folder / "four-steps.toml")
        assert catalogue.find("spaces", "four-steps", near=near) == places[0]
        found = [entry for entry in catalogue.entries(near=near) if entry.name == "four-steps"]
        assert [(entry.path, entry.description) for entry in found] == [(places[0], text.removeprefix("# "))]
    # Nothing is beside what has no file.
    assert catalogue.find("spaces", "four-steps") == working / "four-steps.toml"
    assert catalogue.show("four-steps").path == working / "four-steps.toml"


def test_the_space_beside_a_study_is_the_one_that_it_runs(here: Path, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    for folder, steps in ((here, 5), (place, 6)):
        (folder / "spaces").mkdir(parents=True, exist_ok=True)
        (folder / "spaces" / "few.toml").write_text(f'kind = "time-steps"\nsteps = {steps}\n')
    (place / "studies").mkdir()
    study = 'trials = 3\npipeline = "digits"\nspace = "few"\nobjective = "digits-fid"\n'
    for folder, steps in ((place, 6), (here, 5)):
        (folder / "studies" / "tiny.toml").write_text(study)
        assert load_study_config(str(folder / "studies" / "tiny.toml")).space.steps == steps


def test_a_candidate_is_a_json_file_or_a_name_in_the_first_folder_that_has_it(here: Path) -> None:
    shipped = catalogue.shipped() / "studies" / "candidates"
    name = next(shipped.glob("*.json")).stem
    assert catalogue.find_candidate(name) == shipped / f"{name}.json"
    (here / "studies" / "candidates").mkdir()
    (here / "studies" / "candidates" / f"{name}.json").write_text("[900]")
    assert catalogue.find_candidate(name) == here / "studies" / "candidates" / f"{name}.json"
    assert catalogue.find_candidate("some/where.json") == Path("some/where.json")
    assert catalogue.find_candidate("no-such-name") is None


def test_a_name_in_several_sections_shows_the_study_first_and_the_section_may_be_named(here: Path) -> None:
    for section in catalogue.SECTIONS:
        (here / section / "same.toml").write_text(f"# Of {section}.\n")
    assert catalogue.show("same").section == "studies"
    assert [catalogue.show(f"{section}/same").section for section in catalogue.SECTIONS] == list(catalogue.SECTIONS)


def test_the_description_of_a_file_is_its_first_comment(here: Path) -> None:
    assert catalogue.show("mine").description == "Mine, in two lines."


def test_a_file_may_be_given_by_its_path(here: Path) -> None:
    assert catalogue.find("studies", "studies/mine.toml") == here / "studies" / "mine.toml"
    assert catalogue.show("studies/mine.toml").path == here / "studies" / "mine.toml"
    assert catalogue.show("studies/mine").name == "mine"


def test_a_path_starts_from_the_folder_of_the_file_that_gives_it_and_from_no_other(here: Path, tmp_path: Path) -> None:
    near = tmp_path / "elsewhere" / "mine.toml"
    near.parent.mkdir()
    (here / "few.toml").write_text("# Of the working folder.")
    with pytest.raises(UserError, match=rf"there is no file few\.toml \({near.parent}/few\.toml\)"):
        catalogue.find("spaces", "few.toml", near=near)
    (near.parent / "few.toml").write_text("# Beside the study.")
    assert catalogue.find("spaces", "few.toml", near=near) == near.parent / "few.toml"
    assert catalogue.find("spaces", "few.toml") == here / "few.toml"


@pytest.mark.parametrize("name", ["digts-4", "studies/digts-4.toml", "digts-4.toml"])
def test_a_misspelt_name_is_refused_with_the_nearest_match(name: str) -> None:
    with pytest.raises(UserError, match=r"Did you mean 'digits-4'\?"):
        catalogue.find("studies", name)


def test_a_misspelt_name_to_show_is_refused_with_the_nearest_match() -> None:
    with pytest.raises(UserError, match=r"got 'digits-fidd'.* Did you mean 'digits-fid'\?"):
        catalogue.show("digits-fidd")


@pytest.mark.parametrize("content", [b"trials = = 3", b"\xff\xfe\x00", b"trials"])
def test_a_file_that_is_no_toml_is_named(content: bytes, here: Path) -> None:
    path = here / "studies" / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.toml: must be a TOML file"):
        catalogue.read_toml(path)


def test_a_file_that_cannot_be_read_is_named(here: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        catalogue.read_toml(here / "studies")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 0x" + "f" * 5000, "an integer must be within 64 bits"),
        ("x = " + "9" * 5000, "Exceeds the limit"),
        ("x = [{y = 9223372036854775808}]", "an integer must be within 64 bits"),
        ("x = " + "[" * 10_000, "nested too deeply"),
    ],
)
def test_numbers_and_nests_that_nothing_can_hold_are_refused(text: str, message: str) -> None:
    Path("wrong.toml").write_text(text)
    with pytest.raises(UserError, match=f"wrong.toml: must be a TOML file: .*{message}"):
        catalogue.read_toml(Path("wrong.toml"))


def test_words_that_can_be_no_path_are_refused() -> None:
    with pytest.raises(UserError, match="File name too long"):
        catalogue.find("studies", "x" * 10_000)
    with pytest.raises(UserError, match="NUL"):
        catalogue.find("studies", "x\0")
    assert catalogue.find_candidate("x" * 10_000) is None
