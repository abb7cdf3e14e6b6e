"""Embedded models: pipelines small enough to ship, so that everything can be tried with no download."""

from pathlib import Path

# Embedded name -> its diffusers folder.
EMBEDDED: dict[str, Path] = {"digits": Path(__file__).parent / "digits" / "pipeline"}
