"""What it takes to find the blocks of real denoisers by their form: ``python benchmarks/layers_by_form.py [--quick]``.

Each denoiser has the size of the released model and lies on the meta device, so it has no weights; its inputs are those
of one image of 1024 × 1024 pixels, or of a clip of 81 frames of 832 × 480. Each is measured in a process of its own:
the seconds of listing its layers, and by how much the process's greatest memory grew. The last line is one JSON object.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
import warnings
from typing import Any

import diffusers
import torch
from common import machine, parser, say

from autodiffusion_opt.sampling.layers import list_layers

GIGABYTE = 1e6  # in the kilobytes of ru_maxrss, on Linux


def inputs_of(name: str) -> dict[str, Any]:
    """Of the denoiser's forward; shapes as its pipeline makes them."""
    moment = torch.tensor([0.5])
    if name == "QwenImageTransformer2DModel":
        text = {"encoder_hidden_states_mask": torch.ones(1, 256, dtype=torch.long), "img_shapes": [[(1, 64, 64)]]}
        image, width = torch.empty(1, 4096, 64), 3584
        return {"hidden_states": image, "encoder_hidden_states": torch.empty(1, 256, width), "timestep": moment} | text
    if name == "Flux2Transformer2DModel":
        places = {
            "img_ids": torch.zeros(1, 4096, 4),
            "txt_ids": torch.zeros(1, 512, 4),
            "guidance": torch.tensor([4.0]),
        }
        image, width = torch.empty(1, 4096, 128), 15360
        return {
            "hidden_states": image,
            "encoder_hidden_states": torch.empty(1, 512, width),
            "timestep": moment,
        } | places
    clip = torch.empty(1, 16, 21, 60, 104)
    return {"hidden_states": clip, "encoder_hidden_states": torch.empty(1, 512, 4096), "timestep": torch.tensor([500])}


MODELS = ("QwenImageTransformer2DModel", "Flux2Transformer2DModel", "WanTransformer3DModel")


def measured(name: str) -> dict[str, Any]:
    """The row of a denoiser, whose defaults are the released model's size."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with torch.device("meta"):
        denoiser = getattr(diffusers, name)().eval()
    inputs = inputs_of(name)
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    layers = list_layers(denoiser, inputs)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "denoiser": name,
        "parameters": sum(weight.numel() for weight in denoiser.parameters()),
        "layers": len(layers),
        "removable": sum(layer.removable for layer in layers),
        "seconds": round(time.perf_counter() - begun, 1),
        "gigabytes": round(grown / GIGABYTE, 2),
    }


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, threads=1)
    arguments.add_argument("--denoisers", nargs="+", choices=MODELS, default=list(MODELS))
    options = arguments.parse_args()
    rows = []
    for name in MODELS[:1] if options.quick else options.denoisers:
        say(name)
        with multiprocessing.get_context("spawn").Pool(1) as process:
            row = process.apply(measured, (name,))
        rows.append(row)
        print(
            f"{row['denoiser']:<30}{row['parameters'] / 1e9:>6.1f}e9 parameters{row['removable']:>5} of "
            f"{row['layers']} layers{row['seconds']:>7.1f} s{row['gigabytes']:>7.2f} GB",
            flush=True,
        )
    print(json.dumps({"rows": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
