"""``torch.compile`` of a denoiser's layers, each by itself, so that layer sets cost no compilation.

A bypass decides at every call whether a layer runs. In a denoiser that is compiled as a whole, this decision is
compiled as well, once for every step and every layer set. Here the layers are compiled and the decision stays outside
of them, in the hook that calls them or does not: what was compiled serves every candidate.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch.utils._pytree import tree_map

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.example_call import learn_layers
from autodiffusion_opt.sampling.layers.kinds import find_blocks, has_removable_kind

Backend = str | Callable[..., Any]

# Graphs that the forward of one class may have. Equal layers share one; the residual blocks of a large UNet need
# about 25. Of every micro batch and of each of inference_mode and no_grad they are compiled anew. torch's own limit
# is 8, after which it runs the others uncompiled; above 256 another limit of torch's holds.
MAX_GRAPHS = 256


def compile_layers(pipeline: Any, backend: Backend = "inductor", call: Mapping[str, Any] | None = None) -> Any:
    """Compile every layer of a pipeline's denoiser, each at its first call; what is between them runs as before.

    A denoiser without layers of a known kind or form is compiled as a whole: it takes time steps, no removed layers.

    Args:
        pipeline: without a candidate and without hooks on its layers; both may come after. Where no kind knows a layer
            of its denoiser, it is called to the point where the denoiser would run, to find them by their form.
        backend: as for ``torch.compile``.
        call: arguments of that call, beside a prompt.

    Returns:
        The same pipeline.

    Raises:
        UserError: for a denoiser whose layers have hooks or are compiled already; then nothing is changed.
    """
    denoiser = denoiser_of(pipeline)
    if not any(map(has_removable_kind, find_blocks(denoiser).values())):
        with contextlib.suppress(UserError):  # it has none
            learn_layers(pipeline, call)
    blocks = find_blocks(denoiser).values()
    if not blocks:
        denoiser.compile(backend=backend)
        return pipeline
    if any(block.forward != MethodType(type(block).forward, block) for block in blocks):
        raise UserError(
            f"the layers of {type(denoiser).__name__} must be as they were loaded, and have hooks or are compiled "
            "already: compile them once, before a candidate is applied and before other hooks are set"
        )
    forwards = {block_class: _compiled_forward(block_class, backend) for block_class in {type(b) for b in blocks}}
    for block in blocks:
        # A method, which deepcopy binds to the copy; a compiled ``block.forward`` would keep this block's weights.
        block.forward = MethodType(forwards[type(block)], block)
    return pipeline


def _compiled_forward(block_class: type[torch.nn.Module], backend: Backend) -> Callable[..., Any]:
    """The class's forward, compiled for each of its blocks that differs from the others."""
    # dynamic=False: a UNet calls one class at several sizes, and torch would make kernels for any size of it. The
    # sizes of a study do not change.
    compiled = torch.compile(block_class.forward, backend=backend, dynamic=False, **_limits())

    @functools.wraps(block_class.forward)
    def forward(block: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _in_format_of_input(compiled(block, *args, **kwargs), args, kwargs)

    return forward


def _limits() -> dict[str, Any]:
    """Arguments of ``torch.compile`` that allow :data:`MAX_GRAPHS`."""
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": MAX_GRAPHS}
    # Earlier versions of torch have one limit for the process.
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MAX_GRAPHS)
    return {}


def _in_format_of_input(output: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The output of a layer of a UNet, (N, C, H, W), in the memory format in which its input came.

    An attention block transposes, and hands on channels_last whatever it got. So the next layer's input would have
    strides that depend on whether the attention was removed, and that layer would be compiled for both.
    """
    given = next(leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, torch.Tensor))
    if given.ndim != 4:
        return output
    kind = torch.contiguous_format if given.is_contiguous() else torch.channels_last

    def formatted(leaf: Any) -> Any:
        return leaf.contiguous(memory_format=kind) if isinstance(leaf, torch.Tensor) and leaf.ndim == 4 else leaf

    return tree_map(formatted, output)
