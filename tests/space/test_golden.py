"""A seed gives the candidates that version 0.1.0 gave, so that its studies can be repeated.

The digests were made by this file's ``chain`` on the code of version 0.1.0, with ``ModelFacts`` for ``ModelInfo``,
``narrowed`` for ``with_layer_share``, and a table ``[pipeline]`` in the space.
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
    "joint-any": "6a1285fb3b225e9b6cce264525f25949892d1e3f8d0f22a7beabcff13935ef53",
    "joint-uniform": "77b3ab582f9a1c1a938ce5fdb896fb351aa060db57aea1a7008b39d195209604",
    "joint-ranked": "1e30f53872fb37b491cd527f44bd813081047b6e1f4b05f4ee41e581c550c752",
    "joint-tight": "9ae1819e6d9d94c9ca42a70f1dd412385f519056dbaaa77d3a8a81abcf7ad976",
}


@pytest.mark.parametrize("name", TABLES)
def test_candidates_of_a_seed_are_those_of_version_0_1_0(name: str) -> None:
    text = "\n".join(candidate.to_json() for candidate in chain(TABLES[name]))
    assert hashlib.sha256(text.encode()).hexdigest() == DIGESTS[name]
