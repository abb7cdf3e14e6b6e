"""Makes the pictures of looking.md: a study in a temporary folder, its report and its dashboard in headless Chromium.

    python docs/make_pictures.py

Needs Chromium, and ``pip install -e '.[dashboard,report]'``; takes about a minute on two cores.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from PIL import Image

from autodiffusion_opt.report.dashboard import server

DOCS = Path(__file__).parent
STUDY, TRIALS = "digits-joint", 30
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=15000")


def picture(url: str, path: Path, size: tuple[int, int], width: int = 760) -> None:
    """A page as a PNG file, ``width`` pixels wide."""
    window = f"--window-size={size[0]},{size[1]}"
    subprocess.run([BROWSER, *OPTIONS, window, f"--screenshot={path}", url], check=True, capture_output=True)
    with Image.open(path) as shot:
        smaller = shot.convert("RGB").resize((width, width * size[1] // size[0]), Image.Resampling.LANCZOS)
    smaller.save(path, optimize=True)


def command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "autodiffusion_opt", *words], check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        storage = f"sqlite:///{place}/studies.db"
        report = Path(place) / "report.html"
        command("run", STUDY, "--trials", str(TRIALS), "--storage", storage)
        command("verify", STUDY, "--images", "1000", "--storage", storage)
        command("report", STUDY, "--images", "16", "-o", str(report), "--storage", storage)
        picture(report.as_uri(), DOCS / "report.png", (1100, 2150))
        with server(storage, "127.0.0.1", 0) as listening:
            threading.Thread(target=listening.serve_forever, daemon=True).start()
            picture(
                f"http://127.0.0.1:{listening.server_port}/dashboard/studies/1", DOCS / "dashboard.png", (1200, 1700)
            )
            listening.shutdown()


if __name__ == "__main__":
    main()
