"""The command line: few verbs, no logic of its own. Imports torch only where images are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import click

from autodiffusion_opt import __version__
from autodiffusion_opt.cli import housekeeping
from autodiffusion_opt.cli.comparing import compare
from autodiffusion_opt.cli.completion import known_candidates, known_models, stored_studies
from autodiffusion_opt.cli.export import export
from autodiffusion_opt.cli.listing import list_catalogue, show
from autodiffusion_opt.cli.looking import dashboard, report
from autodiffusion_opt.cli.options import (
    device_option,
    json_option,
    pick_option,
    positive,
    print_result,
    storage_option,
    study_option,
    write_text,
)
from autodiffusion_opt.cli.papers import convert, reproduce
from autodiffusion_opt.cli.reference import reference
from autodiffusion_opt.cli.running import run
from autodiffusion_opt.cli.starting import init
from autodiffusion_opt.files import check_output
from autodiffusion_opt.process import run_and_leave, say, tell


class _Verbs(click.Group):
    """Verbs in the order in which they are used, with their whole first sentences."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.get_short_help_str(limit=200)) for name, verb in self.commands.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="autodiffusion-opt")
def app() -> None:
    """Search the time steps and the layers of a pretrained diffusion model, training nothing."""


for verb in (init, run):
    app.add_command(verb)


@app.command()
@click.argument("model", shell_complete=known_models)
@json_option
def layers(model: str, as_json: bool) -> None:
    """The layers of MODEL (an embedded name, a folder, a hub id) or of a study's model, in the order they run."""
    from autodiffusion_opt.report.tables import layer_rows, layer_table
    from autodiffusion_opt.study.results import listed_layers

    rows = layer_rows(*listed_layers(model))
    print_result(as_json, rows, layer_table(rows))


@app.command()
@click.argument("studies", nargs=-1, metavar="[STUDY...]", shell_complete=stored_studies)
@storage_option
@json_option
def status(studies: tuple[str, ...], storage: str | None, as_json: bool) -> None:
    """Every STUDY, or all in the storage: trials by state, best value, best baseline, optimizer, last activity."""
    from autodiffusion_opt.report.tables import status_rows, status_table
    from autodiffusion_opt.trials.database import storage_url, without_password
    from autodiffusion_opt.trials.opening import open_storage

    url = storage_url(storage)
    rows = status_rows(open_storage(url, create=False), studies)
    if not rows and not as_json:
        say(f"no study in {without_password(url)} yet; start with: autodiffusion-opt run digits-4")
        return
    print_result(as_json, rows, status_table(rows))


@app.command()
@click.argument("study", shell_complete=stored_studies)
@click.option("-k", "count", type=positive, help="How many.  [default: 5, or the whole front]")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write a candidate's JSON here.")
@pick_option
@storage_option
@json_option
def best(study: str, count: int | None, output: Path | None, pick: int, storage: str | None, as_json: bool) -> None:
    """The best candidates of STUDY; of several values the front, those that no other dominates.

    -o writes the file of the best, or of the picked one, for sample, verify and apply.
    """
    from autodiffusion_opt.report.tables import best_rows, best_table
    from autodiffusion_opt.study.results import candidate_file, open_study

    if output is not None:
        check_output(output)
    stored = open_study(study, storage)
    top = stored.top(count)
    if output is not None:
        write_text(
            output, json.dumps(candidate_file(stored.pick(pick), stored.name, stored.definition), indent=2) + "\n"
        )
        say(f"wrote {output}")
    print_result(as_json, best_rows(top), best_table(top))


app.add_command(export)


@app.command()
@click.argument("candidate", metavar="STUDY|CANDIDATE", shell_complete=known_candidates)
@click.option("-n", "count", type=positive, default=64, show_default=True, help="Images of each.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("grid.png"), show_default=True
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--columns", type=positive, help="Of each block.  [default: as many as rows; a clip's frames]")
@click.option("--no-teacher", is_flag=True, help="Without the pipeline's own 50 steps, which take longest.")
@study_option
@storage_option
@device_option
def sample(
    candidate: str,
    count: int,
    output: Path,
    seed: int,
    columns: int | None,
    no_teacher: bool,
    study: str | None,
    storage: str | None,
    device: str | None,
) -> None:
    """Images of CANDIDATE (a JSON file, or a study: its best) beside own, uniform and the teacher's 50 steps."""
    from autodiffusion_opt.catalogue import find_candidate
    from autodiffusion_opt.report.grid import check_picture, save_grid
    from autodiffusion_opt.study.problem import load_sampler
    from autodiffusion_opt.study.progress_bar import Bar
    from autodiffusion_opt.study.results import open_study, resolve
    from autodiffusion_opt.study.samples import compared_candidates, measured_values, sample_blocks

    check_picture(output)
    chosen = resolve(candidate, study, storage)
    best = next(iter(chosen.candidates.values()))
    measured = {} if find_candidate(candidate) else measured_values(open_study(candidate, storage).complete())
    with Bar() as bar:
        sampler = load_sampler(chosen.config.on_device(device), bar)
        candidates = compared_candidates(sampler, best, teacher=not no_teacher)
        blocks = sample_blocks(sampler, candidates, count, seed, measured, bar)
    save_grid(blocks, output, columns or sampler.columns)
    tell(str(output))


@app.command()
@click.argument("candidate", metavar="STUDY|CANDIDATE", shell_complete=known_candidates)
@click.option("--images", type=click.IntRange(min=2), default=5000, show_default=True, help="Images a repeat.")
@click.option("--repeats", type=positive, default=3, show_default=True, help="Each with noise of its own.")
@click.option("--top", type=positive, help="So many of a study's best.  [default: 1, or the whole front]")
@click.option("--model", metavar="MODEL", help="Of another model, to see whether the candidate transfers.")
@click.option("--extrapolate", is_flag=True, help="Also the value for infinitely many images.")
@click.option("--report", "more", multiple=True, metavar="NAME", help="Also a metric that the study did not measure.")
@study_option
@storage_option
@device_option
@json_option
def verify(
    candidate: str,
    images: int,
    repeats: int,
    top: int | None,
    model: str | None,
    extrapolate: bool,
    more: tuple[str, ...],
    study: str | None,
    storage: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Re-score CANDIDATE (a JSON file, or a study: its best) and the baselines on fresh seeds."""
    from autodiffusion_opt.catalogue import find_candidate
    from autodiffusion_opt.report.tables import rescored_table
    from autodiffusion_opt.report.verified import keep_verified
    from autodiffusion_opt.study.problem import load_problem
    from autodiffusion_opt.study.progress_bar import Bar
    from autodiffusion_opt.study.results import open_study, resolve
    from autodiffusion_opt.study.verify import verified

    chosen = resolve(candidate, study, storage, top)
    with Bar() as bar:
        config = chosen.config.on_model(model).on_device(device).reporting(more)
        problem = load_problem(config, progress=bar)
        searched = None if model else chosen.searched
        result = verified(problem, chosen.candidates, searched, images, repeats, extrapolate, bar)
    if model is None and find_candidate(candidate) is None:
        keep_verified(open_study(candidate, storage), result)
    print_result(as_json, result.to_dict(), rescored_table(result.rescored))
    if not as_json:
        tell("\n".join(result.sentences))


for verb in (
    compare,
    list_catalogue,
    show,
    dashboard,
    report,
    housekeeping.remove,
    housekeeping.rename,
    housekeeping.copy,
    reference,
    convert,
    reproduce,
):
    app.add_command(verb)


def main() -> NoReturn:
    """The entry point: exit code 0, 2 for a user's mistake, 130 after Ctrl-C."""
    run_and_leave(lambda: app(standalone_mode=False))
