"""How long a report takes, and how large it is: of a study of 1,000 trials, without a model.

    python benchmarks/report.py --quick

``--quick`` is 200 trials. The study's objective is a function of the candidate's times.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from pathlib import Path

import torch
from common import machine, parser, say

import autodiffusion_opt as ado
from autodiffusion_opt.report.page import page
from autodiffusion_opt.study.results import open_study


def distance(candidate: ado.Candidate) -> float:
    """From a schedule that is even in the square root of time."""
    wanted = [900, 500, 220, 50]
    return 1 + sum(abs(math.log((time + 1) / aim)) for time, aim in zip(candidate.times, wanted, strict=True))


def main() -> None:
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    trials = 200 if arguments.quick else 1000
    with tempfile.TemporaryDirectory() as place:
        url = f"sqlite:///{place}/studies.db"
        ado.Study(
            "report",
            space={"kind": "time-steps", "steps": 4},
            objective=ado.CandidateMetric(distance, identity="1"),
            optimizer="random",
            trials=trials,
            storage=url,
            model_info=ado.ModelInfo(train_steps=1000),
        ).run(progress=False)
        say(f"{trials} trials")
        begun = time.perf_counter()
        path = Path(place) / "report.html"
        path.write_text(page([open_study("report", url)], url), encoding="utf-8")
        seconds = time.perf_counter() - begun
        size = path.stat().st_size / 1e6
    print(json.dumps({"trials": trials, "seconds": round(seconds, 2), "megabytes": round(size, 2), **machine()}))


if __name__ == "__main__":
    main()
