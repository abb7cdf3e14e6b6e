"""What a trial costs besides its images, and what commands take of large studies, at 1,000 and 10,000 trials.

    python benchmarks/bookkeeping.py [--quick]

A study of the given number of finished trials is written to SQLite, then 100 more are run through ``Study.run`` with an
objective that returns at once; claims, proposals of the evolution, parameters and results are all there. ``growth`` is
the CPU time at 10,000 finished trials divided by that at 1,000, measured in one run. ``status`` and ``best`` are the
wall seconds of these two, the database opened anew, at the larger number. ``complete`` is the command ``run`` on a
study of ``digits-4`` that has all its trials, as many: wall seconds, and the most memory that its process held.
``--quick`` has a tenth of these studies, and runs 30 trials of each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from common import machine
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState

import autodiffusion_opt as ado
from autodiffusion_opt.report.tables import best_table, status_rows, status_table
from autodiffusion_opt.study.results import open_study
from autodiffusion_opt.trials.attributes import CANDIDATE, OPTIMIZER, ORIGIN, SCORE
from autodiffusion_opt.trials.opening import open_storage

SIZES, QUICK_SIZES = (1000, 10_000), (100, 1000)
INFO = ado.ModelInfo(train_steps=1000)
# Between this process and the command: Linux counts the memory of the process that starts another as the latter's.
MEASURED = """
import json, resource, subprocess, sys, time
begun = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
seconds = time.perf_counter() - begun
mebibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "mebibytes": mebibytes}))
"""


def value(candidate: ado.Candidate) -> float:
    """A smooth function with a minimum far from the usual schedules."""
    return float(np.abs(np.array(candidate.times) - [930, 500, 210, 30]).sum())


def plain_study(folder: Path, finished: int) -> ado.Study:
    """A study without a pipeline, with that many finished trials."""
    study = ado.Study(
        f"at-{finished}",
        space={"kind": "time-steps", "steps": 4},
        objective=ado.CandidateMetric(value, identity="distance"),
        optimizer="evolution",
        storage=f"sqlite:///{folder}/{finished}.db",
        model_info=INFO,
    )
    fill(study, finished)
    return study


def fill(study: ado.Study, finished: int) -> None:
    """Run its baselines; the others of so many trials are random candidates, written without being run."""
    done = len(study.run(10, progress=False))
    space, rng = study.problem.space, np.random.default_rng(0)
    (name,) = study.problem.objective.directions
    storage: Any = study.storage
    study_id = storage.get_study_id_from_name(study.config.name)
    with storage.scoped_session() as session:
        for number in range(done, finished):
            session.add(trial_model(study_id, number, name, space, space.random(rng)))
        session.commit()


def trial_model(study_id: int, number: int, name: str, space: Any, candidate: ado.Candidate) -> models.TrialModel:
    """The rows of a complete trial; ``Study.add_trials`` of Optuna needs 40 ms for each."""
    score = {"values": {name: value(candidate)}, "images": 0, "seconds": 0.0, "nfe": 4, "not_finite": 0}
    attributes = {ORIGIN: "random", CANDIDATE: candidate.to_json(), OPTIMIZER: "evolution", SCORE: score}
    parameters = space.encode(candidate)
    finite = models.TrialValueModel.TrialValueType.FINITE
    return models.TrialModel(
        study_id=study_id,
        number=number,
        state=TrialState.COMPLETE,
        datetime_start=datetime.now(),
        datetime_complete=datetime.now(),
        values=[models.TrialValueModel(objective=0, value=value(candidate), value_type=finite)],
        params=[
            models.TrialParamModel(
                param_name=name,
                param_value=distribution.to_internal_repr(parameters[name]),
                distribution_json=distribution_to_json(distribution),
            )
            for name, distribution in space.distributions().items()
        ],
        user_attributes=[
            models.TrialUserAttributeModel(key=key, value_json=json.dumps(attribute))
            for key, attribute in attributes.items()
        ],
    )


def seconds_to_show(study: ado.Study) -> dict[str, float]:
    """Wall seconds of ``status`` and ``best``, without the start of a process."""
    seconds = {}
    shown = {
        "status": lambda: status_table(status_rows(open_storage(study.url))),
        "best": lambda: best_table(open_study(study.config.name, study.url).top()),
    }
    for verb, show in shown.items():
        begun = time.perf_counter()
        show()
        seconds[verb] = time.perf_counter() - begun
    return seconds


def run_complete(folder: Path, finished: int) -> dict[str, float]:
    """The command ``run`` on a study that has all its trials: wall seconds with the start of Python, and MiB."""
    url = f"sqlite:///{folder}/complete.db"
    fill(ado.Study.load("digits-4", storage=url), finished)
    words = ["run", "digits-4", "--storage", url, "--trials", str(finished)]
    command = [sys.executable, "-c", MEASURED, sys.executable, "-m", "autodiffusion_opt", *words]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def cost_at(study: ado.Study, finished: int, count: int) -> tuple[float, float]:
    """CPU seconds a trial and wall seconds a trial, without the first trial, which reads what SQL holds."""
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
            study = plain_study(Path(folder), size)
            shown = seconds_to_show(study)
            cpu, wall = cost_at(study, size, count)
            seconds[str(size)] = cpu
            print(
                f"{size:>6} finished trials: {cpu * 1e3:.1f} ms CPU a trial, {wall * 1e3:.1f} ms wall; "
                f"status {shown['status']:.2f} s, best {shown['best']:.2f} s"
            )
        complete = run_complete(Path(folder), sizes[1])
        print(f"{sizes[1]:>6} trials of {sizes[1]}: run {complete['seconds']:.2f} s, {complete['mebibytes']:.0f} MiB")
    growth = seconds[str(sizes[1])] / seconds[str(sizes[0])]
    figures = {"machine": machine(), "trials": count, "seconds_per_trial": seconds, "growth": growth}
    print(json.dumps({**figures, **shown, "complete": complete}))


if __name__ == "__main__":
    main()
