"""Whatever ``apply`` accepts, ``remove`` undoes: the pipeline's state after random uses, compared key by key."""

from __future__ import annotations

import contextlib
import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from marks import slow_but
from peers import pipelines
from peers.samples import call_by_hand, load

from autodiffusion_opt import Candidate, applied, apply, install, remove
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.layers import list_layers

# diffusers' own set_timesteps, with NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


class Boom(Exception):
    """What goes wrong inside a call."""


def state(pipeline: Any) -> dict[str, Any]:
    """Every attribute that a candidate could change: of the pipeline, its scheduler, each module of its denoiser."""
    return {
        "class": type(pipeline),
        # Of what diffusers' calls note in private attributes (guidance, the current time) only that it is there.
        "pipeline": {key: None if key.startswith("_") else id(value) for key, value in vars(pipeline).items()},
        "config": dict(pipeline.config),
        "scheduler": {key: comparable(value) for key, value in vars(pipeline.scheduler).items()},
        "modules": {
            name: {key: kept(value) for key, value in vars(module).items()}
            for name, module in denoiser_of(pipeline).named_modules()
        },
    }


def comparable(value: Any) -> Any:
    return (value.dtype, value.tolist()) if isinstance(value, torch.Tensor | np.ndarray) else copy.deepcopy(value)


def kept(value: Any) -> Any:
    """Of dicts, such as those of hooks, the keys too."""
    return (id(value), tuple(value)) if isinstance(value, dict) else id(value)


class Uses:
    """A pipeline and what a user may do with it, in any order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pipeline = load(name)
        self.layers = [layer.index for layer in list_layers(denoiser_of(self.pipeline)) if layer.removable]
        with install(self.pipeline, Candidate.from_time_steps([900, 3])):
            self.call()  # what only the first call sets
        self.before = state(self.pipeline)  # as it was before the candidate

    def candidate(self, chance: Any) -> Candidate:
        times = chance.sample(range(50, 950), chance.randint(2, 3))
        removed = [chance.sample(self.layers, chance.randint(0, 2)) for _ in times] if chance.random() < 0.6 else None
        scale = 2.5 if chance.random() < 0.3 and self.name in (*pipelines.TEXT, "dit") else None
        ends = chance.random() < 0.3 and "consistency" not in self.name
        return Candidate.from_time_steps(times, removed, scale, end_time=20 if ends else None)

    def apply(self, chance: Any) -> None:
        if applied(self.pipeline) is None:
            self.before = state(self.pipeline)
        apply(self.pipeline, self.candidate(chance))

    def call(self, chance: Any = None) -> None:
        with contextlib.suppress(RuntimeError if self.name == "adm" else Boom):  # which diffusers alone cannot run
            call_by_hand(self.pipeline, self.name, [0], num_inference_steps=2)

    def fail(self, chance: Any) -> None:
        """A call that ends with an exception of the denoiser."""

        def boom(*_: Any) -> None:
            raise KeyError("boom")

        hook = denoiser_of(self.pipeline).register_forward_hook(boom)
        with pytest.raises(KeyError, match="boom"):
            self.call()
        hook.remove()

    def block(self, chance: Any) -> None:
        """A search over the pipeline that is broken off."""
        with contextlib.suppress(Boom), install(self.pipeline, self.candidate(chance)):
            self.fail(chance)
            raise Boom

    def copy(self, chance: Any) -> None:
        """A deep copy, used and given up; it is plain once its candidate is taken off."""
        copied = copy.deepcopy(self.pipeline)
        remove(copied)
        assert type(copied) is self.before["class"]
        for module in denoiser_of(copied).modules():
            assert "forward" not in vars(module)
        if applied(self.pipeline) is not None:
            assert set(vars(copied.scheduler)) == set(self.before["scheduler"])

    def swap(self, chance: Any) -> None:
        """Another scheduler of the same class, as a user puts one on; that is then the one to be left as it was."""
        new = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        self.pipeline.scheduler = new
        self.before["scheduler"] = {key: comparable(value) for key, value in vars(new).items()}
        self.before["pipeline"]["scheduler"] = id(new)

    def remove(self, chance: Any = None) -> None:
        """Takes off what is applied, and compares."""
        if applied(self.pipeline) is not None:
            remove(self.pipeline)
            now = state(self.pipeline)
            for part, expected in self.before.items():
                assert now[part] == expected, part
        remove(self.pipeline)  # a second time does nothing


ACTIONS = ("apply", "call", "fail", "block", "copy", "swap", "remove")


@pytest.mark.parametrize("name", slow_but(pipelines.BUILDERS, "dit"))
def test_remove_gives_back_the_pipeline_as_it_was_after_any_uses(name: str) -> None:
    uses = Uses(name)

    @settings(max_examples=20, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(some.lists(some.sampled_from(ACTIONS), min_size=1, max_size=6), some.randoms(use_true_random=False))
    def sequence(actions: list[str], chance: Any) -> None:
        uses.apply(chance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for action in actions:
                getattr(uses, action)(chance)
        uses.remove()

    sequence()


def test_the_comparison_sees_what_is_left_behind() -> None:
    uses = Uses("ddim")
    pipeline = uses.pipeline
    for leave in (
        lambda: vars(pipeline).update(left=1),
        lambda: vars(pipeline.unet.conv_in).update(left=1),
        lambda: pipeline.unet.conv_in.register_forward_hook(print),
        lambda: vars(pipeline.scheduler).update(timesteps=torch.ones(3)),
    ):
        before = state(pipeline)
        assert before == state(pipeline)
        leave()
        assert state(pipeline) != before
