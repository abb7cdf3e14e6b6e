"""The verb ``init``: a study for a model, to begin with."""

from __future__ import annotations

from pathlib import Path

import click

from autodiffusion_opt.cli.completion import known_models
from autodiffusion_opt.cli.options import positive
from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.files import check_output
from autodiffusion_opt.process import say, tell
from autodiffusion_opt.text import shell_word


@click.command()
@click.argument("model", shell_complete=known_models)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write it here, not to stdout.")
@click.option("--force", is_flag=True, help="Also over a file that is there.")
@click.option("--steps", type=positive, default=4, show_default=True, help="That a candidate has.")
@click.option("--prompts", metavar="FILE", help="Prompts, one a line.  [default: a few that are written out]")
@click.option(
    "--reference", metavar="FOLDER", help="Real images to compare with.  [default: the model's own of 50 steps]"
)
def init(model: str, output: Path | None, force: bool, steps: int, prompts: str | None, reference: str | None) -> None:
    """Write a study for MODEL: an embedded name, a pipeline's folder, or a hub id.

    Its comments say what each key is, and what else it may be.
    """
    from autodiffusion_opt.objective.references import existing_source
    from autodiffusion_opt.sampling.conditions import existing_file
    from autodiffusion_opt.sampling.description import describe
    from autodiffusion_opt.sampling.load import model_folder
    from autodiffusion_opt.study.new_study import NewStudy, as_written
    from autodiffusion_opt.zoo import EMBEDDED

    if output is not None:
        check_output(output)
        if output.exists() and not force:
            raise UserError(f"-o: {output} is there already; name another file, or write over it with --force")
    if prompts is not None:
        existing_file(prompts, None)
    if reference is not None and reference not in EMBEDDED:
        existing_source(reference, None)
    described = describe(model)
    if prompts is not None and not described.takes_prompts:
        raise UserError(f"--prompts: {described.pipeline} takes no prompts")
    folder = None if output is None else output.parent
    is_path = model not in EMBEDDED and model_folder(model) is not None
    study = NewStudy(
        as_written(model, folder) if is_path else model,
        described,
        steps,
        None if prompts is None else as_written(prompts, folder),
        reference if reference is None or reference in EMBEDDED else as_written(reference, folder),
    )
    if output is None:
        tell(study.text().removesuffix("\n"))
        return
    text = study.text()
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"-o: {output} cannot be written: {reason_of(error)}") from None
    say(f"wrote {output}")
    say(f"next: autodiffusion-opt run {shell_word(str(output))} --dry-run")
