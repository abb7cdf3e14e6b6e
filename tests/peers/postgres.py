"""A PostgreSQL server for tests: on loopback, in a folder of its own, stopped and started at will."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def programs() -> Path | None:
    """The folder with initdb and pg_ctl, where Debian puts them or on the path; None where they are not installed."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    named = shutil.which("pg_ctl")
    return installed[-1].parent if installed else None if named is None else Path(named).resolve().parent


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server.

    Attributes:
        folder: of its data.
        port: of 127.0.0.1.
        bin: where its programs are.
        user: that runs it, since root must not; None: the present one.
    """

    folder: Path
    port: int
    bin: Path
    user: str | None

    @property
    def url(self) -> str:
        """Of the database that every server has."""
        return f"postgresql+psycopg://tester@127.0.0.1:{self.port}/postgres"

    def call(self, program: str, *words: str) -> None:
        """Run one of its programs; it must succeed."""
        command = [str(self.bin / program), *words]
        subprocess.run(
            command, check=True, user=self.user, cwd="/", capture_output=True, env=os.environ | {"LC_ALL": "C"}
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        log = str(self.folder / "log")
        self.call("pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", log, "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it; ``fast`` closes all connections, ``immediate`` is a crash."""
        self.call("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", mode, "stop")


@contextmanager
def running_server() -> Iterator[Server]:
    """A new server, which is stopped and removed at the end."""
    bin = programs()
    assert bin is not None
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    user = "nobody" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    server = Server(folder, free_port(), bin, user)
    try:
        server.call("initdb", "-D", str(folder / "data"), "-U", "tester", "-A", "trust", "--no-sync", "-E", "UTF8")
        server.start()
        yield server
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server.stop("immediate")
        time.sleep(0.1)
        shutil.rmtree(folder, ignore_errors=True)
