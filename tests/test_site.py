"""The documentation's site: every page of docs/ and every public name is in it, and it needs no other place."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from browser import needs_browser, open_page

import autodiffusion_opt as ado

ROOT = Path(__file__).parent.parent
# Continuous integration installs the extra [docs], so that there these tests are never skipped.
needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None and not os.environ.get("CI"), reason="the extra [docs] is not installed"
)


@pytest.fixture(scope="module")
def site_pages() -> ModuleType:
    """docs/site_pages.py, MkDocs' hook."""
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages_of(nav: Any) -> Iterator[str]:
    """The paths in MkDocs' table of contents: a text, or lists and titles around texts."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(part)


def test_the_site_lists_every_page_of_docs_and_every_page_that_it_makes(site_pages: ModuleType) -> None:
    listed = list(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    written = {page.name for page in (ROOT / "docs").glob("*.md")}
    made = {f"api/{name}.md" for name, *_ in (*site_pages.API, *site_pages.KINDS)}
    assert sorted(listed) == sorted(written | made | {"index.md", "changelog.md"})


def test_the_api_reference_has_every_public_name_once(site_pages: ModuleType) -> None:
    names = [name for *_, names in site_pages.API for name in names]
    assert sorted(names) == sorted(ado.__all__)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server of the site, built strictly: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Requests are no news."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
@needs_mkdocs
@needs_browser
@pytest.mark.parametrize(
    ("page", "texts"),
    [
        ("index.html", ['src="digits-4.png"', 'href="looking.html"', 'href="changelog.html"']),
        ("api/study.html", ["plot_convergence", "how many are wanted, baselines included"]),
        ("api/objectives.html", ["Fréchet distance", "clip-score"]),
        ("api/optimizers.html", ["pattern search from warm starts", "nevergrad:NAME"]),
    ],
)
def test_a_page_of_the_site_shows_its_content_and_asks_no_other_place(
    address: str, tmp_path: Path, page: str, texts: list[str]
) -> None:
    loaded = open_page(f"{address}/{page}", tmp_path, seconds=5)
    assert (loaded.console, loaded.requests) == ((), ())
    assert [text for text in texts if text not in loaded.dom] == []
    assert ":class:" not in loaded.dom
