"""The candidate: one way to sample, as a frozen value.

A candidate is a tuple of steps (a time, the layers not run there, the whole network or a branch of it beside cached
features) and, where they are given, a guidance scale and an end time. It is canonical: two ways to write the same
candidate are one equal, hashable value. It knows no model and no optimizer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from autodiffusion_opt.engine import Engine, engine_from_dict
from autodiffusion_opt.errors import UserError, reason_of, unknown_text
from autodiffusion_opt.text import quoted

# Times are kept to this many decimals, so that a time that was written as text and read again is the same time.
TIME_DECIMALS = 6
# The version of the JSON form.
FORMAT = 1
# More steps than any model was trained with.
MOST_STEPS = 10_000
# More layers than any model has.
MOST_LAYERS = 10_000
# Mistakes that are told of one text.
MISTAKES = 10


@dataclass(frozen=True)
class Step:
    """One step of the sampler: the denoiser is called once, or twice by solvers that need it.

    Attributes:
        time: where in the model's own time steps, 0 (clean) .. T (noise); need not be an integer.
        removed: indices of the layers that are not run at this step, ascending.
        branch: None: a full step, which runs the network. Else a partial step: it runs the network down to this skip
            connection, or so many blocks of a transformer, 0 the cheapest, and takes what lies deeper from the full
            step before it.

    Raises:
        UserError: for a time that is negative or not finite, a layer index or a branch below 0, or more than 10,000
            layers.
    """

    time: float
    removed: tuple[int, ...] = ()
    branch: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "time", _canonical_time(self.time))
        object.__setattr__(self, "removed", _canonical_layers(self.removed))
        if self.branch is not None:
            _check_index(self.branch, "a step's branch")

    def to_dict(self) -> dict[str, Any]:
        """The shortest dict that says the same: defaults are left out."""
        values: dict[str, Any] = {"time": _shortest(self.time)}
        if self.removed:
            values["removed"] = list(self.removed)
        if self.branch is not None:
            values["branch"] = self.branch
        return values

    def __str__(self) -> str:
        """``690-3L``: at time 690 with 3 layers removed; ``690p0``: a partial step at branch 0."""
        layers = f"-{len(self.removed)}L" if self.removed else ""
        return f"{self.time:g}{layers}{'' if self.branch is None else f'p{self.branch}'}"


@dataclass(frozen=True)
class Candidate:
    """One way to sample.

    Attributes:
        steps: from noise to image.
        guidance_scale: of every call of the pipeline; None: what the call says.
        end_time: where the last step stops, below its own time: the image is taken as it is there, with the noise of
            that time left in it. None: where the scheduler ends by itself.
        engine: the cache of a serving engine, which leaves blocks out by its own rule; None: no such cache.

    Raises:
        UserError: for no steps or more than 10,000, two steps at one time, a partial step before any full step, a
            guidance scale that is not a finite number, an end time that is not below the last step's, or an engine
            beside removed layers or partial steps.
    """

    steps: tuple[Step, ...]
    guidance_scale: float | None = None
    end_time: float | None = None
    engine: Engine | None = None

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.steps, key=lambda step: -step.time))
        object.__setattr__(self, "steps", ordered)
        if not ordered:
            raise UserError("a candidate must have at least one step; got none")
        if len(ordered) > MOST_STEPS:
            raise UserError(f"a candidate must have at most {MOST_STEPS:,} steps; got {len(ordered):,}")
        for step, following in pairwise(ordered):
            if step.time == following.time:
                raise UserError(f"a candidate's times must be distinct; got {step.time:g} twice: remove it once")
        if ordered[0].branch is not None:
            raise UserError(
                f"a candidate's first step must be a full one, whose features a partial step takes; got {ordered[0]}"
            )
        if self.guidance_scale is not None:
            object.__setattr__(self, "guidance_scale", _finite(self.guidance_scale, "guidance_scale"))
        if self.end_time is not None:
            end, last = _canonical_time(self.end_time, "end_time"), ordered[-1].time
            object.__setattr__(self, "end_time", end)
            if end >= last:
                raise UserError(f"end_time must be below the last step's time, {last:g}; got {end:g}")
        if self.engine is not None:
            self.engine.check(len(ordered))
            unusual = [str(step) for step in ordered if step.removed or step.branch is not None]
            if unusual:
                raise UserError(
                    "a candidate with an engine's cache must run every layer at every step, since the engine leaves "
                    f"out what it does; got {', '.join(unusual)}"
                )

    @classmethod
    def from_time_steps(
        cls,
        times: Iterable[float],
        removed: Sequence[Iterable[int]] | None = None,
        guidance_scale: float | None = None,
        end_time: float | None = None,
    ) -> Candidate:
        """A candidate from its times and, optionally, the layers removed at each (in the same order)."""
        listed = list(times)
        layer_sets = [()] * len(listed) if removed is None else [tuple(layers) for layers in removed]
        if len(layer_sets) != len(listed):
            raise UserError(f"removed must have one entry a time step: {len(listed)} times, {len(layer_sets)} entries")
        return cls(tuple(map(Step, listed, layer_sets)), guidance_scale, end_time)

    @property
    def times(self) -> tuple[float, ...]:
        """The times in the order in which they are run, from noise to image."""
        return tuple(step.time for step in self.steps)

    @property
    def removed(self) -> tuple[tuple[int, ...], ...]:
        """The layers not run, one ascending tuple a step."""
        return tuple(step.removed for step in self.steps)

    @property
    def branches(self) -> tuple[int | None, ...]:
        """The branch of each step, None for a full one."""
        return tuple(step.branch for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """A dict of JSON values; :meth:`from_dict` gives an equal candidate back."""
        values: dict[str, Any] = {"format": FORMAT, "steps": [step.to_dict() for step in self.steps]}
        if self.guidance_scale is not None:
            values["guidance_scale"] = self.guidance_scale
        if self.end_time is not None:
            values["end_time"] = _shortest(self.end_time)
        if self.engine is not None:
            values["engine"] = self.engine.to_dict()
        return values

    def to_json(self) -> str:
        """The canonical JSON text: equal candidates have equal texts."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: object) -> Candidate:
        """A candidate from JSON values; keys beside the known ones may only be ``source`` and ``comment``."""
        if isinstance(values, list):
            values = {"steps": values}
        if not isinstance(values, dict):
            raise UserError(f"a candidate must be a JSON object or a list of times; got {type(values).__name__}")
        allowed = ("format", "steps", "guidance_scale", "end_time", "engine", "source", "comment")
        errors = [unknown_text("a candidate's key", key, allowed) for key in values if key not in allowed]
        if values.get("format", FORMAT) != FORMAT:
            errors.append(f"format must be {FORMAT}; got {quoted(values['format'])}: written by a newer version?")
        given = values.get("steps")
        steps: list[Step] = []
        if isinstance(given, list) and len(given) > MOST_STEPS:
            errors.append(f"steps must be at most {MOST_STEPS:,}; got {len(given):,}")
        elif not isinstance(given, list):
            errors.append(f"steps must be a list of times or of objects with a time; got {quoted(given)}")
        else:
            for entry in given:
                try:
                    steps.append(_step_from(entry))
                except UserError as error:
                    errors.append(str(error))
        engine: Engine | None = None
        if values.get("engine") is not None:
            try:
                engine = engine_from_dict(values["engine"])
            except UserError as error:
                errors.append(str(error))
        if errors:
            more = f"; and {len(errors) - MISTAKES} more mistakes" if len(errors) > MISTAKES else ""
            raise UserError("; ".join(errors[:MISTAKES]) + more)
        return cls(tuple(steps), values.get("guidance_scale"), values.get("end_time"), engine)

    @classmethod
    def from_json(cls, text: str) -> Candidate:
        """A candidate from JSON text. Raises UserError for text that is no JSON or no candidate."""
        return cls.from_dict(_parsed(text))

    @classmethod
    def load(cls, path: str | Path) -> Candidate:
        """A candidate from a JSON file. Raises UserError, naming the file."""
        return cls.load_with_source(path)[0]

    @classmethod
    def load_with_source(cls, path: str | Path) -> tuple[Candidate, object]:
        """A candidate from a JSON file, and what stands there as its ``source``. Raises UserError, naming the file."""
        try:
            content = _parsed(Path(path).read_text(encoding="utf-8"))
            return cls.from_dict(content), content.get("source") if isinstance(content, dict) else None
        except UnicodeDecodeError:
            raise UserError(f"{path}: must be a JSON text file in UTF-8; it is not text") from None
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL
            raise UserError(f"{path}: cannot be read: {reason_of(error)}") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def __str__(self) -> str:
        end = "" if self.end_time is None else f" ending at {self.end_time:g}"
        guidance = "" if self.guidance_scale is None else f" at guidance {self.guidance_scale:g}"
        return self._listed() + end + guidance + ("" if self.engine is None else f" with {self.engine}")

    def __repr__(self) -> str:
        scale = "" if self.guidance_scale is None else f", guidance_scale={self.guidance_scale:g}"
        end = "" if self.end_time is None else f", end_time={self.end_time:g}"
        engine = "" if self.engine is None else f", engine={self.engine!r}"
        return f"Candidate({self._listed()}{scale}{end}{engine})"

    def _repr_html_(self) -> str:
        """A strip for notebooks: a bar a step at its time, noise left; its height is the share of what is run there.

        Of layers only the numbers of those removed are known, so the height falls with the largest number as its unit.
        """
        highest = max(self.steps[0].time, 1.0)
        most = max(len(step.removed) for step in self.steps)
        bars = []
        for step in self.steps:
            left = 8 + 284 * (1 - step.time / highest)
            tall = 28 * (1 - 0.6 * len(step.removed) / most) if most else 28
            fill = "none" if step.branch is not None else "currentColor"
            bars.append(
                f'<rect x="{left - 3:.1f}" y="{32 - tall:.1f}" width="6" height="{tall:.1f}" fill="{fill}" '
                f'stroke="currentColor"><title>{step}</title></rect>'
            )
        return (
            f'<svg width="300" height="36" role="img" aria-label="{self}"><line x1="8" x2="292" y1="32" y2="32" '
            f'stroke="currentColor" opacity="0.4"/>{"".join(bars)}</svg><div>{self}</div>'
        )

    def _listed(self) -> str:
        return "[" + ", ".join(map(str, self.steps)) + "]"


def _parsed(text: str) -> object:
    """The values of a JSON text. Raises UserError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError("a candidate must be JSON; this text is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise UserError(f"a candidate must be JSON; {reason_of(error)}") from None
    except ValueError:  # of sys.get_int_max_str_digits()
        raise UserError("a candidate's integers must have at most 4,300 digits; got a longer one") from None


def _step_from(entry: object) -> Step:
    if not isinstance(entry, dict):
        return Step(entry)  # type: ignore[arg-type]  # checked by Step
    allowed = ("time", "removed", "branch")
    for key in entry:
        if key not in allowed:
            raise UserError(unknown_text("a step's key", key, allowed))
    if "time" not in entry:
        raise UserError(f"a step must have a time; got {quoted(entry)}")
    removed = entry.get("removed", [])
    if not isinstance(removed, list):
        raise UserError(f"a step's removed must be a list of layer indices; got {quoted(removed)}")
    return Step(entry["time"], tuple(removed), entry.get("branch"))


def _shortest(time: float) -> float:
    """An integer where it is one, for JSON."""
    return int(time) if time.is_integer() else time


def _canonical_time(time: object, what: str = "a time") -> float:
    value = _finite(time, what)
    if value < 0:
        raise UserError(f"{what} must be 0 or more; got {value:g}")
    return round(value, TIME_DECIMALS) + 0.0  # + 0.0 turns -0.0 into 0.0


def _canonical_layers(removed: Iterable[int]) -> tuple[int, ...]:
    layers = tuple(removed)
    if len(layers) > MOST_LAYERS:
        raise UserError(f"a step must remove at most {MOST_LAYERS:,} layers; got {len(layers):,}")
    for layer in layers:
        _check_index(layer, "a removed layer")
    return tuple(sorted(set(layers)))


def _check_index(index: object, what: str) -> None:
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise UserError(f"{what} must be an index, 0 or more; got {quoted(index)}")


def _finite(value: object, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    except OverflowError:  # JSON knows integers of any length
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{what} must be a finite number; got {quoted(value)}")
    return number
