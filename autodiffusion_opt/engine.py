"""Caches of serving engines, as frozen values: what a candidate may have in place of partial steps.

An engine's cache leaves blocks of a transformer out at some steps, by its own rule and with its own settings. Each kind
is canonical and has a JSON form, ``{"kind": "mag-cache", "skipped": [2, 4]}``. Nothing here imports an engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from autodiffusion_opt.errors import UserError, unknown_text
from autodiffusion_opt.text import quoted

# Thresholds are kept to so many decimals, so that one that was written and read again is the same.
DECIMALS = 6
# The greatest order of a Taylor series: diffusers divides differences by powers of the interval, and higher ones are
# noise.
MOST_ORDER = 3


@dataclass(frozen=True)
class Engine:
    """One engine's cache with its settings; the base of the kinds."""

    kind: ClassVar[str]

    def computed(self, steps: int) -> tuple[bool, ...] | None:
        """Of each of so many steps whether every block is run; None: the data decides."""
        raise NotImplementedError

    def blocks_left_out(self, blocks: int) -> range:
        """The indices of the blocks that are not run at a step that is not computed, of ``blocks``."""
        return range(blocks)

    def check(self, steps: int) -> None:
        """Raises UserError where a candidate of so many steps cannot have it."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values; :func:`engine_from_dict` gives an equal engine back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"kind": self.kind} | {
            name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
        }

    def __str__(self) -> str:
        given = ", ".join(f"{field.name} {_shown(getattr(self, field.name))}" for field in fields(self))
        return f"{self.kind} ({given})"


@dataclass(frozen=True)
class FirstBlockCache(Engine):
    """diffusers' ``FirstBlockCacheConfig``: the first block always runs; where what it adds changed by less than a
    share since the last computed step, the other blocks are left out, and what they added there is added again.

    Attributes:
        threshold: the share, of the mean absolute values.
    """

    kind: ClassVar[str] = "first-block-cache"
    threshold: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", _positive(self.threshold, "threshold"))

    def computed(self, steps: int) -> tuple[bool, ...] | None:
        """None: unknown before it is run."""
        return None

    def blocks_left_out(self, blocks: int) -> range:
        """All but the first."""
        return range(1, blocks)


@dataclass(frozen=True)
class MagCache(Engine):
    """diffusers' ``MagCacheConfig``: at some steps no block is run, and what all added at the last computed step is
    added again.

    Its threshold, its greatest number of steps in a row, its share of first steps and the ratios of magnitudes decide
    together, before anything is sampled, which steps these are. So they are what is kept here, and the ratios are made
    for them.

    Attributes:
        skipped: indices of the steps, from 0 at the noise, ascending; not 0.
    """

    kind: ClassVar[str] = "mag-cache"
    skipped: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "skipped", _steps(self.skipped, "skipped"))

    def computed(self, steps: int) -> tuple[bool, ...] | None:
        """All but ``skipped``."""
        return tuple(index not in self.skipped for index in range(steps))

    def check(self, steps: int) -> None:
        """``skipped`` must be of the steps."""
        _check_of_the_steps(self.skipped, steps, "skipped")


@dataclass(frozen=True)
class TaylorSeerCache(Engine):
    """diffusers' ``TaylorSeerCacheConfig`` on a transformer's last block: its output is predicted by a Taylor series in
    the number of steps (Liu et al., 2025, arXiv 2503.06923), and no block is run.

    Attributes:
        interval: every how many steps one is computed (``cache_interval``), 2 or more.
        warm_up: how many first steps are computed (``disable_cache_before_step``), 1 or more.
        order: of the series (``max_order``); 0: the last computed output.
    """

    kind: ClassVar[str] = "taylorseer-cache"
    interval: int
    warm_up: int
    order: int

    def __post_init__(self) -> None:
        _check_integer(self.interval, "interval", 2)
        _check_integer(self.warm_up, "warm_up", 1)
        _check_integer(self.order, "order", 0)
        if self.order > MOST_ORDER:
            raise UserError(f"an engine's order must be at most {MOST_ORDER}; got {self.order}")

    def computed(self, steps: int) -> tuple[bool, ...] | None:
        """diffusers' rule: the warm-up, then every ``interval``-th step, the first of them one step after it."""
        return tuple(index < self.warm_up or (index - self.warm_up - 1) % self.interval == 0 for index in range(steps))


@dataclass(frozen=True)
class CacheDiT(Engine):
    """cache-dit's ``DBCacheConfig``: the front blocks always run; where what they add changed by less than a share
    since the last computed step, the blocks between them and the back ones are left out, and what they added there is
    added again.

    Attributes:
        front: blocks that run at every step (``Fn_compute_blocks``), 1 or more.
        back: last blocks that run at every step (``Bn_compute_blocks``).
        threshold: the share, of the mean absolute values (``residual_diff_threshold``).
        warm_up: how many first steps are computed (``max_warmup_steps``), 1 or more.
        in_a_row: at how many steps in a row blocks may be left out (``max_continuous_cached_steps``), 1 or more.
    """

    kind: ClassVar[str] = "cache-dit"
    front: int
    back: int
    threshold: float
    warm_up: int
    in_a_row: int

    def __post_init__(self) -> None:
        _check_integer(self.front, "front", 1)
        _check_integer(self.back, "back", 0)
        object.__setattr__(self, "threshold", _positive(self.threshold, "threshold"))
        _check_integer(self.warm_up, "warm_up", 1)
        _check_integer(self.in_a_row, "in_a_row", 1)

    def computed(self, steps: int) -> tuple[bool, ...] | None:
        """All, where the warm-up has no fewer; else None: unknown before it is run."""
        return (True,) * steps if self.warm_up >= steps else None

    def blocks_left_out(self, blocks: int) -> range:
        """All but the front and the back ones."""
        return range(self.front, blocks - self.back)


@dataclass(frozen=True)
class CacheDiTMask(Engine):
    """cache-dit's ``DBCacheConfig`` with a static ``steps_computation_mask``: at some steps the blocks between the
    front and the back ones are left out, and what they added at the last computed step is added again, whatever the
    data.

    Attributes:
        front: blocks that run at every step (``Fn_compute_blocks``), 1 or more.
        back: last blocks that run at every step (``Bn_compute_blocks``).
        skipped: indices of the steps at which the mask is 0, from 0 at the noise, ascending; not 0.
    """

    kind: ClassVar[str] = "cache-dit-mask"
    front: int
    back: int
    skipped: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_integer(self.front, "front", 1)
        _check_integer(self.back, "back", 0)
        object.__setattr__(self, "skipped", _steps(self.skipped, "skipped"))

    def computed(self, steps: int) -> tuple[bool, ...] | None:
        """All but ``skipped``."""
        return tuple(index not in self.skipped for index in range(steps))

    def blocks_left_out(self, blocks: int) -> range:
        """All but the front and the back ones."""
        return range(self.front, blocks - self.back)

    def check(self, steps: int) -> None:
        """``skipped`` must be of the steps."""
        _check_of_the_steps(self.skipped, steps, "skipped")


KINDS: dict[str, type[Engine]] = {
    kind.kind: kind for kind in (FirstBlockCache, MagCache, TaylorSeerCache, CacheDiT, CacheDiTMask)
}


def engine_from_dict(values: object) -> Engine:
    """An engine from JSON values. Raises UserError, saying all that is wrong with its keys."""
    if not isinstance(values, Mapping):
        raise UserError(f"a candidate's engine must be an object with a kind; got {quoted(values)}")
    name = values.get("kind")
    if not isinstance(name, str) or name not in KINDS:
        raise UserError(unknown_text("an engine's kind", name, KINDS))
    kind = KINDS[name]
    wanted = [field.name for field in fields(kind)]
    errors = [
        unknown_text(f"a key of the engine {name}", key, wanted) for key in values if key not in ("kind", *wanted)
    ]
    errors += [f"the engine {name} must have {key}" for key in wanted if key not in values]
    if errors:
        raise UserError("; ".join(errors))
    return kind(**{key: _frozen(values[key]) for key in wanted})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "-" if not value else " ".join(map(str, value))
    return f"{value:g}"


def _positive(value: object, what: str) -> float:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and number > 0):
        raise UserError(f"an engine's {what} must be a number above 0; got {quoted(value)}")
    return round(number, DECIMALS)


def _check_integer(value: object, what: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"an engine's {what} must be an integer, {least} or more; got {quoted(value)}")


def _steps(values: object, what: str) -> tuple[int, ...]:
    if not isinstance(values, tuple):
        raise UserError(f"an engine's {what} must be a list of indices of steps; got {quoted(values)}")
    for value in values:
        _check_integer(value, f"{what} step", 1)
    return tuple(sorted(set(values)))


def _check_of_the_steps(values: tuple[int, ...], steps: int, what: str) -> None:
    outside = [value for value in values if value >= steps]
    if outside:
        raise UserError(f"an engine's {what} must be indices of the {steps} steps, 1 to {steps - 1}; got {outside}")
