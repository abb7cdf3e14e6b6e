"""A search over an engine's settings on a small Flux, beside the engine's defaults and a sweep by hand, at equal FLOPs.

    python benchmarks/engine_settings.py            # minutes
    python benchmarks/engine_settings.py --quick    # under a minute

The model is diffusers' own Flux classes with random weights, so a distance to data would mean nothing: what is measured
is the mean square of the difference to the images of many uncached steps, of the same noise. FLOPs are measured, in
whole networks as computed; a candidate beyond the budget is worse the further it is beyond. The search sees a few
images; then all are measured anew on images of other noise, and the results are those.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from common import machine, parser, say

import autodiffusion_opt as ado
from autodiffusion_opt import Candidate
from autodiffusion_opt.engine import TaylorSeerCache
from autodiffusion_opt.sampling.counted import networks_run
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.introspect import read_model_info
from autodiffusion_opt.space import EngineConfig
from autodiffusion_opt.space.baselines import named_times

NETWORKS = 5.3
STEPS = (3, 12)
SEARCH_SEED, OTHER_SEED = 0, 1
# Intervals and orders that a hand would try: six points.
SWEEP = [(interval, order) for interval in (2, 3, 4) for order in (0, 1)]


def images(sampler: ImageSampler, candidate: Candidate, count: int, seed: int) -> torch.Tensor:
    """(N, C, H, W), in 0 .. 1."""
    return torch.cat([batch.double() / 255 for batch in sampler.images(candidate, range(count), seed)])


def main() -> None:
    """Print the distances, then a JSON object."""
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    # In place of this folder, whose peers.py is another module than the tests' package of that name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent / "tests")
    from peers.engine_pipelines import flux

    trials, count, teacher_steps = (16, 2, 20) if arguments.quick else (150, 8, 100)
    sampler = flux()
    info = read_model_info(sampler.pipeline, need_layers=True, call=sampler.call)
    table = {"kind": "engine", "engine": TaylorSeerCache.kind, "steps": STEPS}
    space = EngineConfig.model_validate(table).space(info)

    def even(steps: int, engine: TaylorSeerCache | None = None) -> Candidate:
        times = space.grid.settle(named_times(info, steps)["leading"])
        return replace(Candidate.from_time_steps(times), engine=engine)

    def longest(engine: TaylorSeerCache | None) -> Candidate:
        """The even schedule of the most steps that the budget allows."""
        return next(
            candidate
            for steps in range(STEPS[1], 0, -1)
            if networks_run(sampler, candidate := even(steps, engine), SEARCH_SEED) <= NETWORKS
        )

    wanted = {seed: images(sampler, even(teacher_steps), count, seed) for seed in (SEARCH_SEED, OTHER_SEED)}

    def distance(candidate: Candidate, seed: int) -> float:
        return float((images(sampler, candidate, count, seed) - wanted[seed]).square().mean())

    def searched(candidate: Candidate) -> float:
        run = networks_run(sampler, candidate, SEARCH_SEED)
        return distance(candidate, SEARCH_SEED) if run <= NETWORKS else 1.0 + run

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        storage = f"sqlite:///{folder}/study.db"
        objective = ado.CandidateMetric(searched, identity="distance-to-teacher")
        study = ado.Study("engine", space=space, objective=objective, trials=trials, storage=storage)
        study.run(progress=False)
        best = study.best().candidate
    # diffusers' defaults: cache_interval 5, disable_cache_before_step 3, max_order 1.
    rows = {"no cache": longest(None), "default": longest(TaylorSeerCache(5, 3, 1))}
    by_hand = {f"interval {i}, order {order}": longest(TaylorSeerCache(i, 2, order)) for i, order in SWEEP}
    chosen = min(by_hand, key=lambda name: searched(by_hand[name]))
    rows |= by_hand | {"study": best}
    result = {name: distance(candidate, OTHER_SEED) for name, candidate in rows.items()}
    cost = {name: round(networks_run(sampler, candidate, OTHER_SEED), 3) for name, candidate in rows.items()}
    for name, candidate in rows.items():
        say(f"{name:22} {result[name]:.4g}  {cost[name]:.2f} networks  {candidate}")
    print(
        json.dumps(
            {
                "machine": machine(),
                "trials": trials,
                "images": count,
                "budget": NETWORKS,
                "mean_square": result,
                "networks": cost,
                "best_of_hand_sweep": chosen,
                "study_over_hand_sweep": result["study"] / result[chosen],
                "study_over_default": result["study"] / result["default"],
            }
        )
    )


if __name__ == "__main__":
    main()
