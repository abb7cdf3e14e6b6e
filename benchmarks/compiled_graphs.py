"""How many graphs ``compile = true`` compiles of a model: ``python benchmarks/compiled_graphs.py [--quick]``.

Denoisers in the sizes of the pretrained models, on the meta device, so without weights: each is run whole, then with
random sets of its layers removed. A backend that compiles nothing counts the graphs that ``torch.compile`` gives it.
``graphs`` of the last line, one JSON object, is the number after the whole run; ``graphs_with_removed`` after those
with removed layers, which should be the same. ``--quick`` takes two of the models.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from common import adm, machine, parser, say

from autodiffusion_opt import compile_layers
from autodiffusion_opt.sampling.layers import install_bypass, list_layers
from autodiffusion_opt.sampling.layers.example_inputs import make_inputs
from autodiffusion_opt.sampling.layers.meta_copy import on_meta

SETS = 4  # of removed layers

SDXL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
DIT_XL = {"num_layers": 28, "sample_size": 32, "num_attention_heads": 16, "attention_head_dim": 72}
DIT_XL |= {"in_channels": 4, "out_channels": 8}
SD3_MEDIUM = {"sample_size": 128, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
SD3_MEDIUM |= {"pos_embed_max_size": 192}
SD35_MEDIUM = {"sample_size": 128, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
SD35_MEDIUM |= {"pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"}

MODELS: dict[str, Callable[[], Any]] = {
    "DiT-XL": lambda: diffusers.DiTTransformer2DModel(**DIT_XL),
    "SD3 medium": lambda: diffusers.SD3Transformer2DModel(**SD3_MEDIUM),
    "SD 3.5 medium": lambda: diffusers.SD3Transformer2DModel(**SD35_MEDIUM),
    "Flux": lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True),
    "SDXL": lambda: diffusers.UNet2DConditionModel(**SDXL),
    "SD 1.5": lambda: diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
    "ADM 64": lambda: adm(pixels=64, width=192, head=64),
}
QUICK = ("DiT-XL", "SD3 medium")


@dataclass
class Counting:
    """A backend that compiles nothing and counts the graphs that it is given."""

    graphs: int = 0

    def __call__(self, graph: Any, _: Any) -> Any:
        """The graph as it is."""
        self.graphs += 1
        return graph.forward


@torch.inference_mode()
def count(make: Callable[[], Any]) -> dict[str, int]:
    """Layers and graphs of a model."""
    torch._dynamo.reset()  # graphs lie in the code of the layers' classes
    with torch.device("meta"):
        denoiser = make().eval().to("meta")
    layers, inputs, backend = list_layers(denoiser), on_meta(make_inputs(denoiser), denoiser), Counting()
    compile_layers(SimpleNamespace(unet=denoiser), backend)
    denoiser(**inputs)
    whole, draws, now = backend.graphs, random.Random(0), [0]
    sets = [draws.sample(range(len(layers)), draws.randint(1, len(layers))) for _ in range(SETS)]
    with install_bypass(denoiser, sets, lambda: now[0]):
        for now[0] in range(SETS):
            denoiser(**inputs)
    return {"layers": len(layers), "graphs": whole, "graphs_with_removed": backend.graphs}


def main() -> None:
    """Count and print."""
    options = parser(__doc__).parse_args()
    diffusers.utils.logging.set_verbosity_error()  # of positions that it casts
    torch.set_num_threads(options.threads)
    rows = {}
    for model in QUICK if options.quick else MODELS:
        rows[model] = count(MODELS[model])
        say(f"{model}: {rows[model]['graphs']} graphs of {rows[model]['layers']} layers")
    print(json.dumps({"benchmark": "compiled_graphs", "models": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
