"""The verbs ``ls`` and ``show``: the catalogue, candidates, optimizers; and a trial of a study."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from typing import Any

import click

from autodiffusion_opt.cli import housekeeping
from autodiffusion_opt.cli.completion import listed_names
from autodiffusion_opt.cli.names import CANDIDATES, OPTIMIZERS, SECTIONS, listed
from autodiffusion_opt.cli.options import json_option, storage_option
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.process import say, tell
from autodiffusion_opt.text import visible

# Columns that a description must have beside its name.
LEAST_WIDTH = 24


@click.command(name="ls")
@click.argument("section", required=False, type=click.Choice(SECTIONS), metavar="[SECTION]")
@click.option("--all", "everything", is_flag=True, help="Of optimizers also those that are not recommended.")
@json_option
def list_catalogue(section: Any, everything: bool, as_json: bool) -> None:
    """List the catalogue with candidates and optimizers, or one SECTION of it.

    \b
    SECTION: spaces, objectives, studies, candidates or optimizers.
    """
    if everything and section != OPTIMIZERS:
        raise UserError("--all is for optimizers: ls optimizers --all")
    shown = list(listed(section, everything))
    if as_json:
        click.echo(json.dumps([vars(each) for each in shown]))
        return
    width = max((len(visible(each.name)) for each in shown), default=0)
    previous = None
    for each in shown:
        if each.section != previous:
            click.echo(f"{each.section}/" if each.section != OPTIMIZERS else OPTIMIZERS)
            previous = each.section
        click.echo(_folded(f"  {visible(each.name):<{width}}  ", visible(each.description, None)))
    if section == OPTIMIZERS and not everything:
        say("more with --all")


def _folded(name: str, description: str) -> str:
    """A name with its description beside it, in lines as wide as the terminal or COLUMNS; in a pipe it is one line."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() or os.environ.get("COLUMNS") else 0
    if not columns or len(name) + len(description) <= columns:
        return (name + description).rstrip()
    if columns - len(name) < LEAST_WIDTH:
        lines = textwrap.wrap(description, max(columns - 4, LEAST_WIDTH))
        return "\n".join([name.rstrip(), *(f"    {line}" for line in lines)])
    lines = textwrap.wrap(description, columns - len(name))
    return name + f"\n{' ' * len(name)}".join(lines)


@click.command()
@click.argument("name", shell_complete=listed_names)
@click.option("--trial", type=click.IntRange(min=0), metavar="N", help="Of the study NAME, all that SQL holds of it.")
@storage_option
@json_option
def show(name: str, trial: int | None, storage: str | None, as_json: bool) -> None:
    """Print a file of the catalogue, a candidate or an optimizer, by NAME; or a trial of the study NAME."""
    from autodiffusion_opt import catalogue
    from autodiffusion_opt.recommended import RECOMMENDED

    if trial is not None:
        housekeeping.print_trial(name, trial, storage, as_json)
        return
    if storage is not None:
        raise UserError(f"--storage is for a trial, {name} --trial N; files of the catalogue are in no database")
    short = name.removeprefix(f"{CANDIDATES}/")
    path = catalogue.find_candidate(short)
    if path is not None:
        content = json.loads(catalogue.read_text(path)) if as_json else None
        section, shown = CANDIDATES, path.stem
    elif name.removeprefix(f"{OPTIMIZERS}/") in RECOMMENDED:
        _show_optimizer(name.removeprefix(f"{OPTIMIZERS}/"), as_json)
        return
    else:
        try:
            entry = catalogue.show(name)
        except UserError as error:
            raise UserError(f"{error} Of a study that was run, see: best STUDY, or show STUDY --trial N") from None
        path, section, shown = entry.path, str(entry.section), entry.name
        content = catalogue.read_toml(path) if as_json else None
    if as_json:
        click.echo(json.dumps({"section": section, "name": shown, "content": content}))
    else:
        tell(catalogue.read_text(path).removesuffix("\n"))


def _show_optimizer(name: str, as_json: bool) -> None:
    """Its line, and its settings as a table with their defaults."""
    from autodiffusion_opt.optimizer import OPTIMIZERS as KINDS
    from autodiffusion_opt.recommended import RECOMMENDED

    config = KINDS[name](kind=name)
    settings = config.model_dump(mode="json")
    if as_json:
        click.echo(json.dumps({"section": OPTIMIZERS, "name": name, "content": settings}))
        return
    lines = [f"# {RECOMMENDED[name]}", "[optimizer]"]
    for key, value in settings.items():
        lines.append(f"{key} = {json.dumps(value)}" if value is not None else f"# {key} = ...")
    tell("\n".join(lines))
