"""What several workers bring, and what many cost their database: ``python benchmarks/workers.py [--quick]``.

``speedup``: trials of ``digits-4`` in a second by two workers over those by one, each with one thread: of one run, in
which the second worker begins later.

``storage_share``: the part of their time that ``--many`` workers (100) at one SQLite database spend in it, where a
trial takes ten seconds and needs no processor. Their positions must all be different. As in life, workers begin one
after another during the first ten seconds, and a trial takes five to fifteen; with ``--at-once`` all begin together and
their trials are equally long, so that they queue for the database. ``--quick`` has 20 workers and trials of two
seconds, so that as many trials a second end.

With ``--storage URL`` the many use another database, PostgreSQL say, which must be empty.
"""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from common import machine, parser, say

import autodiffusion_opt as ado
from autodiffusion_opt.study.workers import run_workers
from autodiffusion_opt.trials.attributes import WORKER
from autodiffusion_opt.trials.history import History
from autodiffusion_opt.trials.storage import Storage
from autodiffusion_opt.trials.studies import need_study

FORK = multiprocessing.get_context("fork")
INFO = ado.ModelInfo(train_steps=1000)


def trials_a_second(trials: int, images: int, url: str) -> dict[int, float]:
    """Of one worker, until the second of two has begun its first trial; and of both, until the first of them ends."""
    overrides = ["optimizer=random", f"objective.images={images}"]
    loading = {"name": "digits-4", "storage": url, "overrides": overrides}
    study = ado.Study.load(**loading)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_workers(2, study, loading, {"trials": trials})
    begun: dict[str, datetime] = {}
    ended: dict[str, datetime] = {}
    times = []
    for trial in study.trials():
        if trial.state == optuna.trial.TrialState.COMPLETE and trial.datetime_start and trial.datetime_complete:
            worker = trial.user_attrs[WORKER]
            begun[worker] = min(begun.get(worker, trial.datetime_start), trial.datetime_start)
            ended[worker] = max(ended.get(worker, trial.datetime_complete), trial.datetime_complete)
            times.append(trial.datetime_complete)
    assert len(begun) == 2, "the second worker must begin before the trials are over: give it more of them"
    marks = [min(begun.values()), max(begun.values()), min(ended.values())]
    return {
        count: sum(start < when <= end for when in times) / (end - start).total_seconds()
        for count, (start, end) in enumerate(pairwise(marks), start=1)
    }


def waiting_study(url: str, trials: int, seconds: float, spread: float = 0.0) -> ado.Study:
    """A study whose trials only take time: ``seconds``, up to that share ``spread`` less or more."""

    def measured(candidate: ado.Candidate) -> float:
        mean = float(np.mean(candidate.times))
        time.sleep(seconds * (1 + spread * math.sin(mean)))
        return mean

    return ado.Study(
        "waiting",
        space={"kind": "time-steps", "steps": 4},
        objective=ado.CandidateMetric(measured, identity="waiting"),
        optimizer="local",
        trials=trials,
        storage=url,
        model_info=INFO,
    )


def timed(method: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The method, whose seconds are added to the first of ``spent``; calls within a call count once."""
    depth = [0]

    @functools.wraps(method)
    def call(*arguments: Any, **keywords: Any) -> Any:
        begun, depth[0] = time.perf_counter(), depth[0] + 1
        try:
            return method(*arguments, **keywords)
        finally:
            depth[0] -= 1
            spent[0] += time.perf_counter() - begun if depth[0] == 0 else 0.0

    return call


def work(url: str, trials: int, seconds: float, spread: float, delay: float, begin: Any, results: Any) -> None:
    """A worker of many, ``delay`` seconds after the first: what it spent in the database, and altogether."""
    warnings.simplefilter("ignore")
    spent = [0.0]
    setattr(Storage, "patiently", timed(Storage.patiently, spent))  # noqa: B010  # mypy: a method is not assigned to
    study = waiting_study(url, trials, seconds, spread)
    study.storage.engine.dispose()
    begin.wait()
    time.sleep(delay)
    spent[0], begun = 0.0, time.perf_counter()
    study.run(progress=False)
    results.put((spent[0], time.perf_counter() - begun))


def cost_of_many(count: int, seconds: float, rounds: int, url: str, *, at_once: bool = False) -> dict[str, Any]:
    """The share of the database in the time of so many workers, each of which runs about ``rounds`` trials."""
    spread, apart = (0.0, 0.0) if at_once else (0.5, seconds / count)
    trials = count * rounds
    waiting_study(url, 1, 0.0).run(progress=False)
    begin, results = FORK.Event(), FORK.Queue()
    workers = [
        FORK.Process(target=work, args=(url, trials, seconds, spread, index * apart, begin, results))
        for index in range(count)
    ]
    for worker in workers:
        worker.start()
    time.sleep(3.0)  # they open the database
    begin.set()
    rows = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    study = waiting_study(url, trials, seconds)
    history = History(need_study(study.storage, "waiting")).refresh()
    complete = [trial for trial in history.trials.values() if trial.state == optuna.trial.TrialState.COMPLETE]
    positions = sorted(history.position(trial.number) for trial in complete)
    assert positions == list(range(trials)), "every position must be measured once"
    share = sum(spent for spent, _ in rows) / sum(whole for _, whole in rows)
    return {"workers": count, "seconds_of_a_trial": seconds, "trials": trials, "storage_share": round(share, 4)}


def main() -> None:
    """Print the figures; the last line is a JSON object."""
    arguments = parser(__doc__)
    arguments.add_argument("--many", type=int, default=None, help="workers at one database (default: 100)")
    arguments.add_argument("--at-once", action="store_true", help="all workers begin together, with trials as long")
    arguments.add_argument("--storage", metavar="URL", help="of the many (default: SQLite in a temporary folder)")
    options = arguments.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials, images = (80, 200) if options.quick else (160, 500)
    with tempfile.TemporaryDirectory() as folder:
        rates = trials_a_second(trials, images, f"sqlite:///{Path(folder)}/two.db")
        say(f"a worker: {rates[1]:.2f} trials a second, two: {rates[2]:.2f}")
        count, seconds, rounds = (20, 2.0, 4) if options.quick else (100, 10.0, 6)
        url = options.storage or f"sqlite:///{Path(folder)}/many.db"
        many = cost_of_many(options.many or count, seconds, rounds, url, at_once=options.at_once)
    say(f"{many['workers']} workers spend {many['storage_share']:.1%} of their time in the database")
    speedup = round(rates[2] / rates[1], 3)
    print(json.dumps({"machine": machine(), "speedup": speedup, "trials_a_second": rates, **many}))


if __name__ == "__main__":
    main()
