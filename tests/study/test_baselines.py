"""What every study is compared with: what the pipeline does by itself comes first, also where no space holds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import pipelines
from peers.samples import load

from autodiffusion_opt import Candidate, ImageMetric, ModelInfo, Study
from autodiffusion_opt.report.tables import run_summary, run_table
from autodiffusion_opt.sampling.apply import install
from autodiffusion_opt.study.results import stored_study
from autodiffusion_opt.trials.attributes import BASELINE, candidate_of

pytestmark = [
    # diffusers' own set_timesteps, with NumPy 2, and transformers' own
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


def brightness(images: torch.Tensor) -> float:
    return float(images.float().mean())


def study_of(name: str, url: str, prompts: Path, trials: int = 3, optimizer: Any = "random", **space: Any) -> Study:
    prompts.write_text("\n".join(pipelines.PROMPTS))
    conditions = {"kind": "prompts", "file": str(prompts)}
    return Study(
        "small",
        pipeline={"model": load(name), "micro_batch": 2, "batch_size": 2, "call": pipelines.CALLS.get(name, {})},
        space={"kind": "time-steps", "steps": 3, **space},
        objective=ImageMetric(brightness, images=2, identity="brightness", conditions=conditions),
        optimizer=optimizer,
        trials=trials,
        storage=url,
    )


def test_own_is_first_exact_and_what_results_are_divided_by_though_its_times_are_no_integers(
    url: str, tmp_path: Path
) -> None:
    study = study_of("flux", url, tmp_path / "prompts.txt")
    study.run(progress=False)
    first = study.trials()[0]
    assert first.user_attrs[BASELINE] == "own"
    own = candidate_of(first)
    assert own is not None
    assert own == study.problem.baselines["own"]
    assert own.times[0] == 1000
    assert not own.times[1].is_integer()
    # Optimizers of parameters see the nearest in the space.
    assert first.params == {f"t{i + 1}": round(time) for i, time in enumerate(own.times)}
    stored = stored_study("small", study.storage)
    summary = run_summary(stored)
    assert summary["factor_of"] == "own"
    assert summary["factor"] == pytest.approx(summary["best"]["value"] / summary["baselines"]["own"])
    assert "of own" in [str(column.header) for column in run_table(stored).columns]


def test_the_other_baselines_of_flow_matching_have_the_models_shift(url: str, tmp_path: Path) -> None:
    """SD3's shift of 3: σ = 1/2 becomes 3/4."""
    baselines = study_of("sd3", url, tmp_path / "prompts.txt", times="continuous").problem.baselines
    even = [2 * 333 / 1000, 333 / 1000]
    assert baselines["leading"].times[:2] == pytest.approx([3000 * s / (1 + 2 * s) for s in even], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [[1.0, 5.0], 2.0])
def test_own_runs_at_the_calls_default_guidance_where_the_space_has_others(
    url: str, tmp_path: Path, scale: Any
) -> None:
    """7.5 is outside of the range."""
    study = study_of("stable_diffusion", url, tmp_path / "prompts.txt", guidance_scale=scale)
    study.run(progress=False)
    own = candidate_of(study.trials()[0])
    assert own is not None
    assert own.guidance_scale == 7.5
    assert {baseline.guidance_scale for baseline in study.problem.space.baselines().values()} <= {3.0, 2.0}
    with install(study.problem.sampler.pipeline, own):  # type: ignore[union-attr]
        pass


def test_own_that_equals_a_usual_schedule_is_shown_once(url: str, study_file: Callable[..., Path]) -> None:
    study = Study.load(study_file(), storage=url)
    assert list(study.problem.baselines)[:2] == ["own", "linspace"]
    assert study.problem.own_label == "own = leading"
    study.run(3, progress=False)
    stored = stored_study("small", study.storage)
    assert [result.label for result in stored.baselines().values()] == ["own = leading", "linspace", "trailing"]


def test_without_a_pipeline_results_are_divided_by_the_uniform_schedule(url: str) -> None:
    from autodiffusion_opt import CandidateMetric

    study = Study(
        "formula",
        space={"kind": "time-steps", "steps": 2},
        objective=CandidateMetric(lambda candidate: 1 + sum(candidate.times), identity="sum"),
        optimizer="random",
        trials=3,
        storage=url,
        model_info=ModelInfo(1000),
    )
    study.run(progress=False)
    assert next(iter(study.problem.baselines)) == "leading"
    assert run_summary(stored_study("formula", study.storage))["factor_of"] == "leading"


@pytest.mark.slow
def test_evolution_goes_on_from_own_though_it_is_outside_of_the_space(url: str, tmp_path: Path) -> None:
    """Its children are in the space."""
    table = {"kind": "evolution", "population": 6, "parents": 6, "mutations": 3, "crossovers": 3}
    study = study_of("flux", url, tmp_path / "prompts.txt", trials=16, optimizer=table)
    study.run(progress=False)
    candidates = {trial.number: candidate_of(trial) for trial in study.trials()}
    for number, candidate in candidates.items():
        assert candidate is not None
        if number:
            study.problem.space.check(candidate)
    origins = [trial.user_attrs["origin"] for trial in study.trials()]
    assert {"mutation", "crossover"} <= set(origins)


def test_the_grid_of_sample_shows_the_pipelines_own(digits: Any, study_file: Callable[..., Path], url: str) -> None:
    from autodiffusion_opt.study.config import load_study_config
    from autodiffusion_opt.study.problem import load_sampler
    from autodiffusion_opt.study.samples import compared_candidates, sample_blocks

    sampler = load_sampler(load_study_config(str(study_file())))
    best = Candidate.from_time_steps([900, 300, 40, 3])
    blocks = sample_blocks(sampler, compared_candidates(sampler, best), 2, 0, {best: {"fid": 12.5}})
    names = ["own [750, 500, 250, 0]", "best [900, 300, 40, 3], fid 12.5", "uniform [999, 666, 333, 0]"]
    assert list(blocks) == [*names, "teacher 50 steps"]
