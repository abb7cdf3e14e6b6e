"""The database behind a URL: whether it can be opened, its file, its locks, and which of its errors may pass."""

from __future__ import annotations

import os
import re
import sqlite3
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from sqlalchemy.exc import (
    ArgumentError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)

from autodiffusion_opt.errors import UserError, reason_of, unknown_text
from autodiffusion_opt.text import HIDDEN, quoted

DEFAULT_URL = "sqlite:///studies/studies.db"
VARIABLE = "AUTODIFFUSION_STORAGE"
# Of a code of SQLite: the bits that are the kind of error.
PRIMARY_CODE = 0xFF
# Optuna's gRPC proxy.
PROXY = "grpc"
KINDS = ("sqlite", "postgresql", "mysql+pymysql", "mariadb+pymysql", PROXY)
# What opening a database raises beside SQLAlchemy's own errors: of drivers, of arguments after ``?``, of paths.
UNOPENED = (ImportError, RuntimeError, ValueError, TypeError, AttributeError, KeyError, OSError)
DRIVERS = (
    "For postgresql:// that is: pip install 'autodiffusion-opt[postgres]'; for mysql+pymysql://: pip install "
    "'autodiffusion-opt[mysql]'"
)
# What both kinds of errors are: Optuna's of a transaction, and those that it lets through.
ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
# SQLite waits so long for another's lock.
LOCK_SECONDS = 60
# File systems of several machines (proc(5), the third field of /proc/mounts), on which SQLite's locks cannot be relied.
NETWORK = ("nfs", "cifs", "smb", "9p", "lustre", "ceph", "gpfs", "beegfs", "glusterfs", "sshfs", "afs")


def storage_url(given: str | None = None) -> str:
    """The URL given, else ``$AUTODIFFUSION_STORAGE``, else SQLite below the working folder."""
    return given or os.environ.get(VARIABLE) or DEFAULT_URL


def parsed_url(url: str) -> sqlalchemy.URL:
    """The parts of a URL. Raises UserError for text that is none, or that no database can be kept at."""
    try:
        parsed = sqlalchemy.engine.make_url(url)
        if parsed.drivername != PROXY:
            parsed.get_dialect()
    except NoSuchModuleError:
        kind = url.partition(":")[0]
        raise UserError(f"storage: {unknown_text('the kind of database', kind, KINDS)}") from None
    except (ArgumentError, *UNOPENED) as error:
        given = quoted(without_password(url))
        if isinstance(error, ImportError):
            raise UserError(f"storage {given} needs a driver ({reason_of(error)}). {DRIVERS}") from None
        raise UserError(
            f"storage must be a URL such as {DEFAULT_URL} or postgresql://user@host/name; got {given}"
        ) from None
    if HIDDEN.search(url):
        raise UserError(
            f"storage: a URL must not hold characters that are not printed; got {quoted(without_password(url))}"
        )
    is_memory = parsed.database in (None, "", ":memory:") or "memory" in (
        parsed.query.get("mode"),
        parsed.query.get("vfs"),
    )
    if is_sqlite(parsed) and is_memory:
        raise UserError(
            f"storage: SQLite in memory forgets a study when its run ends; name a file, as {DEFAULT_URL} does"
        )
    return parsed


def without_password(url: str) -> str:
    """The URL with ``***`` where a password is, or would be if it were a URL."""
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return re.sub(r"(//[^:/@]*:).*@", r"\1***@", url)


def is_sqlite(url: sqlalchemy.URL) -> bool:
    """Whether the database is a file."""
    return url.get_backend_name() == "sqlite"


def prepare_file(url: str, path: Path, create: bool) -> None:
    """See that the file of an SQLite database can be opened, and before it is written to, that it is whole.

    Raises:
        UserError: where it is not there and not to be created, or damaged.
    """
    try:
        is_there = path.is_file()
        if not is_there and not create:
            raise UserError(f"storage {url} does not exist; run a study first, or name another with --storage")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"storage {url} cannot be created: {reason_of(error)}: {path.parent}") from None
    if is_there and create and path.stat().st_size:
        _check_whole(url, path)
    kind = file_system(path)
    if kind.removeprefix("fuse.").startswith(NETWORK):
        warnings.warn(
            f"storage {url} is on a network file system ({kind}), where SQLite's locks may fail: "
            "use PostgreSQL for several machines",
            stacklevel=2,
        )


def _check_whole(url: str, path: Path) -> None:
    """Raise UserError where SQLite says that its file is damaged, or it cannot be read."""
    try:
        try:
            answer = _quick_check(path, "ro")
        except sqlite3.OperationalError as error:
            # A process that was killed left a transaction half done; a connection that may write takes it back.
            if error.sqlite_errorcode & PRIMARY_CODE != sqlite3.SQLITE_READONLY:
                raise
            answer = _quick_check(path, "rw")
    except sqlite3.Error as error:
        raise UserError(what_to_do(error, url, " cannot be opened: {}")) from None
    if answer != "ok":
        reason = answer.splitlines()[-1]
        raise UserError(f"storage {url} is damaged: {reason}. Put back a copy, or name another with --storage")


def _quick_check(path: Path, mode: str) -> str:
    """What SQLite says of its file, ``ok`` if that is whole; of a file that is opened to read, or to write too."""
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    with closing(sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS)) as connection:
        return str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The kind of the file system that a path is on (Linux); "" where it is not known."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    place, best = path.resolve(), ("", "")
    for _, folder, kind, *_ in (line.split(" ") for line in lines):
        folder = folder.encode().decode("unicode_escape")  # a blank is \040 there
        if place.is_relative_to(folder) and len(folder) >= len(best[0]):
            best = (folder, kind)
    return best[1]


def identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that was put in its place; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def engine_arguments(url: str) -> dict[str, Any]:
    """How SQLAlchemy opens the database."""
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": LOCK_SECONDS}}
    return {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 4}


def lock_early(engine: sqlalchemy.Engine, only_reads: Callable[[], bool]) -> None:
    """WAL, and BEGIN IMMEDIATE: no two workers read before one writes.

    Args:
        engine: of an SQLite database.
        only_reads: whether the transaction that begins writes nothing: it takes no lock.
    """

    @sqlalchemy.event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @sqlalchemy.event.listens_for(engine, "begin")
    def on_begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN" if only_reads() else "BEGIN IMMEDIATE")

    engine.dispose()  # connections that were opened before the events


def merge(path: Path) -> None:
    """Put what SQLite's write-ahead log holds into the file itself, so that a copy of the file holds all."""
    with sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=1) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()  # which removes the log, if nobody else has the file open


def first_line(error: BaseException) -> str:
    """What a database says of an error, in a line."""
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    return reason_of(getattr(cause, "orig", None) or cause or error)


def may_pass(error: BaseException, url: str) -> bool:
    """Whether a database that gave this error may work again by itself: it is locked, or its server is gone."""
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    if not isinstance(cause, OperationalError | InterfaceError | PendingRollbackError):
        return getattr(cause, "connection_invalidated", False)
    return not url.startswith("sqlite") or "locked" in first_line(error)


def what_to_do(error: BaseException, url: str, otherwise: str = ": {}") -> str:
    """A sentence on a database that cannot be opened, written or read.

    Args:
        error: that it gave.
        url: of the database.
        otherwise: what is said after its URL of an error that is not known here; ``{}`` is what the database says.
    """
    text, where = first_line(error), f"storage {without_password(url)}"
    if "disk is full" in text:
        return f"{where} cannot be written: its disk is full. Make room and run the study again: it goes on"
    if "readonly" in text:
        return f"{where} can only be read. Make it writable and run the study again: it goes on"
    if "malformed" in text or "not a database" in text:
        return f"{where} is damaged: {text}. Put back a copy, or name another with --storage"
    return where + otherwise.replace("{}", text)
