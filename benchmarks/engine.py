"""A cache's settings searched, against its default and a sweep by hand, at equal cost: ``benchmarks/engine.py``.

A cache of diffusers (``--engine``: its first-block cache by threshold, TaylorSeer by interval, MagCache by the share of
skipped steps) on the embedded DiT (Fréchet distance to real images) and on a small Flux of random weights (distance of
each image from the teacher's, whose weights are as random). A candidate may cost ``--networks`` whole networks, as they
are counted while it samples:

- ``fewer steps``: even steps, no cache;
- ``default``: even steps, the package's settings, as many steps as cost no more; MagCache's are none;
- ``sweep``: the same at six settings, the best of them;
- ``study``: a study of ``kind = "engine"``: settings, number of steps and times, ``local``.

A seed is that of the Flux's weights, of the noise and of the search. Winners are measured again on fresh noise. The
last line is one JSON object; ``over_default`` and ``over_sweep`` are the value of the study's winner over theirs, of
each seed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from itertools import product
from typing import Any

import diffusers
import torch
from common import machine, parser, say

from autodiffusion_opt import Candidate, Step, Study
from autodiffusion_opt.engine import Engine, FirstBlockCache, MagCache, TaylorSeerCache
from autodiffusion_opt.sampling.counted import networks_run
from autodiffusion_opt.space.baselines import leading, shifted
from autodiffusion_opt.space.engine_knobs import evenly_skipped
from autodiffusion_opt.space.engine_settings import EngineSettings
from autodiffusion_opt.study.problem import Problem
from autodiffusion_opt.study.verify import rescore

MODELS = ("digits-dit", "flux")
FEWER, DEFAULT, SWEEP, STUDY = "fewer steps", "default", "sweep", "study"
# By engine, the default and six settings, for a number of steps.
HAND: dict[str, Callable[[int], list[Engine | None]]] = {
    FirstBlockCache.kind: lambda steps: [*map(FirstBlockCache, (0.05, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64))],
    TaylorSeerCache.kind: lambda steps: [TaylorSeerCache(interval, 3, 1) for interval in (5, 2, 3, 4, 5, 6, 7)],
    MagCache.kind: lambda steps: [
        None,
        *(MagCache(evenly_skipped(share, steps)) for share in (1 / 5, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4)),
    ],
}


class Flux(diffusers.FluxPipeline):  # type: ignore[misc]
    """A Flux that is told nothing: it has no text encoders."""

    def encode_prompt(self, prompt: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embeddings of no text: (N, 1, 8), (N, 8), (1, 3)."""
        count = len(prompt) if isinstance(prompt, list) else 1
        return torch.zeros(count, 1, 8), torch.zeros(count, 8), torch.zeros(1, 3)


def flux(seed: int) -> Flux:
    """Four blocks of two streams and four of one, 64 tokens."""
    torch.manual_seed(seed)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=4,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )
    decoder = diffusers.AutoencoderKL(
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        shift_factor=0.0,
        norm_num_groups=2,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = Flux(scheduler, decoder, None, None, None, None, transformer)
    pipeline.default_sample_size = 16  # latents; packed by two in each direction
    return pipeline


def study(model: str, engine: str, networks: int, trials: int, rungs: list[int], seed: int, folder: str) -> Study:
    """The study of a model; twice as many steps as whole networks are its most."""
    space = {"kind": "engine", "engine": engine, "steps": [networks, 2 * networks]}
    objective: dict[str, Any] = {"images": rungs, "at_most": {"flops": 0.5}, "seed": seed}
    pipeline: Any
    if model == "flux":
        pipeline = flux(seed)
        objective |= {
            "kind": "paired",
            "features": "pixels",
            "teacher_steps": 20,
            "conditions": {"kind": "prompts", "prompts": ["any"]},
        }
    else:
        like = Study.load("dit-4").config
        pipeline = like.pipeline.model_dump(mode="json") if like.pipeline is not None else model
        objective = like.objective.model_dump(mode="json") | objective
    return Study(
        f"engine-{model}",
        pipeline=pipeline,
        space=space,
        objective=objective,
        optimizer="local",
        trials=trials,
        seed=seed,
        storage=f"sqlite:///{folder}/{model}.db",
    )


def even(problem: Problem, steps: int, engine: Engine | None) -> Candidate:
    """Even steps, with a cache or none."""
    assert isinstance(problem.space, EngineSettings)
    times = problem.space.grid.settle(shifted(problem.info, leading(problem.info, steps)))
    return Candidate(tuple(map(Step, times)), engine=engine)


def by_hand(problem: Problem, engine: str, networks: int) -> list[Candidate]:
    """Of the default and each setting, as many even steps as the budget allows."""
    assert problem.sampler is not None
    seed = problem.objective.seed  # type: ignore[attr-defined]
    allowed: dict[int, Candidate] = {}
    for steps in range(networks, 2 * networks + 1):
        for place, setting in enumerate(HAND[engine](steps)):
            candidate = even(problem, steps, setting)
            if networks_run(problem.sampler, candidate, seed) <= networks + 1e-9:
                allowed[place] = candidate
    return [allowed[place] for place in sorted(allowed)]


def value(problem: Problem, candidate: Candidate) -> float:
    """On the search's images."""
    *_, score = problem.objective.measure(candidate)
    return next(iter(score.values.values()))


def compared(
    model: str, engine: str, networks: int, trials: int, rungs: list[int], images: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Each way's winner, re-scored."""
    with tempfile.TemporaryDirectory() as folder:
        search = study(model, engine, networks, trials, rungs, seed, folder)
        problem = search.problem
        say(f"{model}, seed {seed}: settings by hand")
        default, *swept = by_hand(problem, engine, networks)
        ways = {
            FEWER: even(problem, networks, None),
            DEFAULT: default,
            SWEEP: min(swept, key=lambda candidate: value(problem, candidate)),
        }
        say(f"{model}, seed {seed}: {trials} trials")
        search.run(progress=False)
        ways[STUDY] = search.best().candidate
        assert problem.sampler is not None
        scored = rescore(problem, ways, images=images, repeats=3)
        return {
            way: {
                "networks": round(networks_run(problem.sampler, candidate, seed), 3),
                "mean": round(scored[way].mean, 4),
                "std": round(scored[way].std, 4),
                "candidate": str(candidate),
            }
            for way, candidate in ways.items()
        }


def main() -> None:
    """Search, re-score, print."""
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments.add_argument("--engine", choices=list(HAND), default=FirstBlockCache.kind)
    arguments.add_argument("--networks", type=int, default=4)
    arguments.add_argument("--trials", type=int, default=80)
    arguments.add_argument("--images", type=int, default=2000, help="of each of the three re-scorings")
    arguments.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    trials, images, rungs = options.trials, options.images, {"digits-dit": [100, 500], "flux": [16, 64]}
    models, networks, seeds = options.models, options.networks, options.seeds
    if options.quick:
        trials, images, models, networks, seeds, rungs["flux"] = 30, 16, ["flux"], 3, 1, [8, 16]
    print(f"{'model':<12}{'seed':>4}  {'way':<13}{'networks':>9}{'mean':>10}{'std':>9}  candidate")
    rows: dict[str, list[dict[str, dict[str, Any]]]] = {model: [] for model in models}
    for model, seed in product(models, range(seeds)):
        fresh = images if model != "flux" else min(images, 256)
        ways = compared(model, options.engine, networks, trials, rungs[model], fresh, seed)
        rows[model].append(ways)
        for way, row in ways.items():
            numbers = f"{row['networks']:>9.2f}{row['mean']:>10.4g}{row['std']:>9.2g}"
            print(f"{model:<12}{seed:>4}  {way:<13}{numbers}  {row['candidate']}", flush=True)
    over = {
        f"over_{way}": {
            model: [round(ways[STUDY]["mean"] / ways[way]["mean"], 4) for ways in of_seeds]
            for model, of_seeds in rows.items()
        }
        for way in (DEFAULT, SWEEP)
    }
    print(json.dumps({"engine": options.engine, "rows": rows, **over, "machine": machine()}))


if __name__ == "__main__":
    main()
