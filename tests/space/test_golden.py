"""A seed gives the candidates that it gave before, so that studies can be repeated.

The digests of times alone were made by this file's ``chain`` on the code of version 0.1.0, with ``ModelFacts`` for
``ModelInfo``, ``narrowed`` for ``with_layer_share``, and a table ``[pipeline]`` in the space. Those of joint spaces
were made anew when their mutations came to change times or layers, no longer both.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from space.examples import DIGITS, build_space

from autodiffusion_opt.candidate import Candidate

TABLES: dict[str, dict[str, Any]] = {
    "time-steps": {"kind": "time-steps", "steps": 4},
    "guidance": {"kind": "time-steps", "steps": 3, "guidance_scale": [1.0, 7.5]},
    "joint-any": {"kind": "joint", "n_max": 72, "steps_min": 4, "steps_max": 8, "layers": "any"},
    "joint-uniform": {"kind": "joint", "n_max": 72, "steps_min": 2, "layers": "any", "draw": "uniform"},
    "joint-ranked": {"kind": "joint", "n_max": 72, "steps_min": 4, "steps_max": 8, "layers": "ranked"},
    "joint-tight": {
        "kind": "joint",
        "n_max": 40,
        "steps_min": 3,
        "steps_max": 9,
        "layers": "any",
        "times": "continuous",
        "guidance_scale": [0.0, 3.0],
    },
}


def chain(table: dict[str, Any]) -> list[Candidate]:
    """Baselines, draws, mutations and crossovers, in the space and in parts of it, all from one generator."""
    space, rng = build_space(DIGITS, **table), np.random.default_rng(0)
    made = [*space.baselines().values(), *(space.random(rng) for _ in range(6))]
    for turn in range(150):
        part = space.with_layer_share([0.0, 0.5, 1.0][turn % 3]) if turn % 2 else space
        made.append(part.random(rng))
        made.append(part.mutate(made[-2], rng, 0.25))
        made.append(part.mutate(made[int(rng.integers(len(made)))], rng, 0.1))
        made.append(part.crossover(made[-1], made[-4], rng))
        made.append(space.crossover(made[int(rng.integers(len(made)))], made[int(rng.integers(len(made)))], rng))
    return made + [space.decode(space.encode(candidate)) for candidate in made[-20:]]


DIGESTS = {
    "time-steps": "12dc9cb581e8d82aec2d854227cd4fc7fd33293446976d41e8de567eec692306",
    "guidance": "fe3d0a1bdf8a353bfc7c88b7cfbfc5ddc3ee6d8e72423cdd1802a894ca5cb102",
    "joint-any": "71426a34f2f844371351b1e40a192f37fe8393af1d5420d8db1041fe500cf2a1",
    "joint-uniform": "f117743c91003464db0753fa80dbede9bd86aecd59832b5591f12e91588d79a1",
    "joint-ranked": "dae1fe57c536c2f2bf3c719ac8c92148cdc19a140f5f6492d0ad48df18712a9d",
    "joint-tight": "ec38eb444d392d58c844114ff8082eaf25f990dceceb84673aa70ad2b5c2c20e",
}


@pytest.mark.parametrize("name", TABLES)
def test_candidates_of_a_seed_stay_the_same_from_version_to_version(name: str) -> None:
    text = "\n".join(candidate.to_json() for candidate in chain(TABLES[name]))
    assert hashlib.sha256(text.encode()).hexdigest() == DIGESTS[name]
