"""What the benchmarks share: the machine that they name, their options, their progress, a UNet of ADM's layout."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch


def parser(doc: str | None, threads: int = 1) -> argparse.ArgumentParser:
    """Options that are common to benchmarks; a script may add its own.

    Args:
        doc: the script's docstring, which is its help.
        threads: the default of ``--threads``.
    """
    arguments = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="under a minute on two cores")
    arguments.add_argument("--threads", type=int, default=threads, help=f"of torch (default: {threads})")
    return arguments


def say(text: str, end: str = "\n") -> None:
    """Tell of progress; stdout is for the result."""
    print(text, file=sys.stderr, end=end, flush=True)


def machine() -> dict[str, object]:
    """Processor, cores, threads and versions; the GPU where there is one."""
    named: dict[str, object] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        named["gpu"] = torch.cuda.get_device_name()
    return named


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def adm(pixels: int, width: int, groups: int = 32, head: int | None = None) -> Any:
    """ADM ImageNet 64's 58 layers, without classes; with 64 pixels, width 192 and heads of 64 about its real size.

    Args:
        pixels: of a side.
        width: channels of the first block.
        groups: of the normalisations.
        head: channels of an attention head; None: as many as groups.
    """
    from diffusers import UNet2DModel  # some seconds, which other scripts do not need

    return UNet2DModel(
        sample_size=pixels,
        out_channels=6,  # half of them a learned variance
        block_out_channels=(width, 2 * width, 3 * width, 4 * width),
        layers_per_block=3,
        down_block_types=("ResnetDownsampleBlock2D", *("AttnDownBlock2D",) * 3),
        up_block_types=(*("AttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        downsample_type="resnet",
        upsample_type="resnet",
        norm_num_groups=groups,
        attn_norm_num_groups=groups,
        attention_head_dim=head or groups,
    ).eval()


def by_evolution(study: str) -> tuple[str, ...]:
    """Overrides with which ``digits-4`` or ``dit-4`` is searched as in the paper: 150 trials of 500 images each."""
    objective = {"digits-4": "digits-fid", "dit-4": "digits-dit-fid"}[study]
    sizes = ("pipeline.batch_size=250", "pipeline.micro_batch=250")
    return (f"objective={objective}", "optimizer=evolution", "trials=150", *sizes)
