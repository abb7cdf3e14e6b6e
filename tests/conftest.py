"""One thread, no network, and every file that the library keeps in a temporary place."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch and huggingface_hub are imported, and for the processes that tests start.
_PLACE = tempfile.TemporaryDirectory(prefix="autodiffusion-tests-")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Python's readline, which pytest imports, sets it for the processes that it starts; tables of a pipe obey it.
os.environ.pop("COLUMNS", None)
os.environ["AUTODIFFUSION_CACHE"] = f"{_PLACE.name}/cache"
os.environ["AUTODIFFUSION_STORAGE"] = f"sqlite:///{_PLACE.name}/default.db"

import pytest  # noqa: E402
import sqlalchemy  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

torch.set_num_threads(1)

# Everything in one file: the smallest study that has baselines, two generations and children of all kinds.
STUDY = """# A small study.
trials = 14
seed = 0

[space]
kind = "time-steps"
steps = 4

[pipeline]
model = "digits"
scheduler = "ddim"
device = "cpu"
batch_size = 10
micro_batch = 10

[objective]
kind = "fid"
images = 20
features = "digits"
reference = "digits"

[optimizer]
kind = "evolution"
population = 5
parents = 3
mutations = 2
crossovers = 2
"""


@pytest.fixture(scope="session")
def digits() -> Any:
    """The embedded pipeline, loaded once; whoever changes it puts it back."""
    from autodiffusion_opt.sampling.load import load_pipeline

    return load_pipeline("digits", scheduler="ddim", device="cpu")


@pytest.fixture(scope="session")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small study's parts, the model loaded once."""
    from autodiffusion_opt.study.config import load_study_config
    from autodiffusion_opt.study.problem import load_problem

    path = tmp_path_factory.mktemp("problem") / "small.toml"
    path.write_text(STUDY)
    return load_problem(load_study_config(str(path)))


@pytest.fixture(scope="session")
def study_text() -> str:
    """The small study's file."""
    return STUDY


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A database of this test's own: SQLite, or on the server whose URL ``AUTODIFFUSION_TEST_SERVER`` is."""
    server = os.environ.get("AUTODIFFUSION_TEST_SERVER")
    if server is None:
        yield f"sqlite:///{tmp_path}/studies.db"
        return
    name = f"test_{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    yield sqlalchemy.make_url(server).set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        force = " WITH (FORCE)" if engine.dialect.name == "postgresql" else ""  # though somebody is connected
        connection.execute(sqlalchemy.text(f"DROP DATABASE {name}{force}"))


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the small study with some of its text replaced; the file's path."""

    def write(name: str = "small", **changes: str) -> Path:
        text = STUDY
        for key, line in changes.items():
            lines = [line if old.split(" =")[0] == key else old for old in text.splitlines()]
            assert lines != text.splitlines(), f"{key} is not in the study"
            text = "\n".join(lines) + "\n"
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder ``scans`` beside the small study, with some of the real digits."""
    from autodiffusion_opt.zoo.digits import load_images

    (tmp_path / "scans").mkdir()
    for index, image in enumerate(load_images()[:70]):
        Image.fromarray(image[0].numpy()).save(tmp_path / "scans" / f"{index}.png")
    return tmp_path / "scans"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test alone."""
    monkeypatch.setenv("AUTODIFFUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written to the working folder is written here."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Exit code, stdout and stderr of a command, as :func:`cli.main` gives them."""

    from autodiffusion_opt import cli, process

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = process.exit_code(lambda: cli.app([str(word) for word in words], standalone_mode=False))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, study_text: str) -> tuple[Path, str]:
    """The small study's file and its database, all trials complete."""
    from autodiffusion_opt import Study

    place = tmp_path_factory.mktemp("ran")
    (place / "small.toml").write_text(study_text)
    url = f"sqlite:///{place}/studies.db"
    Study.load(place / "small.toml", storage=url).run()
    return place / "small.toml", url
