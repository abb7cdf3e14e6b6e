"""Where the models of the papers' studies come from: for whoever runs one and has it not. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from autodiffusion_opt.text import shell_word

GUIDED_DIFFUSION = "https://github.com/openai/guided-diffusion"
# The folder that a study names -> the files and the words after `convert`.
CHECKPOINTS: dict[str, tuple[str, str]] = {
    "adm-imagenet64": (
        "64x64_diffusion.pt and 64x64_classifier.pt",
        "adm64 64x64_diffusion.pt --classifier 64x64_classifier.pt",
    ),
    "adm-lsun-bedroom": ("lsun_bedroom.pt", "lsun256 lsun_bedroom.pt"),
    "adm-lsun-cat": ("lsun_cat.pt", "lsun256 lsun_cat.pt"),
}


def how_to_get(folder: Path) -> str:
    """Sentences that say which files a model is made of, and with which command."""
    files, words = CHECKPOINTS[folder.name]
    return (
        f"Get {files} from {GUIDED_DIFFUSION}, then run: autodiffusion-opt convert {words} -o {shell_word(str(folder))}"
    )
