"""The verb ``run``: trials of a study, or what they would be."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from autodiffusion_opt.cli.comparing import print_comparison
from autodiffusion_opt.cli.completion import known_optimizers, known_studies
from autodiffusion_opt.cli.options import (
    device_option,
    json_option,
    positive,
    print_result,
    storage_option,
    storage_words,
)
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.process import say, tell
from autodiffusion_opt.text import shell_word

if TYPE_CHECKING:
    from autodiffusion_opt.study.run import Study


@click.command()
@click.argument("study", shell_complete=known_studies)
@click.option("--trials", type=positive, help="Total trials wanted.  [default: what the study says]")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Start no trial after S seconds."
)
@storage_option
@device_option
@click.option("--seed", type=click.IntRange(min=0), help="Another seed; the study is then called STUDY-seedN.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another value for any key of the study, space.steps=6 say; the study is then called STUDY+KEY=VALUE.",
)
@click.option(
    "--optimizer",
    metavar="NAME[,NAME...]",
    shell_complete=known_optimizers,
    help="Go on with another optimizer; of several names, run a study of each and compare them.",
)
@click.option("--repeats", type=positive, help="Seeds of each optimizer, for a comparison.  [default: 1]")
@click.option("--workers", type=positive, help="Processes that share the trials, and GPUs and CPU threads.")
@click.option("--wait", is_flag=True, help="Also for the trials that workers elsewhere are measuring.")
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    metavar="S",
    help="Wait S seconds for a database that is gone.  [default: 600; 0 at the start]",
)
@click.option("--dry-run", is_flag=True, help="Tell what would be run, how much and how long; write nothing to SQL.")
@click.option("--quiet", is_flag=True, help="No progress on stderr; warnings and errors remain.")
@json_option
def run(
    study: str,
    trials: int | None,
    timeout: float | None,
    storage: str | None,
    device: str | None,
    seed: int | None,
    overrides: tuple[str, ...],
    optimizer: str | None,
    repeats: int | None,
    workers: int | None,
    wait: bool,
    patience: float | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run STUDY (a name in the catalogue, or a TOML file) until it has all its trials.

    Run it again to continue after an interruption, or with more --trials. The same command in several processes or on
    several machines, with one --storage, shares the trials.
    """
    from autodiffusion_opt.report import tables
    from autodiffusion_opt.study.results import open_study
    from autodiffusion_opt.study.run import Study
    from autodiffusion_opt.study.workers import run_workers

    names = [] if optimizer is None else optimizer.split(",")
    is_comparison = repeats is not None or len(names) > 1
    settings: dict[str, Any] = {"storage": storage, "seed": seed, "device": device, "overrides": overrides}
    running: dict[str, Any] = {"trials": trials, "timeout": timeout, "patience": patience}
    if is_comparison:
        if workers is not None:
            raise UserError("--workers is of a single study: run the comparison's command in several terminals instead")
        studies = Study.several(study, names, repeats or 1, **settings)
    else:
        studies, running = [Study.load(study, **settings)], {**running, "optimizer": optimizer}
    if dry_run:
        _print_dry_run(studies, trials, None if is_comparison else optimizer, quiet, as_json)
        return
    try:
        for each in studies:
            if is_comparison and not quiet:
                say(f"study {each.config.name}")
            if workers is None:
                complete = each.run(progress=not quiet, wait=wait, **running)
            else:
                complete = run_workers(workers, each, {"name": study, **settings}, running, progress=not quiet)
    except KeyboardInterrupt:
        say(f"interrupted; all finished trials are kept. Continue with: {continued(click.get_current_context())}")
        raise
    name = studies[0].config.name
    if is_comparison:
        print_comparison([each.config.name for each in studies], as_json, storage=storage)
        return
    if not complete:
        raise UserError(f"the study {name!r} has no complete trial after the timeout; give it more time")
    stored = open_study(name, storage)
    print_result(as_json, tables.run_summary(stored), tables.run_table(stored))
    if not as_json:
        tell(f"next: autodiffusion-opt verify {shell_word(name)}{storage_words(storage)}")


def _print_dry_run(
    studies: Sequence[Study], trials: int | None, optimizer: str | None, quiet: bool, as_json: bool
) -> None:
    """What would be run, a table for each study; as JSON an object, of several a list."""
    from autodiffusion_opt.progress import silent
    from autodiffusion_opt.report.dry_run import dry_run_table
    from autodiffusion_opt.study.dry_run import dry_run
    from autodiffusion_opt.study.progress_bar import Bar

    with contextlib.nullcontext(silent) if quiet else Bar() as bar:
        planned = [dry_run(study, trials, optimizer, bar) for study in studies]
    if as_json:
        values = [each.to_dict() for each in planned]
        click.echo(json.dumps(values[0] if len(values) == 1 else values))
        return
    for each in planned:
        print_result(False, None, dry_run_table(each))


def continued(context: click.Context) -> str:
    """The command that goes on with what was interrupted: all that was given, but a password."""
    given = (
        parameter
        for parameter in context.command.params
        if context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    )
    arguments = [word for parameter in given for word in _words(parameter, context.params[str(parameter.name)])]
    return " ".join([f"autodiffusion-opt {context.info_name}", *arguments])


def _words(parameter: click.Parameter, value: Any) -> Iterator[str]:
    """A parameter as it is given on a command line."""
    name = parameter.opts[-1]
    if parameter.name == "storage":
        yield storage_words(value).strip()
    elif isinstance(parameter, click.Argument):
        yield shell_word(value)
    elif isinstance(parameter, click.Option) and parameter.is_flag:
        yield name
    else:
        values = value if isinstance(value, tuple) else (value,)
        yield from (
            f"{name} {shell_word(_shortest(each) if isinstance(each, float) else str(each))}" for each in values
        )


def _shortest(number: float) -> str:
    """``60`` for 60.0, and as many digits as it takes."""
    return short if float(short := f"{number:g}") == number else repr(number)
