"""Evolution against its authors' search, by the formula of ``benchmarks/evolution.py``, whose best is known."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark as a module."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    yield importlib.import_module("evolution")
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent.name == "benchmarks":
            del sys.modules[name]


def median(values: list[list[float]]) -> float:
    """Of what searches found in the end."""
    return float(np.median([curve[-1] for curve in values]))


def test_where_layers_are_cheap_evolution_finds_more_than_its_authors_search_in_as_many_trials(script: Any) -> None:
    """Their mutations never add a step, which is what removed layers pay for."""
    toy, seeds, trials = script.TOYS["4 steps, cheap layers"], range(5), 300
    ours = median([script.evolution(toy, toy.joint, {}, seed, trials) for seed in seeds])
    for share in (0.1, 0.5):
        assert ours < 0.97 * median([script.authors(toy, share, seed, trials) for seed in seeds])


@pytest.mark.parametrize("name", ["4 steps, dear layers", "10 steps, cheap layers"])
def test_no_candidate_within_the_budget_is_better_than_the_best_known(script: Any, name: str) -> None:
    """The best known value is that of real times: candidates of whole times are at it or above."""
    toy, rng = script.TOYS[name], np.random.default_rng(0)
    space = toy.joint
    least = min(map(toy.best, range(toy.whole, space.steps_max + 1)))
    assert toy.best(toy.whole) == pytest.approx(1.0)
    assert all(toy.value(space.random(rng)) > least for _ in range(200))
