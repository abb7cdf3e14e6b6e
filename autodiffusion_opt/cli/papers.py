"""The verb ``convert``: published checkpoints that diffusers does not read."""

from __future__ import annotations

import json
from pathlib import Path

import click

from autodiffusion_opt.cli.options import json_option
from autodiffusion_opt.files import check_output_folder
from autodiffusion_opt.process import say, tell

# As in sampling/adm/presets.py, which cannot be imported without torch.
PRESETS = ("adm64", "lsun256")


@click.command()
@click.argument("preset", type=click.Choice(PRESETS))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--classifier", type=click.Path(path_type=Path), metavar="FILE", help="Of adm64: what guides it.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, metavar="DIR")
@json_option
def convert(preset: str, file: Path, classifier: Path | None, output: Path, as_json: bool) -> None:
    """Write FILE, a checkpoint of OpenAI's guided-diffusion, as a pipeline's folder DIR.

    adm64: 64x64_diffusion.pt and, as --classifier, 64x64_classifier.pt. lsun256: lsun_bedroom.pt, lsun_cat.pt or
    lsun_horse.pt. Other models are refused by name.
    """
    check_output_folder(output)
    from autodiffusion_opt.sampling.adm.convert import convert as convert_files

    say(f"reading {file} ...")
    written = convert_files(preset, file, classifier, output)
    if as_json:
        click.echo(json.dumps(written))
        return
    sizes = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in written["parameters"].items())
    tell(f"{written['folder']}: ADMPipeline ({sizes} parameters)")
