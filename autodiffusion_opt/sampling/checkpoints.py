"""Where the models of the papers' studies come from: for whoever runs one and has it not. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from autodiffusion_opt.text import shell_word

GUIDED_DIFFUSION = "https://github.com/openai/guided-diffusion"
LATENT_DIFFUSION = "https://github.com/CompVis/latent-diffusion"
# The folder that a study names -> the files, who lists them, and the words after `convert`.
CHECKPOINTS: dict[str, tuple[str, str, str]] = {
    "adm-imagenet64": (
        "64x64_diffusion.pt and 64x64_classifier.pt",
        GUIDED_DIFFUSION,
        "adm64 64x64_diffusion.pt --classifier 64x64_classifier.pt",
    ),
    "adm-lsun-bedroom": ("lsun_bedroom.pt", GUIDED_DIFFUSION, "lsun256 lsun_bedroom.pt"),
    "adm-lsun-cat": ("lsun_cat.pt", GUIDED_DIFFUSION, "lsun256 lsun_cat.pt"),
    "ldm4-lsun-bedroom": ("model.ckpt in lsun_bedrooms.zip", LATENT_DIFFUSION, "ldm model.ckpt"),
}


def how_to_get(folder: Path) -> str:
    """Sentences that say which files a model is made of, and with which command."""
    files, place, words = CHECKPOINTS[folder.name]
    return f"Get {files} from {place}, then run: autodiffusion-opt convert {words} -o {shell_word(str(folder))}"
