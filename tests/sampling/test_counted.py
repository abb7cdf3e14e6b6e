"""What a cache computes, counted while it runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from peers.engine_pipelines import flux

from autodiffusion_opt import Candidate, Study
from autodiffusion_opt.engine import Engine, FirstBlockCache, MagCache, TaylorSeerCache
from autodiffusion_opt.sampling import counted
from autodiffusion_opt.sampling.counted import networks_run

pytestmark = pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")  # diffusers' own, in 0.42
FOUR = Candidate.from_time_steps([900, 600, 400, 100])


@pytest.mark.parametrize(
    ("engine", "least", "most"),
    [
        (None, 4, 4),
        (FirstBlockCache(1e-6), 4, 4),  # nothing changes so little
        (MagCache((1, 3)), 2, 2.1),  # what is not a block is run
        (TaylorSeerCache(2, 1, 1), 2, 2.1),
        (FirstBlockCache(1e6), 1, 2),  # the first of six blocks at each step
    ],
    ids=str,
)
def test_networks_are_what_ran_of_the_blocks(engine: Engine | None, least: float, most: float) -> None:
    sampler = flux()
    assert least <= networks_run(sampler, replace(FOUR, engine=engine), 0) <= most
    assert "forward" not in vars(sampler.pipeline.transformer)
    assert not sampler.pipeline.transformer._forward_hooks


def test_a_trials_flops_are_those_that_ran_and_its_layer_runs_are_not_known() -> None:
    problem = Study.load("dit-4", overrides=["objective.at_most.flops=0.5"]).problem
    candidate = replace(problem.baselines["own"], engine=MagCache((1, 3)))
    (score,) = problem.objective.measure(candidate, images=100)
    assert problem.sampler is not None
    assert score.flops == round(networks_run(problem.sampler, candidate, 0) * problem.info.flops)
    assert score.layer_runs is None
    assert score.values["flops"] == pytest.approx(score.flops, abs=1)


@pytest.mark.parametrize("overrides", [[], ["objective.at_most.flops=0.5"]], ids=["counted", "bounded"])
def test_a_candidate_is_counted_once_however_many_rungs_it_has(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    monkeypatch.setattr(counted, "networks_run", lambda *_: counts.append(1) or 2.0)
    study = Study.load("dit-engine", overrides=["objective='digits-dit-fid-rungs'", *overrides])
    candidate = replace(study.problem.baselines["own"], engine=MagCache((1, 3)))
    rungs = list(replace(study.problem.objective, images=(20, 40)).measure(candidate))
    assert [score.flops for score in rungs] == [2 * study.problem.info.flops] * 2
    assert len(counts) == 1
