"""Databases for the fault tests: SQLite, and a PostgreSQL server of their own where one is installed."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy
from peers.postgres import Server, programs, running_server

# Makes an empty database, or a copy of another that nobody has open; its URL.
MakeDatabase = Callable[[str | None], str]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server."""
    if programs() is None:
        pytest.skip("PostgreSQL is not installed: apt install postgresql")
    with running_server() as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def make_database(request: pytest.FixtureRequest, tmp_path: Path) -> MakeDatabase:
    """Of each kind."""

    def file(template: str | None = None) -> str:
        path = tmp_path / f"{uuid.uuid4().hex}.db"
        if template is not None:
            shutil.copy(template.removeprefix("sqlite:///"), path)
        return f"sqlite:///{path}"

    def on_server(template: str | None = None) -> str:
        name = f"test_{uuid.uuid4().hex}"
        like = "" if template is None else f" TEMPLATE {template.rsplit('/', 1)[1]}"
        engine = sqlalchemy.create_engine(server.url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}{like}"))
        return server.url.rsplit("/", 1)[0] + f"/{name}"

    if request.param == "sqlite":
        return file
    server: Server = request.getfixturevalue("server")
    return on_server
