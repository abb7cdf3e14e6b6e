"""What a trial costs besides its images: CPU seconds per trial with a stubbed objective, at 1,000 and 10,000 trials.

    python benchmarks/bookkeeping.py [--quick]

A study of the given number of finished trials is written to SQLite, then 100 more are run through ``Study.run`` with an
objective that returns at once; claims, proposals of the evolution, parameters and results are all there. ``growth`` is
the cost at 10,000 finished trials divided by that at 1,000, measured in one run. ``--quick`` has a tenth of these
studies, and runs 30 trials of each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
from common import machine

import autodiffusion_opt as ado
from autodiffusion_opt.trials.attributes import CANDIDATE, ORIGIN, SCORE

SIZES, QUICK_SIZES = (1000, 10_000), (100, 1000)
INFO = ado.ModelInfo(train_steps=1000)


def value(candidate: ado.Candidate) -> float:
    """A smooth function with a minimum far from the usual schedules."""
    return float(np.abs(np.array(candidate.times) - [930, 500, 210, 30]).sum())


def study_at(folder: Path, finished: int) -> ado.Study:
    """A study with that many finished trials: its baselines and random candidates, written without being run."""
    study = ado.Study(
        f"at-{finished}",
        space={"kind": "time-steps", "steps": 4},
        objective=ado.CandidateMetric(value, identity="distance"),
        optimizer="evolution",
        storage=f"sqlite:///{folder}/{finished}.db",
        model_info=INFO,
    )
    done = len(study.run(10, progress=False))
    space, rng = study.problem.space, np.random.default_rng(0)
    trials = []
    for _ in range(finished - done):
        candidate = space.random(rng)  # type: ignore[attr-defined]  # time steps can be drawn
        trials.append(
            optuna.trial.create_trial(
                params=space.encode(candidate),
                distributions=space.distributions(),
                value=value(candidate),
                user_attrs={ORIGIN: "random", CANDIDATE: candidate.to_json(), SCORE: {"values": {}}},
            )
        )
    optuna_study = optuna.load_study(study_name=study.config.name, storage=study.storage)
    optuna_study.add_trials(trials)
    return study


def cost_at(folder: Path, finished: int, count: int) -> tuple[float, float]:
    """CPU seconds a trial and wall seconds a trial, without the first trial, which reads what SQL holds."""
    study = study_at(folder, finished)
    marks: list[tuple[float, float]] = []

    class Mark(ado.Callback):
        def finished(self, trial: optuna.trial.FrozenTrial, history: object) -> None:
            marks.append((time.process_time(), time.perf_counter()))

    study.run(finished + count + 1, progress=Mark())
    (cpu, wall), (cpu_end, wall_end) = marks[0], marks[-1]
    return (cpu_end - cpu) / count, (wall_end - wall) / count


def main() -> None:
    """Print the figures; the last line is a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 trials at each size")
    is_quick = parser.parse_args().quick
    count, sizes = (30, QUICK_SIZES) if is_quick else (100, SIZES)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            cpu, wall = cost_at(Path(folder), size, count)
            seconds[str(size)] = cpu
            print(f"{size:>6} finished trials: {cpu * 1e3:.1f} ms CPU a trial, {wall * 1e3:.1f} ms wall")
    growth = seconds[str(sizes[1])] / seconds[str(sizes[0])]
    print(json.dumps({"machine": machine(), "trials": count, "seconds_per_trial": seconds, "growth": growth}))


if __name__ == "__main__":
    main()
