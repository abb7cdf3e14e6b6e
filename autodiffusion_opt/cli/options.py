"""Options that several verbs share, and how they print their results."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from autodiffusion_opt.cli.completion import known_studies
from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.text import shell_word

storage_option = click.option(
    "--storage", metavar="URL", help="SQL database.  [default: $AUTODIFFUSION_STORAGE or sqlite:///studies/studies.db]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
device_option = click.option("--device", metavar="D", help="auto, cpu, cuda, cuda:1 ...")
weights_option = click.option("--weights", metavar="FILE", help="The extractor's weights, instead of the download.")
study_option = click.option(
    "--study", metavar="STUDY", shell_complete=known_studies, help="Whose model and metric, for a candidate file."
)
positive = click.IntRange(min=1)
pick_option = click.option(
    "--pick", type=positive, default=1, show_default=True, help="The rank in `best`, 1 the first."
)


def storage_words(storage: str | None) -> str:
    """As given, but a password does not go to a log."""
    from autodiffusion_opt.trials.database import without_password

    return "" if storage is None else f" --storage {shell_word(without_password(storage))}"


def write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"-o: {path} cannot be written: {reason_of(error)}") from None


def print_result(as_json: bool, value: Any, table: Any) -> None:
    """The result on stdout: JSON, or a table."""
    if as_json:
        click.echo(json.dumps(_finite(value), allow_nan=False))
        return
    from autodiffusion_opt.report.tables import out

    out().print(table)


def _finite(value: Any) -> Any:
    """JSON has no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
