"""The verbs ``dashboard`` and ``report``: studies to look at."""

from __future__ import annotations

from pathlib import Path

import click

from autodiffusion_opt.cli.completion import stored_studies
from autodiffusion_opt.cli.options import device_option, positive, storage_option
from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.files import check_output, check_output_folder, write_whole
from autodiffusion_opt.process import say, tell


@click.command()
@storage_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; it has no password.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any that is free.")
def dashboard(storage: str | None, host: str, port: int) -> None:
    """Look at all studies in a browser: optuna-dashboard, with notes, previews and plots."""
    from autodiffusion_opt.report.dashboard import LOOPBACK, server
    from autodiffusion_opt.trials.database import storage_url

    if host not in LOOPBACK:
        say(f"warning: whoever reaches {host} can read and delete the studies: the dashboard has no password")
    with server(storage_url(storage), host, port) as listening:
        tell(f"http://{host}:{listening.server_port}/")
        say("Ctrl-C ends it")
        listening.serve_forever()


@click.command()
@click.argument("studies", nargs=-1, required=True, metavar="STUDY...", shell_complete=stored_studies)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("report.html"), show_default=True
)
@click.option("--png", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Also each plot as PNG.")
@click.option("--images", type=positive, metavar="N", help="Make N images anew, with uniform steps and the teacher.")
@device_option
@storage_option
def report(
    studies: tuple[str, ...],
    output: Path,
    png: Path | None,
    images: int | None,
    device: str | None,
    storage: str | None,
) -> None:
    """Write a page about STUDY: plots, images, results, and how to use them; of several, side by side first.

    It is one HTML file that asks for nothing else, to be mailed or kept.
    """
    from autodiffusion_opt.report.figures import figures, require_plotly
    from autodiffusion_opt.report.page import page
    from autodiffusion_opt.study.results import open_study
    from autodiffusion_opt.trials.database import storage_url

    require_plotly()
    check_output(output)
    if png is not None:
        check_output_folder(png)
    opened = [open_study(study, storage) for study in dict.fromkeys(studies)]
    for stored in opened:
        stored.top(1)  # a study without a result is told before images are made
    grids = {} if images is None else {stored.name: _grids(stored.name, storage, images, device) for stored in opened}
    try:
        write_whole(output, page(opened, storage_url(storage), grids).encode())
    except OSError as error:
        raise UserError(f"-o: {output} cannot be written: {reason_of(error)}") from None
    tell(str(output))
    if png is None:
        return
    from autodiffusion_opt.report.pictures import save_figures

    for index, stored in enumerate(opened, 1):
        prefix = f"{index}-" if len(opened) > 1 else ""
        tell("\n".join(map(str, save_figures(figures(stored), png, prefix))))


def _grids(study: str, storage: str | None, count: int, device: str | None) -> dict[str, bytes]:
    """Caption -> PNG file."""
    from autodiffusion_opt.study.previews import LARGEST, png, tile
    from autodiffusion_opt.study.problem import load_sampler
    from autodiffusion_opt.study.progress_bar import Bar
    from autodiffusion_opt.study.results import open_study, resolve
    from autodiffusion_opt.study.samples import compared_candidates, measured_values, sample_blocks

    chosen = resolve(study, None, storage)
    best = next(iter(chosen.candidates.values()))
    with Bar() as bar:
        sampler = load_sampler(chosen.config.on_device(device), bar)
        measured = measured_values(open_study(study, storage).complete())
        blocks = sample_blocks(sampler, compared_candidates(sampler, best), count, 0, measured, bar)
    return {caption: png(tile(images, sampler.columns, 2 * LARGEST)) for caption, images in blocks.items()}
