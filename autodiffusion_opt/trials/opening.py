"""Opens the storage of a URL, and closes all that are open when the process ends."""

from __future__ import annotations

import atexit
import contextlib
import random
import time
import warnings
import weakref
from pathlib import Path

import sqlalchemy

from autodiffusion_opt import signals
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.trials import database
from autodiffusion_opt.trials.proxy import ProxyStorage
from autodiffusion_opt.trials.sql import SqlStorage
from autodiffusion_opt.trials.storage import Storage

_open: weakref.WeakSet[Storage] = weakref.WeakSet()


@atexit.register
def close_all() -> None:
    """Let go of all databases that are open."""
    with signals.held_back():
        for storage in list(_open):
            storage.close()


def open_existing(url: str) -> Storage | None:
    """The database of a URL, where it holds studies; None where it is not there or empty: nothing is made.

    Raises:
        UserError: for text that is no URL, or a database that cannot be opened.
    """
    if database.parsed_url(url).drivername != database.PROXY:
        with contextlib.suppress(*database.ERRORS, *database.UNOPENED):  # told when it is opened
            if not _has_studies(url):
                return None
    return open_storage(url, create=False)


def stored_names(url: str) -> list[str]:
    """The names of the studies in an SQL database, from one statement; none where it is not there or empty.

    Raises:
        Exception: where the database cannot be opened: whatever its driver raises.
    """
    if not _has_studies(url):
        return []
    engine = sqlalchemy.create_engine(url, **database.engine_arguments(url))
    try:
        with engine.connect() as connection:
            return [str(name) for (name,) in connection.execute(sqlalchemy.text("SELECT study_name FROM studies"))]
    finally:
        engine.dispose()


def _has_studies(url: str) -> bool:
    """Whether an SQL database is there, with Optuna's tables. A file that is not there is not made."""
    parsed = database.parsed_url(url)
    if database.is_sqlite(parsed) and not Path(str(parsed.database)).is_file():
        return False
    engine = sqlalchemy.create_engine(url, **database.engine_arguments(url))
    try:
        return sqlalchemy.inspect(engine).has_table("studies")
    finally:
        engine.dispose()


def _opened(storage: Storage) -> Storage:
    _open.add(storage)
    return storage


def open_storage(url: str, *, create: bool = True, patience: float = 0.0) -> Storage:
    """The database of a URL.

    Args:
        url: ``sqlite:///path``, ``postgresql://user@host/name``, ``grpc://host:port`` ...
        create: whether an SQLite file that is not there is created.
        patience: seconds for which a server that does not answer is waited for.

    Raises:
        UserError: for text that is no URL, or a database that cannot be opened.
    """
    parsed = database.parsed_url(url)
    if parsed.drivername == database.PROXY:
        return _opened(ProxyStorage(parsed))
    if database.is_sqlite(parsed):
        database.prepare_file(url, Path(str(parsed.database)), create)
    begun = time.monotonic()
    attempt = 0
    is_told = False
    while True:
        attempt += 1
        try:
            return _opened(SqlStorage(url))
        except (*database.ERRORS, *database.UNOPENED) as error:
            text = str(error).lower()
            # The first use of an empty database by several processes is a race.
            is_race = any(part in text for part in ("already exists", "locked", "unique", "duplicate"))
            is_waited_for = database.may_pass(error, url) and time.monotonic() < begun + patience
            if not (is_waited_for or (is_race and attempt < 20)):
                hint = f". {database.DRIVERS}" if "DB access module" in str(error) else ""
                raise UserError(database.what_to_do(error, url, f" cannot be opened: {{}}{hint}")) from None
            if is_waited_for and not is_told:
                warnings.warn(
                    f"storage {database.without_password(url)} cannot be opened: {database.first_line(error)}. Waiting "
                    f"for it, up to {patience:.0f} s",
                    stacklevel=2,
                )
                is_told = True
        time.sleep(random.random() * (1.0 if is_waited_for else 0.2))
