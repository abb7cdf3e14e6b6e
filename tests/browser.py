"""Headless Chromium for tests: a page after its scripts ran, what its console said, what it asked of other places."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
# Continuous integration installs it, so that there these tests are never skipped.
needs_browser = pytest.mark.skipif(PROGRAM is None and not os.environ.get("CI"), reason="there is no Chromium")
# Chromium's own: its clock, updates, accounts. No page asks for these.
BROWSERS_OWN = re.compile(
    r"^(http://)?(clients2\.google\.com|update\.googleapis\.com|accounts\.google\.com|content-autofill\.googleapis\.com"
    r"|optimizationguide-pa\.googleapis\.com|safebrowsing\w*\.googleapis\.com|android\.clients\.google\.com"
    r"|redirector\.gvt1\.com|edgedl\.me\.gvt1\.com|clientservices\.googleapis\.com|www\.google\.com:443)"
)


@dataclass(frozen=True)
class Page:
    """A page as the browser has it.

    Attributes:
        dom: as HTML.
        console: the lines that its scripts, or the browser because of it, wrote.
        requests: what was asked of other places than this machine and its files.
    """

    dom: str
    console: tuple[str, ...]
    requests: tuple[str, ...]


def open_page(url: str, folder: Path, seconds: int = 15, size: str = "1200,2000") -> Page:
    """Load a page.

    Args:
        url: of the page, or of a file.
        folder: for the browser's profile.
        seconds: that its scripts may take, in the page's own time.
        size: of the window.
    """
    assert PROGRAM is not None, "install Chromium: apt-get install chromium"
    with recording_proxy() as (port, requests):
        command = [
            PROGRAM,
            "--headless",
            "--no-sandbox",  # the tests may be run by root
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--proxy-server=127.0.0.1:{port}",
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            f"--window-size={size}",
            f"--virtual-time-budget={seconds * 1000}",
            "--dump-dom",
            url,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    console = (line for line in done.stderr.splitlines() if "CONSOLE" in line)
    # Chromium's own advice about forms and the like is no error.
    told = tuple(line for line in console if not re.search(r"\[DOM\]|DevTools", line))
    return Page(done.stdout, told, tuple(asked for asked in requests if not BROWSERS_OWN.match(asked)))


@contextmanager
def recording_proxy() -> Iterator[tuple[int, list[str]]]:
    """A proxy that answers nothing: its port, and what it is asked for."""
    requests: list[str] = []

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(502)

        do_CONNECT = do_POST = do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Kept in the list."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield proxy.server_port, requests
        finally:
            proxy.shutdown()
            thread.join()
