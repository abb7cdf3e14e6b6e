"""The embedded models with schedules of their own: ``python benchmarks/own_steps.py [--quick]``.

The Fréchet distance of each embedded model's images from the 1,797 real digits at 4, 6, 10 and 50 DDIM steps of the
pipeline's own; of ``digits-dit``, whose labels are balanced, at guidance scale 1.2 and without guidance. Image i has
the same noise and label in all of them. 1,000 images are few, so all of these are too large.
The last line of stdout is one JSON object: ``distances`` holds model, guidance scale, steps and distance.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from common import machine, parser, say

from autodiffusion_opt.objective.features import load_extractor
from autodiffusion_opt.objective.references import load_reference
from autodiffusion_opt.objective.statistics import FrechetDistance
from autodiffusion_opt.sampling.conditions import Labels
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.load import load_pipeline
from autodiffusion_opt.sampling.own import own_candidate

STEPS = (4, 6, 10, 50)
QUICK_STEPS = (4, 6)
DIGITS = Labels(range(10))
# Images that the networks see at once, which decides how they round.
BATCH = 100


def samplers() -> list[tuple[str, float | None, ImageSampler]]:
    """Model, guidance scale and sampler; None where a model knows no guidance, 1 is none."""
    unconditional = ImageSampler(_pipeline("digits"), micro_batch=BATCH, batch_size=BATCH)
    conditional = _pipeline("digits-dit")
    return [("digits", None, unconditional)] + [
        ("digits-dit", scale, ImageSampler(conditional, DIGITS, {"guidance_scale": scale}, BATCH, BATCH))
        for scale in (1.2, 1.0)
    ]


def _pipeline(model: str) -> Any:
    return load_pipeline(model, scheduler="ddim", device="cpu")


def distance(sampler: ImageSampler, steps: int, images: int) -> float:
    """The Fréchet distance of the first images, in the digits' own features."""
    extractor = load_extractor("digits", torch.device("cpu"))
    measuring = FrechetDistance(load_reference("digits", extractor).statistics)
    for block in sampler.images(own_candidate(sampler, steps), range(images), 0):
        measuring.add(extractor(block))
    return measuring.value()


def main() -> None:
    """Measure and print."""
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    images, all_steps = (200, QUICK_STEPS) if options.quick else (1000, STEPS)
    rows = []
    for model, scale, sampler in samplers():
        for steps in all_steps:
            value = round(distance(sampler, steps, images), 2)
            rows.append({"model": model, "guidance_scale": scale, "steps": steps, "distance": value})
            say(f"{model}{'' if scale is None else f', guidance {scale}'}: {steps} own steps {value}")
    print(json.dumps({"benchmark": "own_steps", "distances": rows, "images": images, "machine": machine()}))


if __name__ == "__main__":
    main()
