"""Put a candidate on a diffusers pipeline, and take it off again without a trace.

While a candidate is applied, the pipeline is of a class of its own (:mod:`~autodiffusion_opt.sampling.applied_class`)
and has a copy of its scheduler with the candidate's times; hooks on its denoiser leave layers out during its calls
alone. So pipelines that share a scheduler or a denoiser do not see each other's candidates. The pipeline's own call is
what runs: what is searched is what is shipped.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.applied_class import CANDIDATE_FILE, KEY, class_with_candidate
from autodiffusion_opt.sampling.cache import install_cache
from autodiffusion_opt.sampling.compatibility import (
    arguments_of_steps,
    check_compatible,
    check_single_step,
    denoiser_of,
)
from autodiffusion_opt.sampling.engines.install import check_engine, engine_on
from autodiffusion_opt.sampling.example_call import learn_layers
from autodiffusion_opt.sampling.layers import Bypass, install_bypass, refuse_cache
from autodiffusion_opt.sampling.schedule import (
    check_scheduler,
    check_times,
    first_step,
    install_schedule,
    untouched,
)

GUIDANCE_SCALE = "guidance_scale"


class Applied:
    """A candidate on a pipeline: what was put where. Made by :func:`apply`.

    Attributes:
        candidate: what is applied.
        kind: the pipeline's own class.
        scheduler: a copy of the pipeline's scheduler with the candidate's times, which the pipeline has now.
        own_scheduler: the one that it had.
        denoiser: on which the hooks are.
        schedule: the times on ``scheduler``.
        block_thread: the thread in whose ``with install(...)`` block it is applied, if so.

    Raises:
        UserError: for a candidate that does not fit the pipeline.
    """

    def __init__(self, pipeline: Any, candidate: Candidate) -> None:
        check_fits(pipeline, candidate)
        self.candidate = candidate
        before: Applied | None = vars(pipeline).get(KEY)
        self.kind: Any = type(pipeline) if before is None else before.kind
        self.own_scheduler: Any = pipeline.scheduler
        if before is not None and pipeline.scheduler is before.scheduler:
            self.own_scheduler = before.own_scheduler
        self.scheduler: Any = untouched(pipeline.scheduler)
        self.denoiser: Any = denoiser_of(pipeline)
        self.block_thread: int | None = None if before is None else before.block_thread
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self.schedule = install_schedule(self.scheduler, candidate.times, end_time=candidate.end_time)
        self.schedule.check_use = lambda: self._check_use()
        self._bypass = Bypass(None)
        if any(candidate.removed):
            learn_layers(pipeline)
            name = f"autodiffusion_opt.bypass.{id(self):x}"
            self._bypass = install_bypass(self.denoiser, candidate.removed, self._step, name=name)
        name, schedule = f"autodiffusion_opt.cache.{id(self):x}", self.schedule
        try:  # outside of the bypass: it decides first
            self._cache = install_cache(
                self.denoiser, candidate.branches, self._step, lambda: schedule.generation, name=name
            )
        except BaseException:
            self._bypass.remove()
            raise
        self._engine_is_on = False

    def remove(self, pipeline: Any) -> None:
        """Take it off, when no call is running. A scheduler that was put on the pipeline since stays."""
        with self._between_calls("remove"):
            self._cache.remove()
            self._bypass.remove()
            pipeline.__class__ = self.kind
            del vars(pipeline)[KEY]
            if pipeline.scheduler is self.scheduler:
                vars(pipeline)["scheduler"] = self.own_scheduler

    def call(self, pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The pipeline's own call with the candidate, one at a time. Raises UserError where it cannot be in force."""
        with self._between_calls("call"):
            given = self._arguments(pipeline, args, kwargs)
            if any(self.candidate.removed) or any(branch is not None for branch in self.candidate.branches):
                refuse_cache(self.denoiser)
            self.schedule.was_set = False
            token = _calling.set(self)
            try:
                with self.engine_on(pipeline):
                    result = self.kind.__call__(*given.args, **given.kwargs)
            finally:
                _calling.reset(token)
                self._cache.forget()
            self._check_in_force(given.arguments)
        return result

    @contextlib.contextmanager
    def engine_on(self, pipeline: Any) -> Iterator[None]:
        """The cache of the candidate's engine, where it has one, is on the denoiser while this lasts."""
        engine = self.candidate.engine
        if engine is None or self._engine_is_on:
            yield
            return
        self._engine_is_on = True
        try:
            with engine_on(pipeline, engine, len(self.candidate.steps), self.schedule):
                yield
        finally:
            self._engine_is_on = False

    def timesteps(self, pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """In place of the pipeline's ``get_timesteps``, which says where image to image begins.

        The steps at which there is no more noise than ``strength`` says are run, at least one
        (:func:`~autodiffusion_opt.sampling.schedule.first_step`); the same rule in every pipeline.

        Returns:
            What the pipeline's own returns: the timesteps from there on and the number of steps; before them the
            sigmas, where its arguments begin with sigmas.
        """
        own = self.kind.get_timesteps
        given = inspect.signature(own).bind(pipeline, *args, **kwargs).arguments
        start = given.get("denoising_start")
        first = first_step(self.scheduler, self.schedule, given["strength"] if start is None else 1 - start)
        self.schedule.apply(self.scheduler.timesteps.device, first)
        timesteps = self.scheduler.timesteps
        sigmas = (self.scheduler.sigmas[: len(timesteps)],) if "sigmas" in given else ()
        return *sigmas, timesteps, len(self.candidate.steps) - first

    def deep_copied(self, pipeline: Any, memo: dict[int, Any]) -> Any:
        """A copy of the pipeline, sharing nothing with it, with the candidate applied to it as well."""
        remove(pipeline)
        try:
            copied = copy.deepcopy(pipeline, memo)
        finally:
            apply(pipeline, self.candidate)
            vars(pipeline)[KEY].block_thread = self.block_thread
        return apply(copied, self.candidate)

    def current(self, pipeline: Any) -> Applied:
        """Itself; or the candidate applied anew, where the pipeline got another scheduler or denoiser since."""
        if pipeline.scheduler is self.scheduler and denoiser_of(pipeline) is self.denoiser:
            return self
        apply(pipeline, self.candidate)
        applied: Applied = vars(pipeline)[KEY]
        return applied

    def _step(self) -> int | None:
        """The step that the denoiser is called in; None in a call of another pipeline that shares it, or by hand."""
        return self.schedule.step if self._is_running() else None

    def _is_running(self) -> bool:
        """Whether this thread is in a call of the pipeline; or, in none of any, in its ``with install(...)`` block."""
        calling = _calling.get()
        return calling is self or (calling is None and self.block_thread == threading.get_ident())

    def _check_use(self) -> None:
        if not self._is_running():
            raise UserError(
                f"this scheduler has the candidate of a {self.kind.__name__} on it, and is used outside of a call of "
                "that pipeline: where another pipeline shares it, ado.apply the candidate there too, or give it a "
                "scheduler of its own; in a loop of your own, be inside `with ado.install(pipeline, candidate):`"
            )

    @contextlib.contextmanager
    def _between_calls(self, what: str) -> Iterator[None]:
        """Waits for another thread's call. Raises UserError inside a call of this very pipeline."""
        if _calling.get() is self:
            raise UserError(f"a pipeline with a candidate cannot {what} inside a call of its own: wait for its end")
        with self._lock:
            yield

    def _arguments(self, pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        """The call's arguments, with those replaced that the candidate decides; each that is not used is told once."""
        signature = inspect.signature(self.kind.__call__)
        given = signature.bind_partial(pipeline, *args, **kwargs)
        decided: dict[str, float | None] = dict.fromkeys(("timesteps", "sigmas"))
        decided["num_inference_steps"] = len(self.candidate.steps)
        if self.candidate.guidance_scale is not None:
            decided[GUIDANCE_SCALE] = self.candidate.guidance_scale
        for name, value in decided.items():
            if name not in signature.parameters:
                continue
            came = given.arguments.pop(name, None)
            if value is not None:
                given.arguments[name] = value
            if came is not None and (value is None or came != value):
                shown = f"{name}={came!r}" if isinstance(came, int | float) else name
                self._tell(name, f"{shown} is not used: the pipeline samples with the candidate {self.candidate}")
        of_steps = arguments_of_steps(signature.parameters, len(self.candidate.steps))
        given.arguments.update({name: value for name, value in of_steps.items() if name in signature.parameters})
        return given

    def _check_in_force(self, given: dict[str, Any]) -> None:
        """After a call: whether it used the candidate's times, and how many of its steps. Raises UserError."""
        if not self.schedule.was_set:
            raise UserError(
                f"the call of {self.kind.__name__} ended without using the candidate: it samples with a scheduler of "
                "a pipeline inside it; apply the candidate to that pipeline"
            )
        if self.schedule.first:
            name = "strength" if given.get("denoising_start") is None else "denoising_start"
            value = given.get(name, inspect.signature(self.kind.__call__).parameters[name].default)
            run, verb = self.schedule.sampled, "was" if self.schedule.first == len(self.candidate.steps) - 1 else "were"
            message = (
                f"{len(run)} of the candidate's {len(self.candidate.steps)} steps {verb} run, from time {run[0]:g}"
            )
            self._tell(message, f"{name}={value}: {message}")

    def _tell(self, topic: str, message: str) -> None:
        if topic not in self._told:
            self._told.add(topic)
            warnings.warn(message, stacklevel=5)  # the line that calls the pipeline


# Whose call this thread is in.
_calling: ContextVar[Applied | None] = ContextVar("autodiffusion_opt_calling", default=None)


def apply(pipeline: Any, candidate: Candidate | str | Path) -> Any:
    """Make ``pipeline`` sample with ``candidate``, whatever ``num_inference_steps`` it is called with.

    The time steps are on its scheduler, the layer sets on its denoiser, the guidance scale (where the candidate has
    one) on its call; a candidate applied before is taken off. From image to image, ``strength`` says how many of the
    candidate's steps are run. ``copy.deepcopy`` copies the candidate too; ``save_pretrained`` writes it beside the
    model, and :func:`~autodiffusion_opt.load_pipeline` applies it again. A scheduler put on the pipeline later gets the
    candidate with the next call.

    Args:
        pipeline: any diffusers pipeline whose scheduler is accepted.
        candidate: a candidate, or the path of its JSON file.

    Returns:
        The same pipeline.

    Raises:
        UserError: for a candidate that does not fit the model, or a scheduler that is not accepted; the pipeline is
            then as it was.
    """
    if not isinstance(candidate, Candidate):
        candidate = Candidate.load(candidate)
    applied = Applied(pipeline, candidate)
    remove(pipeline)
    vars(pipeline)["scheduler"] = applied.scheduler
    vars(pipeline)[KEY] = applied
    pipeline.__class__ = class_with_candidate(applied.kind)
    return pipeline


def remove(pipeline: Any) -> Any:
    """Undo :func:`apply`; the pipeline is as it was. Does nothing where no candidate is applied."""
    applied: Applied | None = vars(pipeline).get(KEY)
    if applied is not None:
        applied.remove(pipeline)
    return pipeline


def applied(pipeline: Any) -> Candidate | None:
    """The candidate that is applied to a pipeline; None where there is none."""
    state: Applied | None = vars(pipeline).get(KEY)
    return None if state is None else state.candidate


@contextlib.contextmanager
def install(pipeline: Any, candidate: Candidate) -> Iterator[Any]:
    """:func:`apply` for the length of a ``with`` block, also if it ends with an exception.

    Inside the block a loop of one's own over ``pipeline.scheduler`` and the denoiser has the candidate too. A candidate
    that was applied before is applied again after it.
    """
    before = applied(pipeline)
    apply(pipeline, candidate)
    applied_now: Applied = vars(pipeline)[KEY]
    applied_now.block_thread = threading.get_ident()
    try:
        with applied_now.engine_on(pipeline):
            yield pipeline
    finally:
        remove(pipeline)
        if before is not None:
            apply(pipeline, before)


@contextlib.contextmanager
def with_scheduler(pipeline: Any, scheduler: Any) -> Iterator[None]:
    """The pipeline without its candidate, where it has any, under another scheduler."""
    candidate = applied(pipeline)
    remove(pipeline)
    own = pipeline.scheduler
    vars(pipeline)["scheduler"] = scheduler
    try:
        yield
    finally:
        vars(pipeline)["scheduler"] = own
        if candidate is not None:
            apply(pipeline, candidate)


def watch_samples(pipeline: Any, see: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
    """Have ``see`` called with the sample (N, ...) before and after every step, until the candidate is taken off."""
    vars(pipeline)[KEY].schedule.watch = see


def check_fits(pipeline: Any, candidate: Candidate) -> None:
    """Raises UserError for a candidate that the pipeline cannot run."""
    check_scheduler(pipeline.scheduler)
    check_compatible(pipeline)
    check_times(pipeline.scheduler, candidate.times, candidate.end_time)
    if len(candidate.steps) == 1:
        check_single_step(pipeline)
    takes = inspect.signature(type(pipeline).__call__).parameters
    if candidate.guidance_scale is not None and GUIDANCE_SCALE not in takes:
        raise UserError(
            f"the candidate has a guidance_scale, but {type(pipeline).__name__} takes none: "
            "remove it from the candidate"
        )
    if candidate.engine is not None:
        check_engine(pipeline, candidate.engine)


def saved_candidate(folder: Path | None) -> Candidate | None:
    """The candidate that ``save_pretrained`` wrote to a folder with the pipeline; None where there is none."""
    path = None if folder is None else folder / CANDIDATE_FILE
    return Candidate.load(path) if path is not None and path.is_file() else None
