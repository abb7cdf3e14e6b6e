"""The verb ``export``: a study's best candidate as a folder to ship, or a candidate in the settings of an engine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from autodiffusion_opt.cli.completion import known_candidates
from autodiffusion_opt.cli.options import json_option, pick_option, storage_option, study_option
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.files import check_output_folder
from autodiffusion_opt.process import tell

# As in study/engine_export.py, which imports the spaces.
ENGINES = ("cache-dit", "comfyui", "diffusers-cache")


@click.command()
@click.argument("candidate", metavar="STUDY|CANDIDATE", shell_complete=known_candidates)
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, metavar="DIR")
@click.option("--for", "engine", type=click.Choice(ENGINES), help="Settings of this engine, in place of a script.")
@pick_option
@study_option
@storage_option
@json_option
def export(
    candidate: str,
    output: Path,
    engine: str | None,
    pick: int,
    study: str | None,
    storage: str | None,
    as_json: bool,
) -> None:
    """Write the best candidate of STUDY to DIR: its JSON, numbers, and a script that uses it.

    Where the scheduler takes them also plain timesteps or sigmas, for people who do not install this library.

    With --for, a candidate file or a study's best in the settings of an engine or a front end. What that cannot
    express is told by name, with the difference of a few images where it can be measured.
    """
    check_output_folder(output)
    if engine is not None:
        _export_for(engine, candidate, output, pick, study, storage, as_json)
        return
    from autodiffusion_opt.catalogue import find_candidate
    from autodiffusion_opt.study.export import export_study
    from autodiffusion_opt.study.problem import load_sampler
    from autodiffusion_opt.study.progress_bar import Bar
    from autodiffusion_opt.study.results import open_study
    from autodiffusion_opt.study.stored_config import stored_config

    if find_candidate(candidate) is not None:
        raise UserError(
            f"export writes what a study found, and {candidate} is a candidate's file: name a study, or --for"
        )
    stored = open_study(candidate, storage)
    stored.pick(pick)  # a study without a result is told before its model is loaded
    config = stored_config(stored.name, stored.name, stored.definition)
    with Bar() as bar:
        written = export_study(stored, config, load_sampler(config, bar), output, pick)
    _print_files(output, written, as_json, {})


def _export_for(
    engine: str, candidate: str, output: Path, pick: int, study: str | None, storage: str | None, as_json: bool
) -> None:
    from autodiffusion_opt.catalogue import find_candidate
    from autodiffusion_opt.study.engine_export import export_for, write_export
    from autodiffusion_opt.study.problem import load_sampler
    from autodiffusion_opt.study.progress_bar import Bar
    from autodiffusion_opt.study.results import open_study, resolve

    chosen = resolve(candidate, study, storage)
    picked = next(iter(chosen.candidates.values()))
    if find_candidate(candidate) is None:
        picked = open_study(candidate, storage).pick(pick).candidate
    with Bar() as bar:
        made = export_for(engine, load_sampler(chosen.config, bar), picked, bar)
    written = write_export(made, output)
    _print_files(output, written, as_json, made.to_dict())
    if not as_json:
        if made.difference is not None:
            tell(f"images differ by {made.difference}")
        tell("\n".join(made.remarks))


def _print_files(output: Path, written: list[Path], as_json: bool, more: dict[str, object]) -> None:
    if as_json:
        click.echo(json.dumps({"folder": str(output), "files": [path.name for path in written], **more}))
    else:
        tell("\n".join(str(path) for path in written))
