"""A backend of torch.compile that compiles nothing, and counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from autodiffusion_opt import compile_layers
from autodiffusion_opt.sampling.layers.kinds import find_blocks

# Of each file of tests that compile.
MARKS = [
    pytest.mark.usefixtures("nothing_compiled"),
    # diffusers' own: set_timesteps with NumPy 2, and Flux's positions.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning"),
]


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
