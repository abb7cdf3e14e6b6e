"""Blocks of classes that no kind knows, found by their form: with its branches at zero, a block returns its inputs.

A block is tried by itself, its linear maps, convolutions and biases at zero and all else (norms, tables of scales and
gates, inputs) at random values. Each tensor that comes out must then be one that went in, bit for bit: that is what
the block's bypass returns. A block whose skip path computes something (a convolution, a scale) is not found so.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from autodiffusion_opt.sampling.layers.kinds import LayerKind, find_blocks, has_removable_kind, remember_kind

KIND = "transformer"
ATEN = torch.ops.aten
# Products, and where in their arguments the factors are: with one of these at zero, what is computed is zero, but for
# what is added to it (`addends`).
FACTORS: dict[Any, tuple[int, ...]] = {
    ATEN.mm.default: (0, 1),
    ATEN.bmm.default: (0, 1),
    ATEN.addmm.default: (1, 2),
    ATEN.baddbmm.default: (1, 2),
    ATEN.convolution.default: (0, 1),
    ATEN._scaled_dot_product_flash_attention_for_cpu.default: (2,),  # the values
}
ADDENDS: dict[Any, int] = {ATEN.addmm.default: 0, ATEN.baddbmm.default: 0, ATEN.convolution.default: 2}


@dataclass(frozen=True)
class Call:
    """One call of a block as it was seen: its arguments and what came out, tensors on any device."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass(frozen=True)
class ReturnsInputs:
    """A bypass: returns what the block returns, each tensor being one of its inputs.

    Attributes:
        structure: of the output.
        leaves: of the output, in order: (name of an argument, place among its tensors), or a constant.
    """

    structure: TreeSpec
    leaves: tuple[tuple[str, int] | None, ...]

    def __call__(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What ``module`` returns with its residual branches at zero."""
        given = _arguments(module, args, kwargs)
        values = [None if leaf is None else tree_flatten(given[leaf[0]])[0][leaf[1]] for leaf in self.leaves]
        return tree_unflatten(values, self.structure)


def find_by_form(denoiser: torch.nn.Module, bare_copy: torch.nn.Module, run: Callable[[], object]) -> None:
    """Make layers of the blocks of a denoiser that have the form, where no kind knows a layer of it.

    Args:
        denoiser: whose blocks become layers, and those of its copy.
        bare_copy: the same modules, without weights that take memory.
        run: a forward pass of the copy.
    """
    if any(has_removable_kind(block) for block in find_blocks(denoiser).values()):
        return
    calls = _calls(bare_copy, run)
    tried: dict[Any, ReturnsInputs | None] = {}
    passed: list[str] = []
    for path, block in _repeated(bare_copy):
        if path not in calls or any(path.startswith(f"{outer}.") for outer in passed):
            continue
        key = (type(block), _form((calls[path].args, calls[path].kwargs, calls[path].output)), _shapes(block))
        if key not in tried:
            tried[key] = returned_inputs(block, calls[path])
        bypass = tried[key]
        if bypass is not None:
            passed.append(path)
            for module in (block, denoiser.get_submodule(path)):
                remember_kind(module, LayerKind(KIND, bypass, lambda _: True))


def returned_inputs(block: torch.nn.Module, call: Call) -> ReturnsInputs | None:
    """Which of its inputs a block returns where its branches are zero; None where it returns anything else.

    The block itself is neither run nor changed: a copy on the CPU is, without the memory of its weights.
    """
    generator = torch.Generator().manual_seed(0)
    args, kwargs = tree_map(lambda leaf: _random_like(leaf, generator), (call.args, call.kwargs))
    leaves, structure = tree_flatten(call.output)
    if not _may_return_inputs(leaves, (args, kwargs)):
        return None
    zeroed = _without_branches(block, generator)
    try:
        with torch.no_grad(), ZeroProducts():
            output, same_structure = tree_flatten(zeroed(*args, **kwargs))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):  # not on random inputs, or not alone
        return None
    sources = {
        (name, place): leaf
        for name, value in _arguments(zeroed, args, kwargs).items()
        for place, leaf in enumerate(tree_flatten(value)[0])
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    }
    places = [_place(leaf, sources) for leaf in output]
    if same_structure != structure or () in places or not any(places):
        return None
    return ReturnsInputs(structure, tuple(place or None for place in places))


def _place(leaf: Any, sources: Mapping[tuple[str, int], torch.Tensor]) -> tuple[str, int] | tuple[()] | None:
    """The argument that a part of the output equals; None for None; () for anything else."""
    if leaf is None:
        return None
    if not isinstance(leaf, torch.Tensor):
        return ()
    equal = (key for key, source in sources.items() if source.shape == leaf.shape and torch.equal(source, leaf))
    return next(equal, ())


class ZeroProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch is partly untyped
    """Products with a factor of zeros are zeros, and not computed: a block at its real size costs what its sums do.

    Args:
        always: whatever the factors are. Then values mean nothing, and shapes are right.
    """

    def __init__(self, always: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._always = always

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation's result."""
        kwargs = kwargs or {}
        if func not in FACTORS or not (self._always or self._is_zero(func, args)):
            return func(*args, **kwargs)
        shapes = func(*tree_map(_on_meta, args), **tree_map(_on_meta, kwargs))
        return tree_map(_zeros_that_take_memory, shapes)

    def _is_zero(self, func: Any, args: Any) -> bool:
        added = args[ADDENDS[func]] if func in ADDENDS else None
        factors = [args[place] for place in FACTORS[func]]
        return any(map(_all_zero, factors)) and (added is None or _all_zero(added))


def zero_weights(module: torch.nn.Module) -> torch.nn.Module:
    """A module on the meta device becomes one on the CPU, its weights zeros without memory. In place."""
    for inner in module.modules():
        for name, value in inner._parameters.items():
            if value is not None:
                inner._parameters[name] = _parameter(_zeros(value))
        _replace_held(inner, _zeros)
    return module


def _without_branches(block: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """A copy on the CPU: linear maps, convolutions and biases are zeros without memory, all else is random."""
    copied = copy.deepcopy(block).eval()
    for inner in copied.modules():
        inner._forward_hooks.clear()
        inner._forward_pre_hooks.clear()
        for name, value in inner._parameters.items():
            if value is not None:
                is_map = "bias" in name or ("weight" in name and value.ndim >= 2)
                inner._parameters[name] = _parameter(_zeros(value) if is_map else _random_like(value, generator))
        _replace_held(inner, lambda value: _random_like(value, generator))
    return copied


def _replace_held(module: torch.nn.Module, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace the tensors on the meta device that a module holds beside its parameters, also in lists and tuples."""

    def made(leaf: Any) -> Any:
        return make(leaf) if isinstance(leaf, torch.Tensor) and leaf.is_meta else leaf

    for held in (module._buffers, vars(module)):
        for name, value in held.items():
            if isinstance(value, torch.Tensor | list | tuple):
                held[name] = tree_map(made, value)


def _calls(bare_copy: torch.nn.Module, run: Callable[[], object]) -> dict[str, Call]:
    """Path -> the first call of each repeated block in a run."""
    calls: dict[str, Call] = {}
    handles = []
    for path, block in _repeated(bare_copy):

        def see(_: Any, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            calls.setdefault(path, Call(args, kwargs, output))

        handles.append(block.register_forward_hook(see, with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _repeated(denoiser: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """(path, block) of every module with weights in a list or a sequence of modules, outer ones first."""
    for path, module in denoiser.named_modules():
        holder = denoiser.get_submodule(path.rpartition(".")[0]) if path else None
        listed = isinstance(holder, torch.nn.ModuleList | torch.nn.Sequential)
        if listed and not isinstance(module, torch.nn.ModuleList) and any(True for _ in module.parameters()):
            yield path, module


def _may_return_inputs(output: list[Any], given: Any) -> bool:
    shapes = {leaf.shape for leaf in tree_flatten(given)[0] if isinstance(leaf, torch.Tensor)}
    return any(isinstance(leaf, torch.Tensor) for leaf in output) and all(
        leaf.shape in shapes for leaf in output if isinstance(leaf, torch.Tensor)
    )


def _arguments(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments


def _random_like(value: Any, generator: torch.Generator) -> Any:
    """On the CPU: normal where it is of floating point or complex; integers and truth values are ones."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_floating_point() or value.is_complex():
        dtype = value.dtype if value.is_complex() else torch.float32
        return torch.randn(value.shape, generator=generator, dtype=dtype)
    return torch.ones(value.shape, dtype=value.dtype)


def _parameter(value: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(value, requires_grad=False)


def _zeros(like: torch.Tensor) -> torch.Tensor:
    """Zeros of a shape, on the CPU, in the memory of one number."""
    return torch.zeros((), dtype=like.dtype).expand(like.shape)


def _zeros_that_take_memory(leaf: Any) -> Any:
    """Zeros that a block may write into."""
    return torch.zeros(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf


def _all_zero(value: torch.Tensor) -> bool:
    if all(stride == 0 for stride in value.stride()) and value.numel():
        return bool(value.flatten()[:1].eq(0).all()) if value.ndim == 0 else bool(value[(0,) * value.ndim] == 0)
    return not bool(value.any())


def _on_meta(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf


def _form(value: Any) -> str:
    return repr(tree_map(lambda leaf: tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else type(leaf), value))


def _shapes(block: torch.nn.Module) -> tuple[tuple[str, torch.Size], ...]:
    return tuple((name, weight.shape) for name, weight in block.named_parameters())
