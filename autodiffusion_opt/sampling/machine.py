"""What a pipeline runs on: the device and its name, the type of its numbers."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch

from autodiffusion_opt.sampling.compatibility import denoiser_of


def machine_of(pipeline: Any) -> dict[str, str]:
    """``device``, ``device_name`` and ``dtype`` of a pipeline's denoiser, wherever its weights are kept meanwhile."""
    device = torch.device(getattr(pipeline, "_execution_device", None) or pipeline.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    dtype = str(getattr(denoiser_of(pipeline), "dtype", "")).removeprefix("torch.")
    return {"device": str(device), "device_name": name, "dtype": dtype}


@cache
def _processor() -> str:
    """The processor's name; Linux has it in a file, since ``platform`` often knows the architecture only."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
