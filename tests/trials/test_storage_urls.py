"""Storages that cannot be had: a sentence that says what is wrong, and never a password."""

from __future__ import annotations

from pathlib import Path

import pytest

from autodiffusion_opt import UserError
from autodiffusion_opt.trials.database import without_password
from autodiffusion_opt.trials.opening import open_storage

WRONG = {
    "garbage": "storage must be a URL such as",
    "postgresql://[::1": "storage must be a URL such as",
    "postgresql://me:secret@localhost:x/y": "storage must be a URL such as",
    "x" * 10_000: "storage must be a URL such as",
    "sqlite:///a\0b": "characters that are not printed; got 'sqlite:///a",
    "sqlite:///\x1b[31m.db": "characters that are not printed",
    "postgres://localhost/x": "Did you mean 'postgresql'?",
    "postgresql+nodriver://localhost/x": "the kind of database must be one of",
    "oracle://me:secret@localhost/x": "cannot be opened",
    "sqlite://": "in memory forgets a study",
    "sqlite:///:memory:": "in memory forgets a study",
    "sqlite:///file:x?mode=memory&uri=true": "in memory forgets a study",
    "sqlite:////dev/null/x.db": "cannot be created: ",
    f"sqlite:///{'x' * 10_000}": "File name too long",
    "sqlite:///x.db?timeout=many": "cannot be opened: ",
    "sqlite:///.": "cannot be opened: ",
}


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(UserError) as error:
        open_storage(url)
    assert WRONG[url] in str(error.value)
    assert "secret" not in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 11_000


def test_a_password_is_hidden_in_what_is_no_url() -> None:
    assert without_password("postgresql://me:secret@localhost:x/y") == "postgresql://me:***@localhost:x/y"
    assert without_password("garbage") == "garbage"


def test_a_url_is_a_file_as_ever() -> None:
    open_storage("sqlite:///[red] a.db?timeout=60")
    assert Path("[red] a.db").is_file()
