"""Whatever attaches to a network's modules, and comes off without a trace: the one place that knows how.

Two ways, and when to take which:

- :func:`attach` puts a hook of diffusers (``ModelHook``) on a module. Such a hook can run something else than the
  module (``new_forward``), and lives in the chain that diffusers' own hooks (offloading, caches) are links of.
- :func:`before_forward` runs a function before the module, which sees its arguments and may return others.

"Without a trace" means that ``vars(module)`` holds what it held before. diffusers' own ``remove_hook`` leaves the
registry and a bound ``forward`` behind, and breaks a later hook that has a ``new_forward`` of its own.

A hook that somebody else's code has wrapped since (accelerate replaces ``module.forward``) cannot be taken out without
taking that code out too: it stays in the chain, silenced, and is as good as gone. While a hook with a ``new_forward``
is on, let no one remove a diffusers hook that was there before it: diffusers then cuts it out of the chain as well.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook

# What diffusers sets in ``vars(module)`` for the first hook of a module.
_SET_BY_HOOKS = frozenset({"forward", "_diffusers_hook"})
# A forward pre-hook of torch: (module, args, kwargs) -> None, or other (args, kwargs).
BeforeForward = Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any]], Any]


@dataclass
class _Place:
    """A module with hooks of ours: which of :data:`_SET_BY_HOOKS` it had before the first, and the hooks' names."""

    had: frozenset[str]
    names: set[str] = field(default_factory=set)


# Beside the modules, not in them; names only, as a hook that knows its module would keep it alive.
_PLACES: weakref.WeakKeyDictionary[torch.nn.Module, _Place] = weakref.WeakKeyDictionary()


class Attachment:
    """One hook on one module, until :meth:`detach`; made by :func:`attach`. Also a context manager."""

    def __init__(self, module: torch.nn.Module, hook: ModelHook, name: str) -> None:
        self.module, self.hook, self.name = module, hook, name
        self._key = f"{name}.{id(hook)}"  # a silenced hook of the same name may still be in the registry
        place = _PLACES.setdefault(module, _Place(frozenset(vars(module).keys() & _SET_BY_HOOKS)))
        if name in place.names:
            raise ValueError(f"{type(module).__name__} has a hook named {name!r} already: detach that one first")
        place.names.add(name)
        try:
            self._registry = HookRegistry.check_if_exists_or_initialize(module)
            self._registry.register_hook(hook, self._key)
        except BaseException:  # a hook that refuses the module
            self._leave()
            raise
        self._link = vars(module)["forward"]  # what whoever comes next in the chain calls
        self._runs = hook.fn_ref.forward if hasattr(hook, "new_forward") else None
        self._is_on = True

    def detach(self) -> None:
        """Take the hook off the module. A second call does nothing."""
        if not self._is_on:
            return
        self._is_on = False
        if self._key in self._registry.hooks:  # else somebody removed it by diffusers' own means
            self._unlink()
            self.hook.deinitalize_hook(self.module)  # diffusers' spelling
        self._leave()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _unlink(self) -> None:
        """Join what is inside and what is outside of this hook in the chain of the module's forwards."""
        registry, reference = self._registry, self.hook.fn_ref
        # With a new_forward: what that goes on with; without one, or cut out by diffusers: ``forward``.
        inner = reference.original_forward if reference.forward is self._runs else reference.forward
        index = registry._hook_order.index(self._key)
        outer, slot = self._called_from(index)
        if outer.get(slot) is self._link:
            outer[slot] = inner
            del registry.hooks[self._key], registry._hook_order[index], registry._fn_refs[index]
        else:  # wrapped by others: let all go through
            reference.forward = inner
            reference.pre_forward = lambda module, *args, **kwargs: (args, kwargs)
            reference.post_forward = lambda module, output: output

    def _called_from(self, index: int) -> tuple[dict[str, Any], str]:
        """The attributes, and the name of the one among them, that our link of the chain is called from."""
        registry = self._registry
        if index == len(registry._hook_order) - 1:
            return vars(self.module), "forward"
        outer = registry._fn_refs[index + 1]
        return vars(outer), "forward" if outer.original_forward is None else "original_forward"

    def _leave(self) -> None:
        """After our last hook: what was set for the first goes, unless others have come to need it."""
        place, attributes = _PLACES[self.module], vars(self.module)
        place.names.discard(self.name)
        if place.names:
            return
        del _PLACES[self.module]
        plain = MethodType(type(self.module).forward, self.module)  # what the class gives anyway
        if "forward" not in place.had and attributes.get("forward") == plain:
            del attributes["forward"]
        registry = attributes.get("_diffusers_hook")
        if "_diffusers_hook" not in place.had and registry is not None and not registry.hooks:
            del attributes["_diffusers_hook"]


def attach(module: torch.nn.Module, hook: ModelHook, name: str) -> Attachment:
    """Put a hook of diffusers on a module, outermost of those that it has.

    Args:
        module: of any network.
        hook: of this module alone: diffusers keeps the chain in it (``hook.fn_ref``). Its ``new_forward(module, *args,
            **kwargs)``, where it has one, goes on with ``self.fn_ref.original_forward(*args, **kwargs)``.
        name: what it is for; a module has one hook of a name at a time.

    Raises:
        ValueError: for a name that the module has.
    """
    return Attachment(module, hook, name)


def is_attached(module: torch.nn.Module, name: str) -> bool:
    """Whether the module has a hook of that name."""
    place = _PLACES.get(module)
    return place is not None and name in place.names


class Attachments:
    """Hooks on several modules of one network, that come off together; made by :func:`attach_all`."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network
        self._attached = contextlib.ExitStack()

    def detach(self) -> None:
        """Take all of them off. A second call does nothing."""
        self._attached.close()
        _forget_children(self._network)


def attach_all(network: torch.nn.Module, hooks: Mapping[str, ModelHook], name: str) -> Attachments:
    """:func:`attach` for several modules of a network, all or none.

    Args:
        network: what the pipeline calls.
        hooks: path in the network (as of ``get_submodule``) -> its hook.
        name: of each of the hooks.
    """
    attachments = Attachments(network)
    try:
        for path, hook in hooks.items():
            attachments._attached.enter_context(attach(network.get_submodule(path), hook, name))
    except BaseException:  # some of the hooks alone must not stay
        attachments.detach()
        raise
    _forget_children(network)
    return attachments


def _forget_children(network: torch.nn.Module) -> None:
    """The network's own registry, where it has one, keeps a list of those below: make it look again."""
    registry = getattr(network, "_diffusers_hook", None)
    if registry is not None and hasattr(registry, "invalidate_child_registries_cache"):  # 0.38 has none
        registry.invalidate_child_registries_cache()


@contextlib.contextmanager
def before_forward(module: torch.nn.Module, function: BeforeForward, *, prepend: bool = False) -> Iterator[None]:
    """While it lasts, ``function(module, args, kwargs)`` runs before each call of the module.

    Args:
        module: of any network; hooks of torch run whenever the module is called, whatever its ``forward`` is then.
        function: returns None, or the (args, kwargs) that the module and the functions after this one get instead.
        prepend: run it before all that are there already.
    """
    handle = module.register_forward_pre_hook(function, prepend=prepend, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
