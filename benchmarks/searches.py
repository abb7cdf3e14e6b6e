"""The searches that ``optimizers.py`` compares, each kept in a database of its own to go on from there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sqlite3
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from original_search import Ended, Times, original_search

from autodiffusion_opt import Candidate, Study, UserError
from autodiffusion_opt.objective import Score
from autodiffusion_opt.objective.image_objective import ImageObjective
from autodiffusion_opt.optimizer.base import require_fully_parametric
from autodiffusion_opt.progress import Progress, silent
from autodiffusion_opt.study.config import StudyConfig, build_optimizer, load_study_config
from autodiffusion_opt.study.curves import Axis, Curve, curve_of
from autodiffusion_opt.study.problem import Problem, load_problem
from autodiffusion_opt.study.results import stored_study
from autodiffusion_opt.study.verify import rescore
from autodiffusion_opt.trials.attributes import FINGERPRINT, candidate_of, values_of

JOINT, RANKED = "joint", "joint-ranked"  # with any layer sets; with those of a ranking, as parameters
CACHED = "cached-"  # and the budget, in whole networks
STUDIES = {"digits": "digits-4", "digits-dit": "dit-4"}
JOINT_STUDIES = {"digits": "digits-joint", "digits-dit": "dit-joint"}
DEFAULT, ORIGINAL, EVOLUTION = "local", "original", "evolution"
OPTIMIZERS: dict[str, dict[str, Any]] = {
    DEFAULT: {"kind": "local"},
    ORIGINAL: {},
    EVOLUTION: {"kind": "evolution"},
    "evolution-20": {"kind": "evolution", "population": 20, "parents": 6, "mutations": 10, "crossovers": 6},
    **{
        kind: {"kind": kind}
        for kind in (
            "random",
            *(f"optuna:{name}" for name in ("tpe", "cmaes", "nsga2", "random", "gp", "qmc", "catcma")),
            *(f"nevergrad:{name}" for name in ("CMA", "TwoPointsDE", "OnePlusOne", "PSO")),
        )
    },
}
# Of the original's noise: trial n of seed s has the seed (s + 1)·OWN_NOISE + n, far from those of others.
OWN_NOISE = 1_000_000


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rungs: of the default optimizer; the last is what all others measure in a trial.
        images: which a search may spend.
        fresh: images of each re-scoring.
        repeats: of the re-scoring.
    """

    rungs: tuple[int, ...] = (100, 500)
    images: int = 150_000
    fresh: int = 2000
    repeats: int = 2


class NotMeasured(Exception):
    """What is not kept may not be measured now."""


class Memo:
    """Scores by key, in a file that several processes may use."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, timeout=60, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score TEXT)")

    def get(self, key: str) -> Score | None:
        """The score of a key."""
        row = self._database.execute("SELECT score FROM scores WHERE key = ?", (key,)).fetchone()
        return None if row is None else Score(**json.loads(row[0]))

    def put(self, key: str, score: Score) -> None:
        """Keep a score."""
        self._database.execute("INSERT OR REPLACE INTO scores VALUES (?, ?)", (key, json.dumps(score.to_dict())))


@dataclass(frozen=True)
class RememberingObjective(ImageObjective):
    """Gives an equal candidate on equal images the score that it had, in whichever search.

    Attributes:
        memo: holds the scores.
        problem: the digest of all else that decides them.
        is_read_only: whether what is not in the memo raises :class:`NotMeasured`.
    """

    memo: Memo | None = None
    problem: str = ""
    is_read_only: bool = False

    def measure(
        self, candidate: Candidate, *, seed: int | None = None, images: int | None = None, progress: Progress = silent
    ) -> Iterator[Score]:
        """A score after each rung."""
        assert self.memo is not None
        seed = self.seed if seed is None else seed
        # Where a rung is not in the memo those before it are measured again: their images are part of it.
        measured: Iterator[Score] | None = None
        for count in self.rungs if images is None else (images,):
            key = json.dumps([self.problem, candidate.to_json(), seed, count])
            score = self.memo.get(key)
            if score is None:
                if self.is_read_only:
                    raise NotMeasured
                measured = measured or super().measure(candidate, seed=seed, images=images, progress=progress)
                score = next(score for score in measured if score.images == count)
                self.memo.put(key, score)
            yield score


@dataclass(frozen=True)
class Run:
    """What a search spent and found.

    Attributes:
        curve: its best value so far against what it had spent.
        winner: the best candidate at its end.
    """

    seed: int
    curve: Curve
    winner: Candidate

    @property
    def final(self) -> float:
        """The best value at its end."""
        return self.curve.best[-1]


class Searches:
    """The searches whose trials are kept in a folder.

    Args:
        folder: which holds a database for each search, and one of all scores.
        effort: of each.
        is_read_only: whether nothing may be measured.
        is_compiled: whether denoisers are compiled.
    """

    def __init__(self, folder: Path, effort: Effort, is_read_only: bool, is_compiled: bool = False) -> None:
        self.folder = folder
        self.effort = effort
        self.is_read_only = is_read_only
        self.is_compiled = is_compiled
        self.memo = Memo(folder / "scores.db")
        self.problem = cache(self._problem)

    def config(
        self, model: str, steps: str, optimizer: str = EVOLUTION, start_from: Sequence[str] | None = None
    ) -> StudyConfig:
        """A study; its optimizer must not be the original.

        Args:
            model: an embedded one.
            steps: how many, or ``joint``, ``joint-ranked``, or ``cached-`` and a number of whole networks.
            optimizer: a key of ``OPTIMIZERS``.
            start_from: its warm starts; None: its own.
        """
        rungs = self.effort.rungs
        images = list(rungs) if optimizer == DEFAULT else rungs[-1]
        # A call always makes micro_batch images; equal ones for all, so that equal candidates have equal values.
        batch = math.gcd(*rungs)
        overrides = [f"objective.images={images}", f"pipeline.micro_batch={batch}", f"pipeline.batch_size={batch}"]
        starts = {} if start_from is None else {"start_from": list(start_from)}
        overrides += [f"optimizer={toml(OPTIMIZERS[optimizer] | starts)}"]
        overrides += ["pipeline.compile=true"] * self.is_compiled
        if steps.startswith(CACHED):
            table = {"kind": "cached-steps", "max_flops": float(steps.removeprefix(CACHED))}
            overrides += [f"space={toml(table)}"]
        elif steps == RANKED:
            overrides += ["space.layers=ranked"]
        elif steps != JOINT:
            overrides += [f"space={toml({'kind': 'time-steps', 'steps': int(steps)})}"]
        return load_study_config((JOINT_STUDIES if steps in (JOINT, RANKED) else STUDIES)[model], overrides)

    def _problem(self, model: str, steps: str) -> Problem:
        """The model and its objective, which remembers."""
        config = self.config(model, steps)
        problem = load_problem(config)
        objective = problem.objective
        assert isinstance(objective, ImageObjective)
        definition = config.definition() | {FINGERPRINT: problem.fingerprint, "torch": torch.__version__}
        same = {key: definition[key] for key in ("pipeline", FINGERPRINT, "torch")}
        digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]
        given: dict[str, Any] = {field.name: getattr(objective, field.name) for field in fields(ImageObjective)}
        remembering = RememberingObjective(**given, memo=self.memo, problem=digest, is_read_only=self.is_read_only)
        return replace(problem, objective=remembering)

    def refusal(self, model: str, steps: str, optimizer: str) -> str | None:
        """Why an optimizer does not search a space; None where it does."""
        if optimizer == ORIGINAL:
            return "it is of time steps alone" if steps in (JOINT, RANKED) else None
        space = self.problem(model, steps).space
        try:
            table = build_optimizer(OPTIMIZERS[optimizer], optimizer)
            if not table.proposes_candidates:
                require_fully_parametric(space, optimizer)
            table.sampler(space, 0)
        except UserError as error:
            return str(error)
        return None

    def run(
        self, model: str, steps: str, optimizer: str, seed: int, start_from: Sequence[str] | None = None
    ) -> Run | None:
        """A search, gone on with until its images are spent; None where nothing may be measured and nothing is kept.

        The arguments are those of :meth:`config`.
        """
        if optimizer == ORIGINAL:
            return self._original(model, steps, seed)
        effort = self.effort
        name = f"{model}-{steps}-{optimizer.replace(':', '-')}-{seed}-{effort.rungs[-1]}.db"
        if self.is_read_only and not (self.folder / name).exists():
            return None
        config = self.config(model, steps, optimizer, start_from).with_seed(seed)
        study = Study.from_config(config, f"sqlite:///{self.folder / name}")
        problem = self.problem(model, steps)
        objective = replace(problem.objective, images=effort.rungs if optimizer == DEFAULT else effort.rungs[-1])  # type: ignore[type-var]
        study.problem = replace(problem, objective=objective)
        if not self.is_read_only:
            self._go_on(study)
        run = stored_run(study, seed, effort.images)
        study.storage.engine.dispose()
        return run

    def _go_on(self, study: Study) -> None:
        """Run a study while there are images for one more trial."""
        study.run(1, progress=False)
        while True:
            curve = curve_of(stored_study(study.config.name, study.storage))
            more = self.trials_left(curve)
            if not more:
                return
            study.run(int(curve.total("trials")) + more, progress=False)

    def trials_left(self, curve: Curve) -> int:
        """How many trials of all their rungs a search can have yet; 0: it is finished.

        One that proposes again and again what it measured before spends nothing: the number of trials ends it.
        """
        least, most = self.effort.rungs[0], self.effort.rungs[-1]
        affordable = int((self.effort.images - curve.total("images")) // most)
        return max(0, min(affordable, self.effort.images // least - int(curve.total("trials"))))

    def _original(self, model: str, steps: str, seed: int) -> Run | None:
        """The authors' search, from its beginning: what it measured before is in the memo."""
        problem, images = self.problem(model, steps), self.effort.rungs[-1]
        best: list[float] = []
        held, winner = math.inf, None

        def value_of(candidate: Candidate, noise: int | None = None) -> float:
            *_, score = problem.objective.measure(candidate, seed=noise, images=images)
            return next(iter(score.values.values()))

        def measure(times: Times) -> float:
            nonlocal held, winner
            if (len(best) + 1) * images > self.effort.images:
                raise Ended
            candidate = Candidate.from_time_steps(sorted(set(times), reverse=True))
            value = value_of(candidate, (seed + 1) * OWN_NOISE + len(best))
            is_better = value < held
            best.append(value_of(candidate) if is_better else best[-1])
            if is_better:
                held, winner = value, candidate
            return value

        with contextlib.suppress(Ended, NotMeasured):
            original_search(problem.info.train_steps, int(steps), np.random.default_rng(seed), measure)
        if winner is None:
            return None
        trials = range(1, len(best) + 1)
        spent: dict[Axis, tuple[float, ...]] = {
            "images": tuple(float(images * trial) for trial in trials),
            "trials": tuple(map(float, trials)),
        }
        return Run(seed, Curve(spent, tuple(best)), winner)

    def rescored(self, model: str, steps: str, runs: Sequence[Run]) -> dict[str, Any] | None:
        """The winner of the median seed on fresh noise; None where it is not kept and may not be measured."""
        run = sorted(runs, key=lambda run: run.final)[(len(runs) - 1) // 2]
        try:
            scored = rescore(
                self.problem(model, steps),
                {"winner": run.winner},
                images=self.effort.fresh,
                repeats=self.effort.repeats,
            )["winner"]
        except NotMeasured:
            return None
        mean, std = round(scored.mean, 3), round(scored.std, 3)
        return {"mean": mean, "std": std, "seed": run.seed, "candidate": run.winner.to_dict()}


def toml(table: Mapping[str, Any]) -> str:
    """An inline table."""
    return "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) + "}"


def stored_run(study: Study, seed: int, images: int) -> Run | None:
    """What a study had found once it had spent so many images; None where that is nothing."""
    stored = stored_study(study.config.name, study.storage)
    whole = curve_of(stored)
    count = bisect_right(whole.spent["images"], images) if whole.best else 0
    curve = Curve({axis: spent[:count] for axis, spent in whole.spent.items()}, whole.best[:count])
    finished = [trial for trial in stored.trials if trial.state.is_finished()]
    valued = [(values[0], candidate_of(trial)) for trial in finished[:count] if (values := values_of(trial))]
    _, winner = min(valued, key=lambda pair: pair[0], default=(math.nan, None))
    return None if winner is None else Run(seed, curve, winner)
