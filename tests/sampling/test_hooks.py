"""Hooks: they run, in their order, and a module that they came off is the module that it was."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook

from autodiffusion_opt.sampling.hooks import attach, attach_all, before_forward, is_attached


class Double(torch.nn.Module):
    """y = 2 x"""

    def forward(self, x: float, plus: float = 0.0) -> float:
        return 2 * x + plus


class Pair(torch.nn.Module):
    """y = 4 x"""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Double(), Double()

    def forward(self, x: float) -> float:
        return self.second(self.first(x))


class Instead(ModelHook):
    """Adds a number to what the module gives, or gives that number alone."""

    def __init__(self, number: float, alone: bool = False) -> None:
        super().__init__()
        self.number, self.alone = number, alone

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.number if self.alone else self.fn_ref.original_forward(*args, **kwargs) + self.number


class Around(ModelHook):
    """Adds a number to what goes in, and a tenth of it to what comes out."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (args[0] + self.number,), kwargs

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        return output + self.number / 10


class Told(Instead):
    """Knows which module it is on."""

    module: torch.nn.Module | None = None

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        self.module = module
        return module

    def deinitalize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        assert self.module is module
        self.module = None
        return module


class Refuses(ModelHook):
    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        raise RuntimeError("not this module")


def state(module: torch.nn.Module) -> dict[str, Any]:
    return dict(vars(module))


def is_same(module: torch.nn.Module, before: dict[str, Any]) -> bool:
    """The same attributes, each the very same object."""
    after = vars(module)
    return list(after) == list(before) and all(after[name] is value for name, value in before.items())


HOOKS: dict[str, Callable[[], ModelHook]] = {
    "adds": lambda: Instead(100),
    "alone": lambda: Instead(7, alone=True),
    "around": lambda: Around(10),
}
# What Double gives for 3 under each of them.
GIVES = {"adds": 106, "alone": 7, "around": 2 * 13 + 1}


@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_runs_until_it_is_detached_and_leaves_no_trace(kind: str) -> None:
    module = Double()
    before = state(module)
    attachment = attach(module, HOOKS[kind](), "ours")
    assert module(3) == GIVES[kind]
    attachment.detach()
    attachment.detach()
    assert module(3) == 6
    assert is_same(module, before)


def test_a_hook_gets_the_keywords_of_the_call() -> None:
    module = Double()
    with attach(module, Instead(100), "ours"):
        assert module(3, plus=0.5) == 106.5
    assert module(3, plus=0.5) == 6.5


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_several_hooks_come_off_in_any_order_without_a_trace(order: tuple[int, ...]) -> None:
    """Each hook changes the result by a number of its own, so that the result says which are on."""
    module = Double()
    before = state(module)
    attachments = [
        attach(module, hook, f"hook {i}") for i, hook in enumerate((Instead(100), Around(10), Instead(1000)))
    ]
    changes = [100, 2 * 10 + 1, 1000]
    assert module(3) == 6 + sum(changes)
    left = set(range(3))
    for index in order:
        attachments[index].detach()
        left.remove(index)
        assert module(3) == 6 + sum(changes[i] for i in left)
    assert is_same(module, before)


def test_the_last_hook_attached_is_the_outermost() -> None:
    module = Double()
    with attach(module, Around(10), "inner"), attach(module, Instead(7, alone=True), "outer"):
        assert module(3) == 7  # the inner one is not run
    with attach(module, Instead(7, alone=True), "inner"), attach(module, Around(10), "outer"):
        assert module(3) == 7 + 1


def test_a_name_is_given_once_at_a_time() -> None:
    module, beside = Double(), Double()
    assert not is_attached(module, "ours")
    with attach(module, Instead(100), "ours"):
        assert is_attached(module, "ours")
        assert not is_attached(module, "ours too")
        assert not is_attached(beside, "ours")
        with pytest.raises(ValueError, match="Double has a hook named 'ours' already"):
            attach(module, Instead(1000), "ours")
        assert module(3) == 106
    assert not is_attached(module, "ours")
    with attach(module, Instead(1000), "ours"):
        assert module(3) == 1006


def test_detaching_again_does_not_touch_what_came_later() -> None:
    module = Double()
    first = attach(module, Instead(100), "ours")
    first.detach()
    with attach(module, Instead(1000), "ours"):
        first.detach()
        assert module(3) == 1006
        assert is_attached(module, "ours")


def test_a_hook_is_told_of_its_module_and_of_the_end() -> None:
    module, hook = Double(), Told(100)
    with attach(module, hook, "ours") as attachment:
        assert hook.module is attachment.module is module
    assert hook.module is None


def test_a_hook_that_refuses_the_module_leaves_no_trace() -> None:
    module = Double()
    before = state(module)
    with pytest.raises(RuntimeError, match="not this module"):
        attach(module, Refuses(), "ours")
    assert is_same(module, before)
    assert not is_attached(module, "ours")


# --- beside hooks of others ---------------------------------------------------------------------------------


def diffusers_hook(module: torch.nn.Module, hook: ModelHook, name: str = "diffusers") -> HookRegistry:
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.register_hook(hook, name)
    return registry


@pytest.mark.parametrize("later", HOOKS)
@pytest.mark.parametrize("kind", ["adds", "around"])
def test_a_hook_of_diffusers_that_came_later_goes_on(later: str, kind: str) -> None:
    module = Double()
    attachment = attach(module, HOOKS[kind](), "ours")
    diffusers_hook(module, HOOKS[later]())
    attachment.detach()
    assert module(3) == GIVES[later]
    assert list(module._diffusers_hook.hooks) == ["diffusers"]


def test_diffusers_own_removal_would_break_it() -> None:
    """The test above can fail: this is why the chain is joined here and not by ``remove_hook``."""
    module = Double()
    registry = diffusers_hook(module, Instead(100), "inner")
    diffusers_hook(module, Instead(1000), "outer")
    registry.remove_hook("inner")
    assert module(3) != 1006


@pytest.mark.parametrize("earlier", HOOKS)
def test_a_hook_of_diffusers_that_was_there_stays_as_it_was(earlier: str) -> None:
    module = Double()
    registry = diffusers_hook(module, HOOKS[earlier]())
    before = state(module)
    with attach(module, Instead(100), "ours"):
        assert module(3) == GIVES[earlier] + 100
    assert module(3) == GIVES[earlier]
    assert is_same(module, before)
    assert (list(registry.hooks), registry._hook_order, len(registry._fn_refs)) == (["diffusers"], ["diffusers"], 1)


def test_an_empty_registry_that_was_there_stays() -> None:
    """diffusers makes one on every denoiser that it calls in a cache context."""
    module = Double()
    HookRegistry.check_if_exists_or_initialize(module)
    before = state(module)
    attach(module, Instead(100), "ours").detach()
    assert is_same(module, before)


def test_what_a_removed_hook_of_diffusers_left_behind_stays() -> None:
    """An empty registry and the class's own forward in ``vars(module)``: not ours to tidy up."""
    module = Double()
    diffusers_hook(module, Instead(100)).remove_hook("diffusers")
    before = state(module)
    assert {"forward", "_diffusers_hook"} <= set(before)
    attach(module, Instead(100), "ours").detach()
    assert is_same(module, before)


def test_a_hook_that_diffusers_removed_is_detached_without_a_trace() -> None:
    module = Double()
    before = state(module)
    attachment = attach(module, Instead(100), "ours")
    (name,) = module._diffusers_hook.hooks
    module._diffusers_hook.remove_hook(name)
    attachment.detach()
    assert is_same(module, before)
    assert not is_attached(module, "ours")


@pytest.mark.parametrize("kind", HOOKS)
def test_an_earlier_hook_that_diffusers_removed_does_not_come_back(kind: str) -> None:
    module = Double()
    registry = diffusers_hook(module, Around(1000))
    attachment = attach(module, HOOKS[kind](), "ours")
    registry.remove_hook("diffusers")
    attachment.detach()
    assert module(3) == 6


@pytest.mark.parametrize("kind", HOOKS)
def test_a_forward_that_others_wrapped_stays_and_the_hook_is_silent(kind: str) -> None:
    module = Double()
    attachment = attach(module, HOOKS[kind](), "ours")
    inner = module.forward
    module.forward = wrapper = lambda *args, **kwargs: inner(*args, **kwargs) + 0.5  # as accelerate does
    attachment.detach()
    assert module.forward is wrapper
    assert module(3) == 6.5
    assert not is_attached(module, "ours")
    with attach(module, HOOKS[kind](), "ours"):  # the name is free again
        assert module(3) != 6.5
    assert module(3) == 6.5


def test_a_forward_wrapped_between_two_hooks_stays() -> None:
    module = Double()
    attachment = attach(module, Instead(100), "ours")
    inner = module.forward
    module.forward = lambda *args, **kwargs: inner(*args, **kwargs) + 0.5
    diffusers_hook(module, Around(10))
    attachment.detach()
    assert module(3) == 2 * 13 + 0.5 + 1


def test_a_hook_keeps_no_module_alive() -> None:
    module = Double()
    gone = weakref.ref(module)
    attach(module, Instead(100), "ours")
    del module
    gc.collect()
    assert gone() is None


# --- several modules ----------------------------------------------------------------------------------------


def test_hooks_of_a_network_come_off_together() -> None:
    network = Pair()
    before = [state(module) for module in network.modules()]
    attachments = attach_all(network, {"first": Instead(100), "second": Instead(0.5)}, "ours")
    assert network(3) == 2 * 106 + 0.5
    assert is_attached(network.first, "ours")
    attachments.detach()
    attachments.detach()
    assert network(3) == 12
    assert all(is_same(module, kept) for module, kept in zip(network.modules(), before, strict=True))


def test_hooks_of_a_network_are_all_there_or_none() -> None:
    network = Pair()
    before = [state(module) for module in network.modules()]
    with pytest.raises(RuntimeError, match="not this module"):
        attach_all(network, {"first": Instead(100), "second": Refuses()}, "ours")
    with pytest.raises(AttributeError, match="third"):
        attach_all(network, {"first": Instead(100), "third": Instead(100)}, "ours")
    assert all(is_same(module, kept) for module, kept in zip(network.modules(), before, strict=True))
    assert network(3) == 12


def test_diffusers_list_of_the_hooks_below_a_network_is_made_anew() -> None:
    network = Pair()
    registry = HookRegistry.check_if_exists_or_initialize(network)
    assert registry._get_child_registries() == []
    attachments = attach_all(network, {"first": Instead(100)}, "ours")
    assert registry._get_child_registries() == [network.first._diffusers_hook]
    attachments.detach()
    assert registry._get_child_registries() == []


# --- functions before a module ------------------------------------------------------------------------------


def test_a_function_before_a_module_sees_and_may_change_the_call() -> None:
    module, seen = Double(), []

    def see(called: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((called, args, dict(kwargs)))

    def change(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (args[0] + 1,), kwargs | {"plus": 0.25}

    with before_forward(module, see):
        assert module(3, plus=0.5) == 6.5
    assert seen == [(module, (3,), {"plus": 0.5})]
    with before_forward(module, change), before_forward(module, see):
        assert module(3) == 8.25
    assert seen[1:] == [(module, (4,), {"plus": 0.25})]
    assert module(3) == 6


def test_functions_run_in_their_order_unless_prepended() -> None:
    module, order = Double(), []
    with (
        before_forward(module, lambda *_: order.append("first")),
        before_forward(module, lambda *_: order.append("second")),
        before_forward(module, lambda *_: order.append("prepended"), prepend=True),
    ):
        module(3)
    assert order == ["prepended", "first", "second"]


def test_a_function_comes_off_after_an_exception_without_a_trace() -> None:
    module = Double()
    before = state(module)
    with pytest.raises(KeyboardInterrupt), before_forward(module, lambda *_: None):
        raise KeyboardInterrupt
    assert is_same(module, before)
    assert not module._forward_pre_hooks
    assert not module._forward_pre_hooks_with_kwargs
