"""Partial steps: what lies deeper than a branch is not computed, and taken from the full step before.

Hooks on the parts of a denoiser (:mod:`~autodiffusion_opt.sampling.branches`) keep features in full steps and leave
parts out in partial ones. What is kept belongs to one generation of images, and to the call of the denoiser within a
step: a pipeline that calls it for the prompt and again without, or a solver that calls it twice, gets for each call
what the same call of the full step kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.hooks import ModelHook

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.branches import Branches, Group, branches_of
from autodiffusion_opt.sampling.hooks import attach_all, before_forward
from autodiffusion_opt.sampling.layers.bypass import refuse_cache, refuse_compiled, refuse_group_offload
from autodiffusion_opt.sampling.layers.kinds import kind_of
from autodiffusion_opt.text import listed

NAME = "autodiffusion_opt.cache"
# Arguments of a UNet that add to features at every depth (ControlNet, T2I-Adapter).
_RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)


class StepCache:
    """What one generation of images has kept, and what the present call of the denoiser does.

    Args:
        branches: of the denoiser.
        at_steps: the branch of each step, None for a full one.
        step: the sampler's step; None: the call is none of the pipeline's.
        generation: another number: other images are being made.
        may_copy: whether what goes from one block of a transformer to the next may be a copy of what left the first.

    Attributes:
        branch: of the present call; None: it runs everything.
    """

    def __init__(
        self,
        branches: Branches,
        at_steps: Sequence[int | None],
        step: Callable[[], int | None],
        generation: Callable[[], int],
        may_copy: bool,
    ) -> None:
        self.branches, self._may_copy = branches, may_copy
        self.branch: int | None = None
        self._at_steps = tuple(at_steps)
        self._wanted = tuple(_wanted_after(self._at_steps, index) for index in range(len(self._at_steps)))
        self._step, self._generation = step, generation
        self._now: tuple[int, int] | None = None  # generation and step of the call before
        self._call = 0
        self._kept: dict[int, dict[int, Any]] = {}  # call within the step -> branch -> features
        self._outputs: dict[int, Any] = {}  # index of a part -> its output, in the present call
        self._keeps: frozenset[int] = frozenset()  # the branches that the present call keeps features of
        self._left: Any = None  # what left the block before, in a call that keeps features

    def begin(self) -> None:
        """A call of the denoiser begins."""
        self._outputs.clear()
        self.branch, self._keeps, self._left = None, frozenset(), None
        step = self._step()
        if step is None:
            return
        if self._now is None or self._now[0] != self._generation():
            self.forget()
        self._call = self._call + 1 if self._now == (self._generation(), step) else 0
        self._now = self._generation(), step
        branch = self._at_steps[step]
        # From image to image the first step that is run may be a partial one: it is run in full.
        if branch is not None and self._kept_for(branch) is not None:
            self.branch = branch
            return
        self._keeps = self._wanted[step]
        if self._call == 0:
            self._kept.clear()
        self._kept[self._call] = {}

    def forget(self) -> None:
        """Whatever was kept is gone."""
        self._kept.clear()
        self._outputs.clear()
        self._now, self._call, self.branch, self._keeps, self._left = None, 0, None, frozenset(), None

    @property
    def is_at_work(self) -> bool:
        """Whether the present call keeps features, or takes some."""
        return self.branch is not None or bool(self._keeps)

    def leaves_out(self, part: int) -> bool:
        """Whether the present call does not run a part."""
        if self.branch is None:
            return False
        last, entry = self.branches.cuts[self.branch]
        return last < part < entry or (part == entry and not self.branches.is_unet)

    def saw(self, part: int, output: Any) -> None:
        """The output of a part, where a gap begins after it; of a transformer, what enters the gap."""
        watched = self._keeps if self.branch is None else (self.branch,)
        if any(self.branches.cuts[branch][0] == part for branch in watched):
            self._outputs[part] = output

    @property
    def flow(self) -> torch.Tensor:
        """In a partial step of a UNet: the output before the gap, which stands for all that is left out."""
        assert self.branch is not None
        tensor: torch.Tensor = self._outputs[self.branches.cuts[self.branch][0]]
        return tensor

    def entering(self, part: int, features: torch.Tensor) -> torch.Tensor:
        """What a residual block of the up path gets: (N, deeper + skip, H, W), the deeper channels first.

        In a full step the deeper ones are kept, where they are wanted; in a partial one they are those that were kept.
        """
        cuts = self.branches.cuts
        if self.branch is None:
            for branch in self._keeps:
                if cuts[branch][1] == part:
                    skip = self._outputs[cuts[branch][0]]
                    self._kept[self._call][branch] = features[:, : features.shape[1] - skip.shape[1]].clone()
        elif cuts[self.branch][1] == part:
            # The skip as it comes, behind the stand-in.
            return torch.cat([self._kept_for(self.branch), features[:, -self.flow.shape[1] :]], dim=1)
        return features

    def enters(self, part: int, inputs: Any) -> None:
        """What enters a block of a transformer, in the form of its output.

        Raises UserError where something else than the blocks changes features in a gap for which this call keeps them:
        what it adds would be taken for what the blocks added.
        """
        self.saw(part - 1, inputs)
        is_in_a_gap = any(self.branches.cuts[branch][0] + 1 < part for branch in self._keeps)
        if is_in_a_gap and not _same(inputs, self._left, self._may_copy):
            before, after = self.branches.parts[part - 1], self.branches.parts[part]
            raise UserError(
                f"this denoiser changes features between its blocks {before} and {after}, so that what the blocks "
                "added cannot be told for partial steps: use a candidate whose steps are all full"
            )

    def leaves(self, output: Any) -> None:
        """What leaves a block of a transformer that is run."""
        self._left = output

    def ending(self, output: Any) -> Any:
        """The output of a transformer's last block.

        In a full step it is kept with the output at the branch. In a partial one, where nothing was added since the
        branch, it is what was kept and the change at the branch since: the kept output itself where there is none.
        """
        if self.branch is not None:
            at_branch, at_end = self._kept_for(self.branch)
            return _each(torch.add, at_end, _each(torch.sub, output, at_branch))
        for branch in self._keeps:
            self._kept[self._call][branch] = self._outputs[self.branches.cuts[branch][0]], output
        return output

    def _kept_for(self, branch: int) -> Any:
        """Of the same call of the full step before; of its last where it made fewer. None where nothing was kept."""
        if not self._kept:
            return None
        return self._kept[min(self._call, max(self._kept))].get(branch)


class InstalledCache:
    """Partial steps as installed on a denoiser."""

    def __init__(self, state: StepCache | None = None) -> None:
        self._state = state
        self._installed = contextlib.ExitStack()

    def forget(self) -> None:
        """Whatever was kept is gone: a generation begins, or has ended."""
        if self._state is not None:
            self._state.forget()

    def remove(self) -> None:
        """Leave the denoiser as it was found. A second call does nothing."""
        self.forget()
        self._installed.close()


def install_cache(
    denoiser: torch.nn.Module,
    at_steps: Sequence[int | None],
    step: Callable[[], int | None],
    generation: Callable[[], int],
    *,
    name: str = NAME,
    may_copy: bool = True,
) -> InstalledCache:
    """Run step i at the branch ``at_steps[i]``, in full where that is None. What is left out is not computed.

    Args:
        denoiser: a UNet of diffusers, or a transformer whose blocks are of a known kind.
        at_steps: a branch or None for each step.
        step: the pipeline's step, read at every call of the denoiser; None: the call is none of the pipeline's.
        generation: a number that is another for other images.
        name: of the hooks.
        may_copy: whether what goes from one block of a transformer to the next may be a copy of what left the first,
            as with a device map; not where values mean nothing.

    Returns:
        The handle that takes it out again. Without partial steps nothing is installed.

    Raises:
        UserError: for a denoiser without branches or without these, one that is compiled as a whole, has group
            offloading, one of diffusers' caches, or FreeU; and, from its forward, with a ControlNet or an adapter, or
            where it changes features between the blocks of a gap.
    """
    wanted = {branch for branch in at_steps if branch is not None}
    if not wanted:
        return InstalledCache()
    for refuse in (refuse_compiled, refuse_group_offload, refuse_cache, _refuse_freeu):
        refuse(denoiser)
    branches = branches_of(denoiser)
    wrong = sorted(branch for branch in wanted if branch >= len(branches.cuts))
    if wrong:
        raise UserError(
            f"{type(denoiser).__name__} has {len(branches.cuts)} branches, 0 to {len(branches.cuts) - 1}; got "
            f"{listed(map(str, wrong))}"
        )
    state = StepCache(branches, at_steps, step, generation, may_copy)
    installed = InstalledCache(state)
    hooks: dict[str, ModelHook] = {path: _PartHook(state, index) for index, path in enumerate(branches.parts)}
    hooks |= {group.path: _GroupHook(state, group) for group in branches.groups}

    def begin(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [key for key in _RESIDUALS if kwargs.get(key) is not None]
        if given and step() is not None:
            raise UserError(
                f"a candidate with partial steps cannot be run with a ControlNet or an adapter, which adds {given[0]} "
                "to features that a partial step does not compute: use a candidate whose steps are all full"
            )
        state.begin()

    installed._installed.enter_context(before_forward(denoiser, begin))
    installed._installed.callback(attach_all(denoiser, hooks, name).detach)
    return installed


class _PartHook(ModelHook):  # type: ignore[misc]  # diffusers is untyped
    """Runs a part, or leaves it out."""

    def __init__(self, state: StepCache, index: int) -> None:
        super().__init__()
        self._state, self._index = state, index
        self._is_last = index == len(state.branches.parts) - 1

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The part's own forward, or what stands for its output."""
        run = self._of_unet if self._state.branches.is_unet else self._of_transformer
        return run(module, args, kwargs)

    def _of_unet(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = self._state
        if state.leaves_out(self._index):
            return _in_form(module, state.flow, kwargs)
        if args and isinstance(args[0], torch.Tensor):
            args = (state.entering(self._index, args[0]), *args[1:])
        output = self.fn_ref.original_forward(*args, **kwargs)
        state.saw(self._index, output[0] if isinstance(output, tuple) else output)
        return output

    def _of_transformer(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state, kind = self._state, kind_of(module)
        assert kind is not None  # the parts of a transformer are layers
        if not state.is_at_work:
            return self.fn_ref.original_forward(*args, **kwargs)
        output = kind.bypass(module, *args, **kwargs)  # a block without what it adds: its inputs
        state.enters(self._index, output)
        if not state.leaves_out(self._index):
            output = self.fn_ref.original_forward(*args, **kwargs)
            state.leaves(output)
        return state.ending(output) if self._is_last else output


class _GroupHook(ModelHook):  # type: ignore[misc]  # diffusers is untyped
    """Leaves a UNet's block out where each of its parts is: it would concatenate what is not there."""

    def __init__(self, state: StepCache, group: Group) -> None:
        super().__init__()
        self._state, self._group = state, group

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The block's own forward, or stand-ins for its outputs."""
        state, group = self._state, self._group
        if not all(map(state.leaves_out, range(group.start, group.stop))):
            return self.fn_ref.original_forward(*args, **kwargs)
        return (state.flow, (state.flow,) * group.outputs) if group.outputs else state.flow


def _in_form(module: torch.nn.Module, tensor: torch.Tensor, kwargs: dict[str, Any]) -> Any:
    """A stand-in in the form of a part's output: UNets call a ``Transformer2DModel`` with ``return_dict=False``."""
    return (tensor,) if kwargs.get("return_dict") is False else tensor


def _each(function: Callable[..., torch.Tensor], outputs: Any, others: Any) -> Any:
    """A function of each stream of a block's output and the same of another; a stream that ends there stays None."""
    if not isinstance(outputs, tuple):
        return function(outputs, others)
    pairs = zip(outputs, others, strict=True)
    return tuple(None if output is None or other is None else function(output, other) for output, other in pairs)


def _same(outputs: Any, others: Any, may_copy: bool) -> bool:
    """Whether two blocks' outputs are the same tensors, or equal ones; a stream that ends is the same as any."""
    if isinstance(outputs, tuple):
        pairs = zip(outputs, others, strict=True) if isinstance(others, tuple) and len(outputs) == len(others) else None
        return pairs is not None and all(_same(output, other, may_copy) for output, other in pairs)
    if outputs is others or outputs is None or others is None:
        return True
    if not may_copy or outputs.shape != others.shape:
        return False
    return torch.equal(outputs, others.to(outputs.device))


def _wanted_after(at_steps: Sequence[int | None], index: int) -> frozenset[int]:
    """The branches of the partial steps between a step and the next full one; the step's own too if it is partial."""
    wanted: set[int] = set()
    for number, branch in enumerate(at_steps[index:]):
        if branch is not None:
            wanted.add(branch)
        elif number:
            break
    return frozenset(wanted)


def _refuse_freeu(denoiser: torch.nn.Module) -> None:
    if any(getattr(block, "s1", None) is not None for block in getattr(denoiser, "up_blocks", ())):
        raise UserError(
            f"{type(denoiser).__name__} has FreeU (enable_freeu), which scales the features of the up path: call "
            "disable_freeu() before, or apply a candidate whose steps are all full"
        )
