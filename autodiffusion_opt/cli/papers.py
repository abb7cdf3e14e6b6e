"""The verbs ``convert``, published checkpoints that diffusers does not read, and ``reproduce``, published tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from autodiffusion_opt.cli.options import device_option, json_option, positive, print_result
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.files import check_output_folder
from autodiffusion_opt.process import say, tell

# As in sampling/adm/presets.py, which cannot be imported without torch, sampling/ldm and sampling/single_file.py.
PRESETS = ("adm64", "lsun256", "ldm", "sd")
# As in study/reproduce.py, which imports Optuna.
EXPERIMENTS = ("adm-imagenet64",)


@click.command()
@click.argument("preset", type=click.Choice(PRESETS))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--classifier", type=click.Path(path_type=Path), metavar="FILE", help="Of adm64: what guides it.")
@click.option("--config", type=click.Path(path_type=Path), metavar="DIR", help="Of sd: its configurations, no weights.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, metavar="DIR")
@json_option
def convert(preset: str, file: Path, classifier: Path | None, config: Path | None, output: Path, as_json: bool) -> None:
    """Write FILE, a published checkpoint, as a pipeline's folder DIR.

    Of OpenAI's guided-diffusion, adm64: 64x64_diffusion.pt and, as --classifier, 64x64_classifier.pt. lsun256:
    lsun_bedroom.pt, lsun_cat.pt or lsun_horse.pt. Of CompVis' latent-diffusion, ldm: the model.ckpt of an
    unconditional LDM-4 (FFHQ, CelebA-HQ, LSUN bedrooms). Other models are refused by name. sd: a single file of Stable
    Diffusion; --config is a folder with its model_index.json, configurations and tokenizer.
    """
    check_output_folder(output)
    if preset in ("ldm", "sd") and classifier is not None:
        raise UserError(f"--classifier: {preset} is not guided by a classifier; leave it out")
    if (preset == "sd") != (config is not None):
        raise UserError(
            "sd needs --config DIR: a folder with its model_index.json, configurations and tokenizer"
            if config is None
            else f"--config: {preset} needs none; leave it out"
        )
    say(f"reading {file} ...")
    written = _converted(preset, file, classifier, config, output)
    if as_json:
        click.echo(json.dumps(written))
        return
    sizes = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in written["parameters"].items())
    tell(f"{written['folder']}: {written['pipeline']} ({sizes} parameters)")


def _converted(preset: str, file: Path, classifier: Path | None, config: Path | None, output: Path) -> dict[str, Any]:
    if config is not None:
        from autodiffusion_opt.sampling.single_file import convert as convert_single_file

        return convert_single_file(file, config, output)
    if preset == "ldm":
        from autodiffusion_opt.sampling.ldm.convert import convert as convert_latent

        return convert_latent(file, output)
    from autodiffusion_opt.sampling.adm.convert import convert as convert_adm

    return convert_adm(preset, file, classifier, output)


@click.command()
@click.argument("experiment", type=click.Choice(EXPERIMENTS))
@click.option("--weights", metavar="DIR", required=True, help="The model's folder, as convert writes it.")
@click.option("--reference", metavar="NPZ", required=True, help="Statistics or images of the real ones.")
@click.option("--images", type=click.IntRange(min=2), default=50_000, show_default=True, help="Images a repeat.")
@click.option("--repeats", type=positive, default=1, show_default=True, help="Each with noise of its own.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Another value of a study's key.")
@device_option
@json_option
def reproduce(
    experiment: str,
    weights: str,
    reference: str,
    images: int,
    repeats: int,
    overrides: tuple[str, ...],
    device: str | None,
    as_json: bool,
) -> None:
    """Measure the published candidates of EXPERIMENT again: published beside measured.

    The settings are those of the study adm-imagenet64-4.
    """
    from autodiffusion_opt.report.reproduced import reproduced_table
    from autodiffusion_opt.study.progress_bar import Bar
    from autodiffusion_opt.study.reproduce import reproduce as measure

    with Bar() as bar:
        rows = measure(
            experiment,
            weights,
            reference,
            images=images,
            repeats=repeats,
            device=device,
            overrides=overrides,
            progress=bar,
        )
    result = {"experiment": experiment, "images": images, "rows": [row.to_dict() for row in rows]}
    print_result(as_json, result, reproduced_table(rows))
