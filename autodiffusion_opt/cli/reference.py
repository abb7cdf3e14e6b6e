"""The verbs ``reference make`` and ``reference show``."""

from __future__ import annotations

from pathlib import Path

import click

from autodiffusion_opt.cli.options import device_option, json_option, print_result, weights_option


@click.group()
def reference() -> None:
    """Real images as a reference: make a file of their statistics, or show what a source holds."""


@reference.command(name="make")
@click.argument("source")
@click.option("--features", metavar="NAME", required=True, help="The extractor, as in an objective.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("reference.npz"),
    show_default=True,
)
@weights_option
@device_option
@json_option
def make_reference(
    source: str, features: str, output: Path, weights: str | None, device: str | None, as_json: bool
) -> None:
    """Statistics of SOURCE's images (a folder, a data set, an .npz of images or features) as an .npz file."""
    from autodiffusion_opt.report import references
    from autodiffusion_opt.study.progress_bar import Bar

    with Bar() as bar:
        made = references.make_reference(source, features, output, bar, weights, device)
    print_result(as_json, made, references.reference_table(made))


@reference.command(name="show")
@click.argument("source")
@click.option("--features", metavar="NAME", help="Measure it with this extractor too.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write a PNG of its images here.")
@weights_option
@device_option
@json_option
def show_reference(
    source: str, features: str | None, output: Path | None, weights: str | None, device: str | None, as_json: bool
) -> None:
    """What SOURCE (a folder, a data set, an .npz file, an embedded model) holds."""
    from autodiffusion_opt.report import references
    from autodiffusion_opt.study.progress_bar import Bar

    with Bar() as bar:
        shown = references.show_reference(source, bar, features, output, weights, device)
    print_result(as_json, shown, references.reference_table(shown))
