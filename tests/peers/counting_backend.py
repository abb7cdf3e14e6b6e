"""A backend of torch.compile that compiles nothing, and counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from autodiffusion_opt import compile_layers
from autodiffusion_opt.sampling.layers.kinds import find_blocks


class Counting:
    """A backend that compiles nothing: counts the graphs that it was given, and how often one was run."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, graph: Any, _: Any) -> Any:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


def compiled(denoiser: Any, backend: Any) -> Any:
    """The denoiser itself, compiled as that of a pipeline."""
    compile_layers(SimpleNamespace(unet=denoiser), backend)
    return denoiser


def forwards(denoiser: Any) -> list[Any]:
    """What stands in place of each block's forward."""
    return [vars(block).get("forward") for block in find_blocks(denoiser).values()]
