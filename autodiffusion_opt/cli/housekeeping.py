"""The verbs ``rm``, ``rename`` and ``copy``: what becomes of whole studies; and a trial shown whole."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from autodiffusion_opt.cli.completion import stored_studies
from autodiffusion_opt.cli.options import json_option, print_result, storage_option
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.process import say, tell
from autodiffusion_opt.text import quoted

if TYPE_CHECKING:
    from autodiffusion_opt.study.housekeeping import Moved


@click.command(name="rm")
@click.argument("studies", nargs=-1, required=True, metavar="STUDY...", shell_complete=stored_studies)
@click.option("--yes", is_flag=True, help="Do not ask.")
@storage_option
@json_option
def remove(studies: tuple[str, ...], yes: bool, storage: str | None, as_json: bool) -> None:
    """Delete studies with all their trials, after asking."""
    from autodiffusion_opt.study import housekeeping
    from autodiffusion_opt.trials.database import storage_url, without_password
    from autodiffusion_opt.trials.opening import open_storage

    url = storage_url(storage)
    database = open_storage(url, create=False)
    going = housekeeping.removable(studies, database)
    listed = _listed(going)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(f"rm asks before it deletes {listed}, and there is no terminal to ask in: give --yes")
        if not click.confirm(f"Delete {listed} from {without_password(url)}?", err=True):
            say("nothing was deleted")
            return
    removed = housekeeping.remove(studies, database)
    _print(as_json, {"removed": [asdict(each) for each in removed]}, f"deleted {_listed(removed)}")


@click.command()
@click.argument("study", shell_complete=stored_studies)
@click.argument("new")
@storage_option
@json_option
def rename(study: str, new: str, storage: str | None, as_json: bool) -> None:
    """Call STUDY NEW from now on. A study that has a file is continued with the file renamed too."""
    from autodiffusion_opt.study import housekeeping
    from autodiffusion_opt.trials.database import storage_url
    from autodiffusion_opt.trials.opening import open_storage

    renamed = housekeeping.rename(study, new, open_storage(storage_url(storage), create=False))
    _print(as_json, asdict(renamed), f"{quoted(study)} is now {_listed([renamed])}")


@click.command()
@click.argument("study", shell_complete=stored_studies)
@click.option("--to", "target", metavar="URL", required=True, help="The database that gets the copy.")
@click.option("--name", metavar="NEW", help="The copy's name.  [default: STUDY]")
@storage_option
@json_option
def copy(study: str, target: str, name: str | None, storage: str | None, as_json: bool) -> None:
    """Copy STUDY with all its trials to another database, from SQLite to PostgreSQL say."""
    from autodiffusion_opt.study import housekeeping
    from autodiffusion_opt.trials.database import storage_url, without_password
    from autodiffusion_opt.trials.opening import open_storage

    copied = housekeeping.copy(study, open_storage(storage_url(storage), create=False), target, name)
    shown = without_password(target)
    _print(as_json, {**asdict(copied), "storage": shown}, f"copied to {shown}: {_listed([copied])}")


def print_trial(study: str, number: int, storage: str | None, as_json: bool) -> None:
    """What ``show STUDY --trial N`` prints. Raises UserError for a study or a trial that is not there."""
    from autodiffusion_opt.report.trial import trial_table
    from autodiffusion_opt.study.results import open_study
    from autodiffusion_opt.study.whole_trial import whole_trial

    shown = whole_trial(open_study(study, storage), number)
    print_result(as_json, shown, trial_table(shown))


def _listed(studies: Sequence[Moved]) -> str:
    return ", ".join(f"{quoted(each.study)} ({each.trials:,} trial{'s' * (each.trials != 1)})" for each in studies)


def _print(as_json: bool, result: dict[str, Any], sentence: str) -> None:
    if as_json:
        click.echo(json.dumps(result))
    else:
        tell(sentence)
