"""What an ask costs: milliseconds from a claimed trial to its parameters, by optimizer, dimensions and finished trials.

    python benchmarks/asking.py [--quick] [--optimizers KIND ...]

A study of the given number of finished trials, proposed at random and measured by a function, is written to SQLite.
Then trials are begun as a study does. ``first`` is the first of a process, which may read what SQL holds and repeat
what was asked; ``then`` is the median of those after it. ``--quick`` takes 4 dimensions and 100 trials only.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import optuna
from common import machine, parser, say

import autodiffusion_opt as ado
from autodiffusion_opt.optimizer import OPTIMIZERS
from autodiffusion_opt.study.config import build_optimizer
from autodiffusion_opt.trials.attributes import CANDIDATE, ORIGIN
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.studies import begin_trial, create_study, set_parameters

INFO = ado.ModelInfo(train_steps=1000)
NEVERGRAD = ("CMA", "TwoPointsDE", "OnePlusOne", "NgIohTuned", "ScrHammersleySearch")


def value(candidate: ado.Candidate) -> float:
    """A smooth function with a minimum far from the usual schedules."""
    wanted = np.interp(np.linspace(0, 1, len(candidate.times)), [0, 0.4, 1], [930.0, 420.0, 30.0])
    return 1.0 + float(np.abs(np.array(candidate.times) - wanted).mean())


def milliseconds(kind: str, dimensions: int, finished: int, asks: int, folder: Path) -> dict[str, float]:
    """``first`` and ``then`` of an optimizer; the sampler sees ``finished`` complete trials that it did not propose."""
    space: Any = build_space(dimensions)
    url = f"sqlite:///{folder}/{kind.replace(':', '-')}-{dimensions}-{finished}.db"
    storage = open_storage(url)
    study = create_study(storage, "s", {"value": optuna.study.StudyDirection.MINIMIZE})
    rng = np.random.default_rng(0)
    candidates = [space.random(rng) for _ in range(finished)]
    study.add_trials(
        optuna.trial.create_trial(
            params=space.encode(candidate),
            distributions=space.distributions(),
            value=value(candidate),
            user_attrs={ORIGIN: "random", CANDIDATE: candidate.to_json()},
        )
        for candidate in candidates
    )
    history = History(study).refresh()
    sampler: Any = build_optimizer({"kind": kind}, kind).sampler(space, 0)
    sampler.history, study.sampler = history, sampler
    times = []
    for _ in range(asks):
        trial_id = storage.start(study._study_id, None)
        assert trial_id is not None
        start = time.perf_counter()
        trial = begin_trial(study, trial_id)
        set_parameters(trial, space.distributions())
        times.append(1e3 * (time.perf_counter() - start))
        candidate = space.decode(trial.params)
        trial.set_user_attr(CANDIDATE, candidate.to_json())
        study.tell(trial, value(candidate))
    return {"first": round(times[0], 1), "then": round(median(times[1:]), 1)}


def build_space(dimensions: int) -> ado.Space:
    """So many time steps."""
    from autodiffusion_opt.space import TimeStepsConfig

    return TimeStepsConfig(steps=dimensions).space(INFO)


def main() -> None:
    """Print the figures; the last line is a JSON object."""
    arguments = parser(__doc__)
    kinds = [*OPTIMIZERS, *(f"nevergrad:{name}" for name in NEVERGRAD)]
    arguments.add_argument("--optimizers", nargs="+", default=kinds, metavar="KIND", help="(default: all)")
    chosen = arguments.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sizes = [(4, 100)] if chosen.quick else [(4, 100), (4, 1000), (10, 100), (10, 1000)]
    rows: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'milliseconds: first / then':28}" + "".join(f"{f'{d}-d, {n} trials':>20}" for d, n in sizes))
    with tempfile.TemporaryDirectory() as folder:
        for kind in chosen.optimizers:
            rows[kind] = {}
            for dimensions, finished in sizes:
                say(f"{kind}, {dimensions} dimensions, {finished} trials")
                asks = 2 if kind == "optuna:gp" else 6 if chosen.quick else 10
                measured = milliseconds(kind, dimensions, finished, asks, Path(folder))
                rows[kind][f"{dimensions}-d, {finished} trials"] = measured
            cells = (f"{cell['first']:.0f} / {cell['then']:.0f}" for cell in rows[kind].values())
            print(f"{kind:28}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
    print(json.dumps({"benchmark": "asking", "milliseconds": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
