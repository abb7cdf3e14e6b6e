"""Files and names that are nearly right are taken, or refused in sentences: no traceback, at once, in little time."""

from __future__ import annotations

import json
import re
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import fuzzing
import pytest

from autodiffusion_opt.text import HIDDEN

Call = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]
Check = Callable[..., tuple[int, str]]
SEED = 20_260
SECONDS = 20.0  # what a file that is as good as endless would exceed, on any machine
CANDIDATE = {
    "format": 1,
    "steps": [{"time": 900, "removed": [1, 2]}, {"time": 500.5, "branch": 2}, 100],
    "guidance_scale": 7.5,
    "end_time": 1,
    "comment": "by hand",
    "source": {
        "study": "small",
        "trial": 7,
        "values": {"fid": 12.5},
        "definition": {
            "pipeline": {"model": "digits", "scheduler": "ddim", "batch_size": 10},
            "space": {"kind": "time-steps", "steps": 3},
            "objective": {"kind": "fid", "images": [10, 20], "features": "digits", "reference": "digits"},
            "optimizer": {"kind": "evolution"},
            "seed": 0,
            "trials": 14,
            "file": "small.toml",
            "folders": {"objective": "."},
            "ranking": [[1, 2], [2, 1], [1, 2]],
        },
    },
}
ENGINES: list[dict[str, Any]] = [
    {"kind": "mag-cache", "skipped": [2, 4]},
    {"kind": "first-block-cache", "threshold": 0.1},
    {"kind": "taylorseer-cache", "interval": 2, "warm_up": 1, "order": 1},
    {"kind": "cache-dit-mask", "front": 1, "back": 0, "skipped": [1]},
]
# Tables that the study's own are replaced by now and then.
PARTS: dict[str, list[Any]] = {
    "space": [
        {"kind": "joint", "n_max": 60, "steps_max": 5, "layers": "ranked"},
        "four-steps",
        {"kind": "segments", "steps": 40, "segments": [2, 10], "uniform": True, "max_flops": 10.0},
        {"kind": "cached-steps", "steps_max": 14, "max_flops": 8.2, "layers": "any"},
        {"kind": "engine", "engine": "taylorseer-cache", "steps": [4, 12]},
    ],
    "optimizer": [{"kind": "optuna:tpe"}, {"kind": "nevergrad:DE"}, "local", {"kind": "optuna:grid", "points": 3}],
    "objective": [{"kind": "kid", "images": [5, 10], "features": "digits", "reference": "digits"}, "digits-fid"],
    "pipeline": ["digits", {"model": "digits", "call": {"eta": 0.5}, "scheduler_settings": {"steps_offset": 1}}],
}


class Stopped(SystemExit):
    """The study is as it should be, and would begin."""


@pytest.fixture
def check(call: Call, monkeypatch: pytest.MonkeyPatch, digits: Any) -> Check:
    """Run a command that ends before its first trial; its exit code and message, as they may be."""
    from autodiffusion_opt.sampling.conditions import load_conditions
    from autodiffusion_opt.sampling.generate import ImageSampler
    from autodiffusion_opt.study import problem

    def loaded(config: Any, progress: Any = None) -> ImageSampler:
        """The pipeline that is loaded already; everything else as the study says."""
        if config.pipeline is None or config.pipeline.model != "digits":
            raise Stopped(0)  # as it would be
        table = getattr(config.objective, "conditions", problem.ConditionsConfig())
        with problem._told_of(config, "objective.conditions"):
            conditions = load_conditions(table, digits, config.base_of("objective"))
        return ImageSampler(digits, conditions, config.pipeline.call, config.pipeline.micro_batch)

    def stop(*given: object, **more: object) -> Iterator[None]:
        raise Stopped(0)

    monkeypatch.setattr(problem, "load_sampler", loaded)
    monkeypatch.setattr("autodiffusion_opt.sampling.ranking.rank_layers", stop)
    monkeypatch.setattr(ImageSampler, "images", stop)
    monkeypatch.setattr(ImageSampler, "calls", stop)

    def checked(*words: object) -> tuple[int, str]:
        began = time.process_time()
        code, _, err = call(*words)
        took = time.process_time() - began
        assert code in (0, 2), err
        assert code == 0 or err.strip()
        assert "Traceback" not in err
        assert len(err) <= 2000
        assert not HIDDEN.search(err.replace("\n", "")), err
        assert not re.search(r": *($|\n|;)", err), f"an empty reason: {err}"
        # What is accepted runs, and imports what it runs with.
        assert code == 0 or took < SECONDS, f"{took:.1f} s: {err[:500]}"
        return code, err

    return checked


def study_files(check: Check, study_text: str, folder: Path, seeds: range) -> None:
    valid = tomllib.loads(study_text)
    for seed in seeds:
        random = Random(SEED + seed)
        parts = {part: random.choice(PARTS[part]) for part in PARTS if random.random() < 0.3}
        tables = fuzzing.mutated({**valid, **parts}, random, random.choice([0, 1, 1, 2, 5]))
        path = folder / f"fuzz{seed}.toml"
        path.write_bytes(fuzzing.toml_file(tables, random))
        check("run", path, "--storage", f"sqlite:///{folder}/fuzz.db", "--trials", 1)


def candidate_files(check: Check, seeds: range) -> None:
    for seed in seeds:
        random = Random(SEED + seed)
        valid = CANDIDATE if random.random() < 0.7 else {**CANDIDATE, "engine": random.choice(ENGINES)}
        text = json.dumps(fuzzing.mutated(valid, random, random.choice([0, 1, 1, 2, 5]))).encode()
        Path("fuzz.json").write_bytes(fuzzing.damaged(text, random) if random.random() < 0.15 else text)
        words = ("verify", "fuzz.json", "--images", 2, "--repeats", 1)
        check(*words) if seed % 2 else check("sample", "fuzz.json", "-n", 1)


def storage_urls(check: Check, folder: Path, study: Path, seeds: range) -> None:
    for seed in seeds:
        random = Random(SEED + seed)
        url = fuzzing.storage_url(folder, random)
        _, err = check(*(("status",) if seed % 2 else ("best", "small")), "--storage", fuzzing.changed(url, random))
        assert "secret" not in err
        _, err = check("run", study, "--storage", url)  # which creates it
        assert "secret" not in err


def references(check: Check, folder: Path, seeds: range) -> None:
    for seed in seeds:
        random = Random(SEED + seed)
        make = fuzzing.bad_images if seed % 2 else fuzzing.bad_archive
        source = make(folder / (f"images{seed}" if seed % 2 else f"{seed}.npz"), random)
        check("reference", "show", source, "--features", "digits", "--device", "cpu")


def test_a_few_study_files(check: Check, study_text: str, tmp_path: Path) -> None:
    study_files(check, study_text, tmp_path, range(1000, 1025))


def test_a_few_candidate_files(check: Check) -> None:
    candidate_files(check, range(1000, 1040))


def test_a_few_storage_urls(check: Check, study_file: Write, tmp_path: Path) -> None:
    storage_urls(check, tmp_path, study_file(), range(1000, 1010))


def test_a_few_references(check: Check, tmp_path: Path) -> None:
    references(check, tmp_path, range(1000, 1008))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 500, 100))
def test_500_study_files(start: int, check: Check, study_text: str, tmp_path: Path) -> None:
    study_files(check, study_text, tmp_path, range(start, start + 100))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 500, 100))
def test_500_candidate_files(start: int, check: Check) -> None:
    candidate_files(check, range(start, start + 100))


@pytest.mark.slow
def test_100_storage_urls(check: Check, study_file: Write, tmp_path: Path) -> None:
    storage_urls(check, tmp_path, study_file(), range(100))


@pytest.mark.slow
def test_50_references(check: Check, tmp_path: Path) -> None:
    references(check, tmp_path, range(50))


def test_all_mistakes_of_a_file_are_told_at_once(check: Check, study_text: str, tmp_path: Path) -> None:
    """A mistake in each table, and one beside them."""
    changes = (
        ("trials = 14", "trials = 0"),
        ("seed = 0", "sed = 0"),
        ("steps = 4", "steps = nan"),
        ("batch_size = 10", "batch_size = 'x'"),
        ("images = 20", "images = -1"),
        ("population = 5", "populaton = 5"),
    )
    for old, new in changes:
        study_text = study_text.replace(old, new, 1)
    (tmp_path / "wrong.toml").write_text(study_text)
    _, err = check("run", tmp_path / "wrong.toml")
    for key in ("trials", "sed", "steps", "batch_size", "images", "populaton"):
        assert key in err
