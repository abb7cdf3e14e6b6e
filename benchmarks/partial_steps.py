"""Seconds of partial steps beside their FLOPs: ``python benchmarks/partial_steps.py [--quick]``.

Generations of a UNet of ADM's layout, all steps full, and every second one partial at each branch that is offered. The
last line is one JSON object; ``wall_over_flops`` is the greatest, over these branches, of the ratio of seconds divided
by the ratio of FLOPs: 1 where what is not computed takes no time.
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch
from common import adm, machine, parser
from diffusers import DDIMPipeline, DDIMScheduler

import autodiffusion_opt as ado
from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.sampling.introspect import read_model_info
from autodiffusion_opt.space import cost
from autodiffusion_opt.space.caching import offered_branches

STEPS = 4


def candidate_at(branch: int | None) -> Candidate:
    """Uniform steps; of a branch every second one is partial."""
    times = [900 - 200 * index for index in range(STEPS)]
    return Candidate(
        tuple(Step(t) if branch is None or index % 2 == 0 else Step(t, (), branch) for index, t in enumerate(times))
    )


def seconds(pipeline: Any, candidate: Candidate) -> float:
    """Of a generation of one image."""
    with ado.install(pipeline, candidate), torch.inference_mode():
        began = time.perf_counter()
        pipeline(batch_size=1, output_type="np")
        return time.perf_counter() - began


def main() -> None:
    """Measure, print."""
    arguments = parser(__doc__, threads=1)
    arguments.add_argument("--width", type=int, default=128, help="channels of the first level")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    width, repeats = (64, 3) if options.quick else (options.width, 5)
    pipeline = DDIMPipeline(adm(32, width).eval(), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    info = read_model_info(pipeline, need_layers=True, need_branches=True)
    branches = offered_branches(info, None)
    # In turns, and the least of each: what else the machine does only adds.
    taken = [{branch: seconds(pipeline, candidate_at(branch)) for branch in (None, *branches)} for _ in range(repeats)]
    full, rows = min(each[None] for each in taken), []
    for branch in branches:
        flops = cost.flops(info, candidate_at(branch)) / cost.flops(info, candidate_at(None))
        wall = min(each[branch] for each in taken) / full
        rows.append({"branch": branch, "share": info.branch_shares[branch], "flops": flops, "wall": wall})
    print(f"{'branch':>6}{'share':>8}{'FLOPs':>8}{'seconds':>9}{'ratio':>7}   (of all steps full, {full:.2f} s)")
    for row in rows:
        print(
            f"{row['branch']:>6}{row['share']:>8.3f}{row['flops']:>8.3f}{row['wall']:>9.3f}"
            f"{row['wall'] / row['flops']:>7.3f}"
        )
    worst = max(row["wall"] / row["flops"] for row in rows)
    print(json.dumps({"wall_over_flops": round(worst, 4), "rows": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
