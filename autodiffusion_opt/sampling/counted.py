"""What an engine's cache really computes, measured: its decisions may depend on the data."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.layers.listing import unwrap


class Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts FLOPs by torch's own formulas while it is entered.

    Torch's FlopCounterMode follows modules by name as well, which has no end in the blocks of an engine that hold
    the denoiser which holds them.

    Attributes:
        total: so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs an operator, in its parts where there is no formula for it, and counts it."""
        given = dict(kwargs or {})
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:
                output = func.decompose(*args, **given)
            if output is not NotImplemented:
                return output
        output = func(*args, **given)
        self.total += 0 if formula is None else formula(*args, **given, out_val=output)
        return output


def networks_run(sampler: ImageSampler, candidate: Candidate, seed: int) -> float:
    """FLOPs of the denoiser in whole networks: of all its calls over those of the first step's, which are whole.

    Images of one micro-batch are made, the first of the search, since a cache decides for all images of a call at once.

    Args:
        sampler: the pipeline and how it is called.
        candidate: what it samples with.
        seed: of the noise.
    """
    denoiser, flops = unwrap(denoiser_of(sampler.pipeline)), list[int]()
    with contextlib.ExitStack() as counting, contextlib.ExitStack() as hooks:

        def begin(*_: Any) -> None:
            counter = counting.enter_context(Flops())
            counting.callback(lambda: flops.append(counter.total))

        # Hooks, since an engine puts a forward of its own on the denoiser.
        hooks.callback(denoiser.register_forward_pre_hook(begin).remove)
        hooks.callback(denoiser.register_forward_hook(lambda *_: counting.pop_all().close()).remove)
        for _ in sampler.images(candidate, range(sampler.micro_batch * sampler.frames), seed):
            pass
    calls = len(flops) // len(candidate.steps)  # of a step: guidance may be a call of its own
    return sum(flops) / sum(flops[:calls])
