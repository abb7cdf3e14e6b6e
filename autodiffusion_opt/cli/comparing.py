"""The verb ``compare``, and the same of a run with several optimizers or seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from autodiffusion_opt.cli.completion import stored_studies
from autodiffusion_opt.cli.options import device_option, json_option, positive, print_result, storage_option
from autodiffusion_opt.process import say, tell


@click.command()
@click.argument("studies", nargs=-1, required=True, metavar="STUDY...", shell_complete=stored_studies)
@storage_option
@click.option(
    "--within", default="5,20", show_default=True, metavar="P,...", help="Percent of the best value to reach."
)
@click.option("--verify", is_flag=True, help="Re-score the winners on fresh seeds.")
@click.option("--images", type=click.IntRange(min=2), default=5000, show_default=True, help="Images a repeat.")
@click.option("--repeats", type=positive, default=3, show_default=True, help="Each with noise of its own.")
@device_option
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A picture: .png, .svg or .html.")
@json_option
def compare(studies: tuple[str, ...], within: str, as_json: bool, output: Path | None, **settings: Any) -> None:
    """Compare STUDIES, names or patterns such as 'digits-4*': which optimizer, or how many steps?

    They have one pipeline, space and objective, and differ in optimizer and seed; or in the number of steps too.
    """
    print_comparison(studies, as_json, output, within, **settings)


def print_comparison(
    studies: Sequence[str], as_json: bool, output: Path | None = None, within: str = "5,20", **settings: Any
) -> None:
    """Compare studies: the table and its sentences, or JSON; and a picture where ``output`` is given."""
    from autodiffusion_opt.report import plots
    from autodiffusion_opt.report.comparison import comparison_table
    from autodiffusion_opt.study.compare import compare as compare_studies
    from autodiffusion_opt.study.compare import percentages
    from autodiffusion_opt.study.progress_bar import Bar

    if output is not None:
        plots.check_picture(output)
    with Bar() as bar:
        compared = compare_studies(studies, within=percentages(within), progress=bar, **settings)
    if output is not None:
        plots.save_picture(compared, output)
        say(f"wrote {output}")
    print_result(as_json, compared.to_dict(), comparison_table(compared))
    if not as_json:
        tell("\n".join(compared.sentences))
