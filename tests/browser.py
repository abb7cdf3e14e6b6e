"""Headless Chromium for tests: a page's content after its scripts ran, and what its console said."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
# A machine's continuous integration installs it, so that there these tests are never skipped.
needs_browser = pytest.mark.skipif(PROGRAM is None and not os.environ.get("CI"), reason="there is no Chromium")


@dataclass(frozen=True)
class Page:
    """A page as the browser has it.

    Attributes:
        dom: as HTML.
        console: the lines that its scripts, or the browser because of it, wrote.
    """

    dom: str
    console: tuple[str, ...]


def open_page(url: str, folder: Path, seconds: int = 15, size: str = "1200,2000") -> Page:
    """Load a page. Only this machine can be reached: a request beyond it is an error in the console.

    Args:
        url: of the page, or of a file.
        folder: for the browser's profile.
        seconds: that its scripts may take, in the page's own time.
        size: of the window.
    """
    assert PROGRAM is not None, "install Chromium: apt-get install chromium"
    command = [
        PROGRAM,
        "--headless",
        "--no-sandbox",  # the tests may be run by root
        "--disable-gpu",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={folder / 'profile'}",
        "--enable-logging=stderr",
        f"--window-size={size}",
        f"--virtual-time-budget={seconds * 1000}",
        "--dump-dom",
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    console = (line for line in done.stderr.splitlines() if "CONSOLE" in line)
    # Chromium's own advice about passwords, forms and the like is no error.
    return Page(done.stdout, tuple(line for line in console if not re.search(r"\[DOM\]|DevTools", line)))
